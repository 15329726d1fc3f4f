from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import clips_world
import pytest

from clips.cli import COMMANDS
from clips.commandline.commands import config_class_of, dispatch


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert dispatch("clips", "", COMMANDS, arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_documented_config(name: str, capsys: pytest.CaptureFixture[str]):
    from clips.commandline.help_text import field_help
    from clips.typed_data import field_types

    config = COMMANDS[name].config_class()
    assert config is config_class_of(COMMANDS[name].function())
    told = dict(field_help(config))
    fields = [field for field, _ in field_types(config) if "[]" not in field]
    assert [field for field in fields if field not in told] == []
    assert dispatch("clips", "", COMMANDS, [*name.split(), "--help"]) == 0
    assert f"usage: clips {name}" in capsys.readouterr().out


def test_the_overview_needs_no_torch():
    code = "import sys, clips.cli\nassert clips.cli.main() == 0\nassert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)


def test_a_broken_shard_stops_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = clips_world.write_shards(tmp_path / "data", (3, 3))
    shard = data / "shard-00001.tar"
    shard.write_bytes(b"no tar" * 1000)
    (tmp_path / "c.json").write_text(clips_world.config_text(data, tmp_path / "out"))
    assert "shard-00001.tar: expected a whole" in complaint(capsys, "train", "--config", str(tmp_path / "c.json"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["/proc/nothing", "n" * 300, "file/below", "file", "", "."])
def test_an_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
):
    clips_world.write_shards(tmp_path / "data", (3,))
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("precious")
    Path("c.json").write_text(clips_world.config_text(Path("data"), Path("x"), max_steps=0))
    capsys.readouterr()
    for arguments in (["scenes", "--num_scenes", "3"], ["train", "--config", "c.json"]):
        assert dispatch("clips", "", COMMANDS, [*arguments, "--output", output]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert output in last
        assert re.search(r"cannot write here \(.+\)|file is in the way|expected a directory to write|exists and", last)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "data", "file"]


def test_export_takes_its_run_by_position(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = complaint(capsys, "export", str(tmp_path / "none"), "--output", str(tmp_path / "out"))
    assert line == f"clips: {tmp_path / 'none'}: no such directory"


def test_public_names_are_there():
    import clips

    assert all(callable(getattr(clips, name)) for name in clips.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        clips.nothing  # noqa: B018
