"""Trainings in four processes, and running averages of weights that processes hold in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clips_world
import pytest
from test_clips_scale import assert_same_training, drive, fields

from clips.train import train

AVERAGED: dict[str, Any] = {"ema_decay": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def drive_each(folder: Path, configs: dict[str, dict[str, Any]], stop: int | None, processes: int) -> None:
    """Train ``configs`` under ``folder``, one after the other, up to a step."""
    drive(folder, [{"config": str(folder / f"{name}.json"), "stop": stop} for name in configs], processes)


@pytest.mark.slow
def test_four_processes_begin_and_two_go_on(data: Path, tmp_path: Path):
    """A batch of four: every process has one sample of it, and its losses need those of the others."""
    clips_world.train_config(data, tmp_path / "many", **fields(data))
    drive_each(tmp_path, {"many": {}}, 4, 4)
    assert "6 steps of 4, 4 process(es) on cpu" in (tmp_path / "log").read_text()
    drive_each(tmp_path, {"many": {}}, None, 2)
    assert "going on from step 4" in (tmp_path / "log").read_text()
    train(clips_world.train_config(data, tmp_path / "one", **fields(data)))
    assert_same_training(tmp_path / "many", tmp_path / "one")
    assert json.loads((tmp_path / "many" / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_shards_are_averaged_as_the_whole_is(data: Path, tmp_path: Path):
    """Under ZeRO-3, validated with the average on the way, stopped, and gone on with: in two, then in one process."""
    zero3 = {**AVERAGED, "distributed": {"strategy": "zero3"}}
    ways = {"again": zero3, "taken_up": zero3}
    for name, way in ways.items():
        clips_world.train_config(data, tmp_path / name, **fields(data, **way))
    drive_each(tmp_path, ways, 4, 2)
    drive_each(tmp_path, {"again": zero3}, None, 2)
    train(clips_world.train_config(data, tmp_path / "taken_up", **fields(data, **AVERAGED)))
    train(clips_world.train_config(data, tmp_path / "one", **fields(data, **AVERAGED)))
    assert_same_training(tmp_path / "again", tmp_path / "one")
    assert_same_training(tmp_path / "taken_up", tmp_path / "one")
