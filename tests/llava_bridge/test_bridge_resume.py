"""Two processes under torchrun stop and resume, also in another number of processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import bridge_world
import pytest
from bridge_world import assert_same_training, instruct_file

from clips.errors import UserError
from llava_bridge.training.checkpoints import convert_if_of_other_processes
from llava_bridge.training.train_config import DistributedConfig, LoraConfig


def torchrun(driver: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    torch_run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return bridge_world.run_python(*torch_run, str(Path(__file__).with_name(driver)), *arguments, **environment)


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", r"since it is ZeRO-3's"),
        ("mp_rank_00_model_states.pt", r"as DeepSpeed cannot convert it \(.+\)"),
    ],
)
def test_a_checkpoint_of_another_number_of_processes(part, why, tmp_path, monkeypatch):
    """The checkpoint of two processes under DeepSpeed, without contents: it is rejected and stays."""
    place = tmp_path / "checkpoint-4"
    (place / "global_step4").mkdir(parents=True)
    (place / "global_step4" / part).touch()
    (place / "latest").write_text("global_step4")
    (place / "complete").write_text(json.dumps({"processes": "2", "invalid_samples": {}}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not convert_if_of_other_processes(place)
    monkeypatch.setenv("WORLD_SIZE", "1")
    message = (
        f"distributed.num_processes: expected 2, as when {place} was written, got 1, {why}; or remove {tmp_path} to"
    )
    with pytest.raises(UserError, match=message):
        convert_if_of_other_processes(place)
    assert (place / "global_step4" / part).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "way", "lora"),
    [(1, "zero2", None), (2, "zero2", LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)), (2, "zero3", None)],
)
def test_a_stopped_run_of_two_processes_resumes_exactly(processes, way, lora, tmp_path, bridge_parts):
    (tmp_path / "whole").mkdir()
    settings = {"max_steps": 6, "learning_rate": 1e-3, "lora": lora}
    fields: dict[str, Any] = {"distributed": DistributedConfig(deepspeed=way)}
    path = instruct_file(tmp_path, "plain", bridge_parts, settings, save_steps=0, **fields)
    assert "stopped after step 4; the same command resumes it" in torchrun("stop_driver.py", str(path), "3").stderr
    whole = instruct_file(tmp_path / "whole", "plain", bridge_parts, settings, **fields)
    if processes == 1:
        bridge_world.trained_alone(whole)
        assert ", written by 2, to any number of processes" in bridge_world.train(path)
    else:
        done = torchrun("swap_driver.py", str(path), str(whole))
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path / "plain", tmp_path / "whole" / "plain", 1e-5 if processes == 1 else 0)
