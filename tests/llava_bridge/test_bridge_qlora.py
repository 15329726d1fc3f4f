"""QLoRA: an LLM in 4 bits, adapters that learn with it, and both in the output."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import Parts, launched, losses, weights

from clips.commandline.parsing import parse_config
from clips.errors import UserError
from llava_bridge.training.train_config import DistributedConfig, LlavaTrainConfig, LoraConfig, StageConfig

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes (the extra qlora)"
)
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "quantization": "nf4"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, bridge_parts: Parts) -> Parts:
    """An LLM that is as wide as 4 bits need it."""
    return bridge_parts._replace(llm=bridge_world.make_llm(tmp_path_factory.mktemp("wide") / "llm", width=64))


def run_file(folder: Path, name: str, parts: Parts, save_steps: int = 0, **lora: Any) -> Path:
    settings = {"max_steps": 6, "lora": LoraConfig(**LORA | lora)}
    return bridge_world.instruct_file(folder, name, parts, settings, save_steps=save_steps)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, parts: Parts) -> Path:
    """Two LLaVAs of the same training: adapters merged, and next to the weights."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [run_file(folder, name, parts, merge_weights=name == "merged") for name in ("merged", "beside")]
    bridge_world.trained_alone(*paths)
    return folder


@needs_bitsandbytes
@pytest.mark.slow
def test_adapters_learn_on_a_4_bit_llm(runs: Path, parts: Parts) -> None:
    assert losses(runs / "merged")[-1] < losses(runs / "merged")[0]
    own = weights(parts.llm)
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
def test_the_output_is_the_trained_model_merged_or_not(runs: Path) -> None:
    from llava_bridge import load_llava

    assert losses(runs / "beside") == losses(runs / "merged")
    merged = dict(load_llava(runs / "merged")[0].named_parameters())
    for name, value in load_llava(runs / "beside")[0].named_parameters():
        torch.testing.assert_close(merged[name], value, msg=name)


@needs_bitsandbytes
@pytest.mark.slow
def test_an_interrupted_run_resumes(tmp_path: Path, parts: Parts, runs: Path) -> None:
    """Its checkpoints have the scales of 4 bits, for which there is no place in the model."""
    path = run_file(tmp_path, "run", parts, save_steps=2)
    checkpoint = tmp_path / ".run.work" / "instruct" / "checkpoints" / "checkpoint-2" / "complete"
    with bridge_world.training(path, **launched()) as process:
        bridge_world.wait_for(checkpoint.is_file, process)
    assert "resuming the unfinished run" in bridge_world.train(path, **launched())
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / "merged"), abs=1e-5)


@needs_bitsandbytes
def test_four_bit_weights_are_counted_two_to_a_byte() -> None:
    from llava_bridge.training.lora import numel_unpacked, quantize

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


def test_every_stage_is_checked_before_the_first(parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_bridge.training import inputs

    path = run_file(tmp_path, "run", parts)
    config: LlavaTrainConfig = parse_config(LlavaTrainConfig, ["--config", str(path)], prog="test")
    plain = dataclasses.replace(config.instruct, lora=None)
    four_bit = dataclasses.replace(config.instruct, global_batch_size=4)
    adam = dataclasses.replace(plain, optim="adamw_8bit")
    torn = tmp_path / "torn.json"
    torn.write_text("{")

    def check(align: StageConfig, instruct: StageConfig, **distributed: Any) -> None:
        settings = DistributedConfig(**distributed)
        inputs.resolve_inputs(
            dataclasses.replace(
                config, stages=["align", "instruct"], align=align, instruct=instruct, distributed=settings
            )
        )

    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: object())
    check(four_bit, adam)
    wrong = dataclasses.replace(plain, deepspeed="zer3")
    for place, call in {
        "instruct.deepspeed: expected a JSON file or one of": lambda: check(plain, wrong),
        "align.deepspeed: expected a JSON file or one of": lambda: check(wrong, plain),
        "distributed.deepspeed: expected zero2 with align.lora": lambda: check(four_bit, plain, deepspeed="zero3"),
        "distributed.deepspeed: expected a JSON file or one of": lambda: check(plain, plain, deepspeed="zer3"),
        "instruct.deepspeed: .*torn.json is not valid JSON": lambda: check(
            plain, dataclasses.replace(plain, deepspeed=str(torn))
        ),
        "instruct.deepspeed: expected zero2 with instruct.lora": lambda: check(
            four_bit, dataclasses.replace(four_bit, deepspeed="zero3")
        ),
    }.items():
        with pytest.raises(UserError, match=f"^{place}"):
            call()
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    for field, instruct in (("optim", adam), ("lora.quantization", four_bit)):
        with pytest.raises(UserError, match=rf"^instruct.{field}: expected bitsandbytes .*clips-suite\[qlora\]"):
            check(plain, instruct)
