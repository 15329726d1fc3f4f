"""QLoRA: an LLM in 4 bits, adapters that learn beside it, and what is left of both in the output."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import launched, losses
from safetensors.torch import load_file

from clips.errors import UserError
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LaunchConfig, LlavaTrainConfig, LoraConfig, StageConfig

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes (the extra qlora)"
)
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "quantization": "nf4"}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as 4 bits need it."""
    return bridge_world.make_llm(tmp_path_factory.mktemp("wide") / "llm", width=64)


@pytest.fixture(scope="module")
def fields(bridge_encoder: Path, bridge_talk: Path, llm: Path) -> dict[str, Any]:
    """A run of the stage instruct alone, but for its settings."""
    settings = {"stages": ["instruct"], "encoder": str(bridge_encoder), "llm": str(llm), "precision": "fp32"}
    return {**settings, "logging_steps": 1}


def stage(talk: Path, **changes: Any) -> StageConfig:
    data = [ConversationSourceConfig(path=str(talk / "talk.json"))]
    lora = LoraConfig(**LORA | changes.pop("lora", {}))
    return StageConfig(
        **{
            "data": data,
            "max_steps": 6,
            "global_batch_size": 4,
            "learning_rate": 1e-2,
            "warmup_ratio": 0.0,
            "lora": lora,
        }
        | changes
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_talk: Path, fields: dict[str, Any]) -> Path:
    """Two LLaVAs of the same training: adapters merged, and beside the weights."""
    folder = tmp_path_factory.mktemp("runs")
    stages = {name: stage(bridge_talk, lora={"merge_weights": name == "merged"}) for name in ("merged", "beside")}
    paths = [
        bridge_world.config_file(folder, name, bridge_talk, **fields, instruct=own, save_steps=0)
        for name, own in stages.items()
    ]
    bridge_world.trained_alone(*paths)
    return folder


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@needs_bitsandbytes
@pytest.mark.slow
def test_adapters_learn_beside_4_bits(runs: Path, llm: Path) -> None:
    assert losses(runs / "merged")[-1] < losses(runs / "merged")[0]
    own = weights(llm)
    before, after = weights(runs / "beside"), weights(runs / "merged")
    rounded = 0
    for name, value in before.items():
        whole = own.get(name.removeprefix("language_model."))
        if whole is not None and "_proj.weight" in name and whole.shape[1] % 64 == 0:
            rounded += 1
            assert 0.03 < (value - whole).norm() / whole.norm() < 0.12, name  # of 4 bits
            assert torch.unique(value.flatten()[:64]).numel() <= 16, name  # with one scale
            assert not torch.equal(after[name], value), name
            assert torch.linalg.matrix_rank(after[name] - value, atol=1e-5) <= LORA["r"], name
        elif whole is not None:
            assert torch.equal(value, whole), name
    assert rounded == 2 * 6  # of two layers; mlp.down_proj has a width that 4 bits do not take


@needs_bitsandbytes
@pytest.mark.slow
def test_the_output_is_what_was_trained_whether_merged_or_not(runs: Path) -> None:
    from llava_bridge import load_llava

    assert losses(runs / "beside") == losses(runs / "merged")
    merged = dict(load_llava(runs / "merged")[0].named_parameters())
    for name, value in load_llava(runs / "beside")[0].named_parameters():
        torch.testing.assert_close(merged[name], value, msg=name)


@needs_bitsandbytes
@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path, bridge_talk: Path, fields: dict[str, Any], runs: Path) -> None:
    """Its checkpoints have the scales of 4 bits, for which there is no place in the model."""
    path = bridge_world.config_file(tmp_path, "run", bridge_talk, **fields, instruct=stage(bridge_talk), save_steps=2)
    checkpoint = tmp_path / ".run.work" / "instruct" / "checkpoints" / "checkpoint-2" / "complete"
    command = [sys.executable, "-m", "llava_bridge", "train", "--config", str(path)]
    process = subprocess.Popen(command, env={**os.environ, **launched(), "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 200
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert checkpoint.is_file()
    done = bridge_world.run_python(*command[1:], **launched())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on with the unfinished run" in done.stderr
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / "merged"), abs=1e-5)


@needs_bitsandbytes
def test_numbers_are_counted_two_to_a_byte_and_odd_widths_stay_whole(llm: Path) -> None:
    from llava_bridge.training.quantization import numel_unpacked, quantize

    class Llava(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.model = torch.nn.Module()
            self.model.language_model = torch.nn.Sequential(torch.nn.Linear(width, 64), torch.nn.Linear(96, 8))

    llava = Llava(128)
    quantize(llava, "nf4", torch.float32)
    small, odd = llava.model.language_model
    assert (small.weight.dtype, small.weight.numel(), numel_unpacked(small.weight)) == (torch.uint8, 64 * 64, 128 * 64)
    assert type(odd) is torch.nn.Linear
    llava.load_state_dict(llava.state_dict())
    with pytest.raises(UserError, match="a multiple of 64"):
        quantize(Llava(32), "nf4", torch.float32)


def config(fields: dict[str, Any], talk: Path, **changes: Any) -> LlavaTrainConfig:
    return LlavaTrainConfig(output="run", instruct=stage(talk), **fields, **changes)


def test_refusals(fields: dict[str, Any], bridge_talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_bridge.training import work_dir

    with pytest.raises(UserError, match=r"lora.quantization: expected none without llm among lora.apply_to"):
        LoraConfig(apply_to=["vision"], quantization="nf4")
    monkeypatch.setattr(work_dir.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^instruct.lora.quantization: expected bitsandbytes .*clips-suite\[qlora\]"):
        work_dir.check_inputs(config(fields, bridge_talk))
    monkeypatch.setattr(work_dir.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"launch.deepspeed: expected zero2 with instruct.lora.quantization"):
        work_dir.check_inputs(config(fields, bridge_talk, launch=LaunchConfig(deepspeed="zero3")))
    with pytest.raises(UserError, match=r"launch.strategy: expected deepspeed with instruct.lora.quantization"):
        work_dir.check_inputs(config(fields, bridge_talk, launch=LaunchConfig(strategy="fsdp")))
    work_dir.check_inputs(config(fields, bridge_talk))
