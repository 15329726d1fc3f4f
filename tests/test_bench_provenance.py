"""``clips-bench provenance`` walks from a number back to the data, and says what has changed or gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bench_world as world
import clips_world
import pytest

from benchmarks.cli import COMMANDS
from benchmarks.study.step_state import StepRecord, write_record
from clips.commandline.commands import dispatch
from clips.core.artifact import MANIFEST, directory_hash
from clips.train import train


def bench(*words: str) -> int:
    return dispatch("clips-bench", "", COMMANDS, words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, an encoder that was trained on them, and its result."""
    folder = tmp_path_factory.mktemp("provenance")
    data = clips_world.write_shards(folder / "train")
    train(clips_world.train_config(data, folder / "small", max_steps=2))
    world.write_shards(folder / "test", 4)
    words = ("--results", str(folder / "results"), "--benchmarks", f"[{{name: retrieval, data: {folder / 'test'}}}]")
    assert bench("run", "encoder", str(folder / "small"), *words) == 0
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, whose result names a copy of the encoder that a test may change."""
    shutil.copytree(made, tmp_path / "made")
    result = tmp_path / "made/results/small/retrieval.json"
    content = json.loads(result.read_text())
    content["model"]["path"] = str(tmp_path / "made/small")
    result.write_text(json.dumps(content))
    return tmp_path / "made"


def test_from_the_number_to_the_shards(made, capsys):
    assert bench("provenance", str(made / "results/small")) == 0
    said = capsys.readouterr().out.splitlines()
    record = json.loads((made / "results/small/retrieval.json").read_text())
    manifest = json.loads((made / "small" / MANIFEST).read_text())
    assert said[0].startswith("small on retrieval: T→I R@1 ")
    assert f"data: {record['protocol']['data_hash'][:12]}, split taken whole" in said[2] + said[3]
    model, source = (next(line for line in said if line.strip().startswith(name)) for name in ("model:", "sources:"))
    assert str(made / "small") in model
    assert manifest["hash"][:12] in model
    assert "CHANGED" not in model
    assert str(made / "train") in source
    assert source.index("sources") > model.index("model") > 0  # what something rests on stands below it, indented
    assert any("2 steps" in line and "cpu" in line for line in said)


def test_from_what_was_made_to_the_shards_without_a_result(made, capsys):
    assert bench("provenance", str(made / "small")) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        said[0] == f"directory: {made / 'small'} ({json.loads((made / 'small' / MANIFEST).read_text())['hash'][:12]})"
    )
    assert any("2 steps" in line for line in said)
    assert any(line.strip().startswith(f"sources: {made / 'train'}") for line in said)


def test_a_file_that_was_read_leads_to_the_directory_that_it_is_part_of(copied, capsys):
    data, manifest = copied / "data", copied / "small" / MANIFEST
    shutil.copytree(copied / "small", data)  # anything with a manifest
    (data / "told.json").write_text("[]")
    content = json.loads(manifest.read_text())
    read = {"path": str(data / "told.json"), "hash": "a" * 64, "directory_hash": directory_hash(data)}
    manifest.write_text(json.dumps(content | {"data": {"align": read}}))
    assert bench("provenance", str(copied / "results/small")) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = said.index(f"align: {data / 'told.json'} ({'a' * 12})")
    assert f"part of: {data} ({directory_hash(data)[:12]})" in said[at:]
    assert any(line.startswith("sources: ") for line in said[at:])  # and on from there
    (data / "told.json").write_text("[1]")
    assert bench("provenance", str(copied / "results/small")) == 0
    assert f"part of: {data} ({read['directory_hash'][:12]}), CHANGED since" in capsys.readouterr().out


def test_what_was_changed_or_is_gone_is_said(copied, capsys):
    weights = copied / "small/open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert bench("provenance", str(copied / "results/small/retrieval.json")) == 0
    said = capsys.readouterr().out
    assert "CHANGED since: now" in said
    assert "sources:" not in said  # what is there now was made otherwise
    shutil.rmtree(copied / "small")
    assert bench("provenance", str(copied / "results/small/retrieval.json")) == 0
    assert "small (" in (last := capsys.readouterr().out.strip().splitlines()[-1])
    assert last.endswith("not on this machine")


def test_paths_are_found_from_any_folder_and_where_a_study_was_moved_to(copied, tmp_path, monkeypatch, capsys):
    study = tmp_path / "runs/study"
    (study / "encoders").mkdir(parents=True)
    (copied / "small").rename(study / "encoders/small")
    shutil.move(copied / "results", study / "results")
    result = study / "results/small/retrieval.json"
    content = json.loads(result.read_text())
    content["model"]["path"] = "runs/study/encoders/small"
    result.write_text(json.dumps(content))
    for folder, where in ((tmp_path, study), (tmp_path / "made", study), (tmp_path, tmp_path / "moved")):
        if where != study:
            study.rename(where)
        monkeypatch.chdir(folder)
        assert bench("provenance", str(where / "results/small")) == 0
        said = capsys.readouterr().out
        assert "encoders/small (" in said
        assert "sources: " in said


def test_a_model_of_others_has_no_past(copied, capsys):
    (copied / "small" / MANIFEST).unlink()
    assert bench("provenance", str(copied / "results/small"), "--check", "false") == 0
    assert capsys.readouterr().out.strip().endswith("not made by this suite")


def test_no_result(tmp_path, capsys):
    assert bench("provenance", str(tmp_path / "nothing.json")) == 2
    assert "nothing.json" in capsys.readouterr().err


def test_a_study_s_step_is_told_with_its_command_and_machine(copied, capsys):
    record = StepRecord(
        name="evaluate-encoder-small",
        kind="evaluation",
        command="torchrun --nproc-per-node 2 -m benchmarks run --config c.yaml",
        key="k",
        status="done",
        started=0.0,
        seconds=61.0,
        peak_memory_mb=2048.0,
        output_paths=("results/small/retrieval.json",),
        machine={"accelerators": "none", "cores": "2"},
        git={"commit": "0123456789abcdef", "dirty": True},
    )
    write_record(copied, record)
    assert bench("provenance", str(copied / "results/small")) == 0
    said = capsys.readouterr().out
    spent = "61 s, at most 2.0 GiB in one process, code 0123456789ab and changes that were not"
    assert f"step evaluate-encoder-small: {spent} committed" in said
    assert f"step's command: {record.command}" in said
    assert "step's machine: accelerators none, cores 2" in said
