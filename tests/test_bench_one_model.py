"""``clips-bench run encoder DIR`` and ``run llava DIR``: a directory, or a training that is still going on."""

from __future__ import annotations

import shutil
from pathlib import Path

import bench_world as world
import clips_world
import pytest

from benchmarks.cli import COMMANDS
from benchmarks.results.results import read_result
from clips.commandline.commands import dispatch
from clips.export import ExportConfig, run_export
from clips.train import train
from clips.training.train_state import list_checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    data = clips_world.write_shards(folder / "train")
    train(clips_world.train_config(data, folder / "small", max_steps=3, keep_checkpoints_after_training=True))
    return folder / "small"


def bench(*words: str) -> int:
    return dispatch("clips-bench", "", COMMANDS, ["run", *words])


def test_during_training_its_latest_checkpoint_is_taken(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    world.write_shards(tmp_path / "shards", 4)
    latest = list_checkpoints(trained)[-1]
    going_on = tmp_path / "going-on"
    shutil.copytree(latest, going_on / latest.relative_to(trained))
    words = ("encoder", str(going_on), "--output", "r", "--benchmarks", "[{name: retrieval, data: shards}]")
    assert bench(*words) == 0
    (row,) = (path.parent.name for path in (tmp_path / "r").glob("*/retrieval.json"))
    assert row == "going-on-step-2"
    run_export(ExportConfig(checkpoint=str(latest), output="exported"))
    assert bench("encoder", "exported", "--output", "r2", "--benchmarks", "[{name: retrieval, data: shards}]") == 0
    ours, exported = (read_result(tmp_path / name / "retrieval.json") for name in (f"r/{row}", "r2/exported"))
    assert ours.metrics == exported.metrics
    capsys.readouterr()
    assert bench(*words) == 0
    assert "done already" in capsys.readouterr().err


def test_another_training_of_the_same_name_and_steps_is_another_model(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = world.write_shards(tmp_path / "shards", 4)
    latest = list_checkpoints(trained)[-1]
    shutil.copytree(latest, tmp_path / "one/small" / latest.relative_to(trained))
    shards = clips_world.write_shards(tmp_path / "train")
    config = clips_world.train_config(
        shards, tmp_path / "trained", max_steps=3, keep_checkpoints_after_training=True, seed=7
    )
    train(config)
    shutil.copytree(tmp_path / "trained/.checkpoints", tmp_path / "two/small/.checkpoints")
    for name in ("one", "two"):
        words = (
            "encoder",
            f"{name}/small",
            "--model_name",
            name,
            "--benchmarks",
            f"[{{name: retrieval, data: {data}}}]",
        )
        assert bench(*words) == 0
    one, two = (read_result(tmp_path / "results" / name / "retrieval.json") for name in ("one", "two"))
    assert one.model["hash"] != two.model["hash"]


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
