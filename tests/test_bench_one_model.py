"""``clips-bench run encoder DIR`` and ``run llava DIR``: a directory, or a training that is still going on."""

from __future__ import annotations

import shutil
from pathlib import Path

import bench_world as world
import clips_world
import pytest

from benchmarks.cli import COMMANDS
from benchmarks.results import read_result
from clips.checkpoint import checkpoints
from clips.commandline import run_commands
from clips.export import ExportConfig, export
from clips.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    data = clips_world.write_shards(folder / "train")
    train(clips_world.train_config(data, folder / "small", steps=3, keep_after_training=True))
    return folder / "small"


def bench(*words: str) -> int:
    return run_commands("clips-bench", "", COMMANDS, ["run", *words])


def test_an_encoder_directory_is_a_row_of_its_name(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world.write_shards(tmp_path / "shards", 4)
    assert bench("encoder", str(trained), "--benchmarks", "[{name: retrieval, data: shards}]") == 0
    found = read_result(tmp_path / "results/small/retrieval.json")
    assert (found.row, found.status, found.model["path"]) == ("small", "ok", str(trained))


def test_during_training_its_latest_checkpoint_is_taken(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    world.write_shards(tmp_path / "shards", 4)
    latest = checkpoints(trained)[-1]
    going_on = tmp_path / "going-on"
    shutil.copytree(latest, going_on / latest.relative_to(trained))
    words = ("encoder", str(going_on), "--results", "r", "--benchmarks", "[{name: retrieval, data: shards}]")
    assert bench(*words) == 0
    (row,) = (path.parent.name for path in (tmp_path / "r").glob("*/retrieval.json"))
    assert row == "going-on-step-2"
    export(ExportConfig(run=str(latest), output="exported"))
    assert bench("encoder", "exported", "--results", "r2", "--benchmarks", "[{name: retrieval, data: shards}]") == 0
    ours, exported = (read_result(tmp_path / name / "retrieval.json") for name in (f"r/{row}", "r2/exported"))
    assert ours.metrics == exported.metrics
    capsys.readouterr()
    assert bench(*words) == 0
    assert "done already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encoder", "nowhere"), "encoder: nowhere: no such directory"),
        (("llava", "nowhere"), "llava: nowhere: no such directory"),
    ],
)
def test_no_such_directory(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    world.write_shards(tmp_path / "shards", 4)
    name = "retrieval" if words[0] == "encoder" else "pope"
    assert bench(*words, "--benchmarks", f"[{{name: {name}, data: shards}}]") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
