"""Resume reads a checkpoint once for all processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import clips_world
import pytest
import torch
from clips_world import stopped_at, tensors_of, train
from resume_driver import digest
from test_clips_distributed import torchrun

from clips.training.run_dir import list_checkpoints

WAYS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of one process that stopped after its checkpoint of step 4, its tensors, and its data."""
    folder = tmp_path_factory.mktemp("one")
    data = clips_world.write_shards(folder / "data")
    with stopped_at(4):
        train(clips_world.train_config(data, folder / "run", ema_decay=0.5))
    return {"data": data, "run": folder / "run", "tensors": tensors_of(list_checkpoints(folder / "run")[-1])}


@pytest.fixture(scope="module")
def resumed(stopped: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each way of spreading: what each of two processes read and holds after it resumed that run."""
    folder = tmp_path_factory.mktemp("two")
    configs = []
    for way in WAYS:
        shutil.copytree(stopped["run"], folder / way)
        clips_world.train_config(stopped["data"], folder / way, ema_decay=0.5, distributed={"strategy": way})
        configs.append(str(folder / f"{way}.json"))
    driver = Path(__file__).parent / "resume_driver.py"
    process = torchrun(folder / "log", str(driver), *configs)
    assert process.wait(300) == 0, (folder / "log").read_text()[-5000:]
    return {way: [json.loads((folder / f"{way}.rank{rank}.json").read_text()) for rank in range(2)] for way in WAYS}


def part_of(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_read_once_and_all_processes_hold_it(stopped, resumed, way):
    """Weights, moments and average, each put together from both processes where they hold shards."""
    tensors, found = stopped["tensors"], resumed[way]
    read = [rank["bytes"].get("tensors", 0) for rank in found]
    assert sum(read) == sum(value.nbytes for value in tensors.values())
    assert read[1] == 0 if way == "ddp" else 0.3 < read[1] / sum(read) < 0.5  # rank 0 reads what is not sharded
    assert [rank["step"] for rank in found] == [4, 4]
    moments = {k: v for k, v in part_of(tensors, "optimizer.").items() if not k.endswith(".step")}
    for rank in found:
        assert rank["weights"] == digest(part_of(tensors, "model."))
        assert rank["average"] == digest(part_of(tensors, "average."))
        assert rank["moments"] == digest(moments)


@pytest.mark.slow
def test_a_checkpoint_that_only_one_process_can_judge_stops_both(stopped: dict[str, Any], tmp_path: Path):
    """The error of the process that reads is that of all: none waits for a broadcast that never comes."""
    shutil.copytree(stopped["run"], tmp_path / "run")
    recipe = {"name": "clips", "captioner": {"num_layers": 2}}
    clips_world.train_config(stopped["data"], tmp_path / "run", ema_decay=0.5, recipe=recipe)
    driver = Path(__file__).parent / "resume_driver.py"
    process = torchrun(tmp_path / "log", str(driver), str(tmp_path / "run.json"))
    assert process.wait(120) != 0
    log = (tmp_path / "log").read_text()
    assert log.count("UserError: ") >= 2
    assert "is missing or has another shape; expected a checkpoint of this model" in log
