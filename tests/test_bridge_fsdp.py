"""FSDP2 and DeepSpeed: two processes under torchrun learn and save the same, stop, and resume in another number."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import bridge_world
import pytest
from bridge_world import Parts, assert_same_training, instruct_file, losses

from clips.errors import UserError
from llava_bridge.training.checkpoints import convert_to_universal, needs_universal_conversion
from llava_bridge.training.stage_config import LoraConfig
from llava_bridge.training.train_config import DistributedConfig

EVERY = ["vision", "projector", "llm"]
STAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"lora": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, apply_to=["llm", "vision"])},
    "parts": {"micro_batch_size": 1, "activation_checkpointing": True, "tunable_parts": EVERY},
    "half": {"tunable_parts": EVERY, "packing": True, "max_length": 120},
    "tied": {},
    "norms": {},
    "tiles": {"max_length": 400},
}
# Adam makes noise of gradients that are 0 but for rounding, as those of the keys' biases; ZeRO sums bf16 in bf16.
WITHIN = {"plain": 1e-6, "lora": 1e-6, "tied": 1e-6, "tiles": 1e-6, "parts": 1e-5, "stages": 1e-5}
WITHIN |= {"half": 0.1, "norms": 0.1}
SIX_STEPS = {"max_steps": 6, "learning_rate": 1e-3}


def config(directory: Path, name: str, parts: Parts, way: Any, **fields: Any) -> Path:
    """A run of six steps; ``name`` says what its stage trains."""
    run = {"distributed": DistributedConfig(strategy=way), "precision": "bf16" if name in {"half", "norms"} else "fp32"}
    run |= {"image_aspect_ratio": "anyres"} if name == "tiles" else {}
    return instruct_file(directory, name, parts, {**SIX_STEPS, **STAGES.get(name, {})}, **{**run, **fields})


def torchrun(driver: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    torch_run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return bridge_world.run_python(*torch_run, str(Path(__file__).with_name(driver)), *arguments, **environment)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_parts: Parts, bridge_long_llm: Path) -> Path:
    """The same runs of two processes under FSDP and under ZeRO-2, each in a folder of its own."""
    directory = tmp_path_factory.mktemp("runs")
    trunk = directory / "trunk"  # its batch norms have float32 buffers
    bridge_world.make_encoder(trunk, bridge_world.TRUNK)
    own = {
        "tied": bridge_parts._replace(llm=bridge_world.make_llm(directory / "tied_llm", tied=True)),
        "norms": bridge_parts._replace(encoder=trunk),
        "tiles": bridge_parts._replace(llm=bridge_long_llm),
    }
    for way in ("fsdp", "deepspeed"):
        folder = directory / way
        folder.mkdir()
        paths = [config(folder, name, own.get(name, bridge_parts), way) for name in STAGES]
        paths.append(config(folder, "stages", bridge_parts, way, stages=["llm_pretrain", "align", "instruct"]))
        if way == "fsdp":
            kept = bridge_world.stage(bridge_parts.talk, **SIX_STEPS, cache_vision_features=True)
            paths.append(config(folder, "kept", bridge_parts, way, instruct=kept))
        done = torchrun("swap_driver.py", *map(str, paths), XDG_CACHE_HOME=str(directory / "cache"))
        assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHIN)
def test_two_processes_learn_what_they_do_under_zero_2(name: str, runs: Path) -> None:
    assert_same_training(runs / "fsdp" / name, runs / "deepspeed" / name, WITHIN[name])


@pytest.mark.slow
def test_trained_weights_move_and_processes_with_cached_features_do_not_wait(runs: Path) -> None:
    for name in STAGES:
        assert losses(runs / "fsdp" / name)[-1] < losses(runs / "fsdp" / name)[0]
    assert losses(runs / "fsdp" / "half") != pytest.approx(losses(runs / "fsdp" / "parts"), abs=1e-5)
    assert_same_training(runs / "fsdp" / "kept", runs / "deepspeed" / "plain", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "parts"])  # of an encoder that learns the last block gets no gradient
def test_a_run_of_two_processes_resumes_in_one(name: str, tmp_path: Path, bridge_parts: Parts, runs: Path) -> None:
    path = config(tmp_path, name, bridge_parts, "fsdp", save_steps=0)
    stopped = torchrun("stop_driver.py", str(path), "3")
    assert "instruct: stopped after step 4; the same command resumes it" in stopped.stderr
    assert not (tmp_path / name).exists()
    assert "resuming the unfinished run" in bridge_world.train(path)
    assert_same_training(tmp_path / name, runs / "deepspeed" / name, 2e-5)


def test_fsdp_takes_no_settings_of_deepspeed() -> None:
    with pytest.raises(UserError, match=r"distributed.deepspeed: expected none with strategy: fsdp, got zero3"):
        DistributedConfig(strategy="fsdp", deepspeed="zero3")


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
    for processes, others in (("2", False), ("1", True)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        assert needs_universal_conversion(place) == others
    message = (
        f"distributed.num_processes: expected 2, as when {place} was written, got 1, {why}; or remove {tmp_path} to"
    )
    with pytest.raises(UserError, match=message):
        convert_to_universal(place)
    assert (place / "global_step4" / part).is_file()
    (place / "shards").mkdir()  # FSDP's
    assert not needs_universal_conversion(place)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "way", "lora"),
    [(1, "zero2", None), (2, "zero2", LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)), (2, "zero3", None)],
)
def test_a_stopped_run_of_two_processes_resumes_exactly(processes, way, lora, tmp_path, bridge_parts):
    (tmp_path / "whole").mkdir()
    stage = bridge_world.stage(bridge_parts.talk, **SIX_STEPS, lora=lora)
    fields: dict[str, Any] = {"distributed": DistributedConfig(deepspeed=way), "instruct": stage}
    path = config(tmp_path, "plain", bridge_parts, "deepspeed", save_steps=0, **fields)
    assert "stopped after step 4; the same command resumes it" in torchrun("stop_driver.py", str(path), "3").stderr
    whole = config(tmp_path / "whole", "plain", bridge_parts, "deepspeed", **fields)
    if processes == 1:
        bridge_world.trained_alone(whole)
        assert ", written by 2, to any number of processes" in bridge_world.train(path)
    else:
        done = torchrun("swap_driver.py", str(path), str(whole))
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(tmp_path / "plain", tmp_path / "whole" / "plain", 1e-5 if processes == 1 else 0)
