"""The newer recipes in two processes train what one process trains, and resume exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clips_world
import pytest
from clips_world import is_equal, metrics, tensors_of
from test_clips_distributed import drive, without_key_bias

from clips.train import train

CAPTIONER = {"max_length": 12, "num_layers": 1, "width": 32}
MODEL = {"architecture": "clips-tiny", "image_size": 16, "context_length": 12}
TRAININGS: dict[str, dict[str, Any]] = {
    "siglip": {"recipe": {"name": "siglip"}},
    "siglip_captions": {"recipe": {"name": "siglip_captions", "captioner": CAPTIONER}},
    "caption_only": {"recipe": {"name": "caption_only", "captioner": CAPTIONER}},
    "sentences": {"recipe": {"name": "sentences"}},
    "frozen": {
        "recipe": {"name": "clips", "captioner": CAPTIONER},
        "model": {**MODEL, "pretrained": "$encoder", "lock_text": True},
        "optimizer": {"learning_rate": 0.01},
    },
}
PARTS = ("siglip_captions", "caption_only", "sentences", "frozen")
"""Trained by micro-batches as well."""
SHARDED = ("caption_only", "frozen")
"""Trained in shards as well: ``caption_only`` has no logit scale, ``frozen`` has frozen weights."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """``one/NAME``: one process to the end; ``two/NAME``: two, ``again/NAME``: two, stopped at step 4 and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    plan = []
    encoder = clips_world.trained(data, folder / "encoder", max_steps=0, seed=1)
    trainings = json.loads(json.dumps(TRAININGS).replace("$encoder", str(encoder)))
    for name, fields in trainings.items():
        train(clips_world.train_config(data, folder / "one" / name, **fields))
        for kind, stops in (("two", [None]), ("again", [4, None])):
            clips_world.train_config(data, folder / kind / name, **fields)
            plan += [{"config": str(folder / kind / f"{name}.json"), "stop": stop} for stop in stops]
    for name in PARTS:
        clips_world.train_config(data, folder / "parts" / name, **trainings[name], micro_batch_size=1)
        plan.append({"config": str(folder / "parts" / f"{name}.json"), "stop": None})
    for name in SHARDED:
        fields = trainings[name] | {"distributed": {"strategy": "fsdp"}}
        clips_world.train_config(data, folder / "fsdp" / name, **fields)
        plan.append({"config": str(folder / "fsdp" / f"{name}.json"), "stop": None})
    drive(folder, plan)
    return folder


def assert_same_training(output: Path, expected: Path) -> None:
    for mine, theirs in zip(metrics(output), metrics(expected), strict=True):
        names = [name for name in theirs if name == "grad_norm" or name.endswith("loss")]
        assert "loss" in names
        for name in names:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), (output.name, name)
    wanted = tensors_of(expected)
    assert tensors_of(output).keys() == wanted.keys()
    for name, value in tensors_of(output).items():
        difference = without_key_bias(name, value) - without_key_bias(name, wanted[name])
        assert difference.abs().mean() < 1e-6, (output.name, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_what_one_trains(trainings: Path, name: str):
    assert_same_training(trainings / "two" / name, trainings / "one" / name)
    assert json.loads((trainings / "two" / name / "summary.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_resumed_training_is_the_uninterrupted_one(trainings: Path, name: str):
    assert is_equal(trainings / "again" / name, trainings / "two" / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_micro_batches_train_what_full_batches_train(trainings: Path, name: str):
    assert_same_training(trainings / "parts" / name, trainings / "one" / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_shards_train_what_one_process_trains(trainings: Path, name: str):
    assert_same_training(trainings / "fsdp" / name, trainings / "one" / name)
