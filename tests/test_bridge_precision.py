"""Encoder, optimizer and files have the precision that is stated, however the work is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import losses
from safetensors.torch import load_file

from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LaunchConfig, LoraConfig, StageConfig

WAYS = {
    "zero2": LaunchConfig(deepspeed="zero2"),
    "zero3": LaunchConfig(deepspeed="zero3"),
    "fsdp": LaunchConfig(strategy="fsdp"),
}
SMALL_STEPS = {"max_steps": 6, "global_batch_size": 4, "learning_rate": 3e-5, "warmup_ratio": 0.0}
"""Most of the LLM's weights are near 0.2, where bf16 has steps of 0.001."""
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, merge_weights=False)
STAGES: dict[str, dict[str, Any]] = {
    "align": {},
    "unfrozen": {"tunable_parts": ["vision", "projector", "llm"]},
    "lora": {"lora": LORA},
    "fine": {},
    "llm_pretrain": {},
}
"""``fine`` trains a float32 LLM, the others one that is stored in bf16; ``llm_pretrain`` the LLM alone."""


def store_half(llm: Path, directory: Path) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(llm, dtype=torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(llm).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_llm: Path) -> Path:
    """Two processes in bf16: every kind in every way."""
    directory = tmp_path_factory.mktemp("runs")
    llm = store_half(bridge_llm, directory / "llm")
    talk = bridge_world.make_talk(directory / "talk", samples=1)  # alike batches: losses tell how far weights move
    for way, launch in WAYS.items():
        paths = []
        for kind, fields in STAGES.items():
            source = ("text.jsonl", "text") if kind == "llm_pretrain" else ("talk.json", "conversations")
            data = [ConversationSourceConfig(path=str(talk / source[0]), format=source[1])]  # type: ignore[arg-type]
            name = kind if kind in {"align", "llm_pretrain"} else "instruct"
            stage = StageConfig(data=data, **SMALL_STEPS, **fields)
            path = bridge_world.config_file(
                directory,
                f"{kind}_{way}",
                talk,
                stages=[name],
                encoder=str(bridge_encoder),
                llm=str(bridge_llm if kind == "fine" else llm),
                precision="bf16",
                launch=launch,
                **{name: stage},
            )
            paths.append(str(path))
        bridge_world.run_processes(2, "encoder_driver.py", *paths, timeout=60 + 45 * len(paths))
    return directory


def stored(directory: Path) -> dict[str, set[torch.dtype]]:
    """The precisions of a directory's floating weights, of the encoder's and of the others."""
    found: dict[str, set[torch.dtype]] = {"vision": set(), "rest": set()}
    for name, value in load_file(directory / "model.safetensors").items():
        if value.is_floating_point():
            found["vision" if "vision_tower" in name else "rest"].add(value.dtype)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", ["zero3", "fsdp"])
@pytest.mark.parametrize("kind", ["align", "lora", "fine"])
def test_a_frozen_encoder_computes_alike_with_float32_weights(kind: str, way: str, runs: Path) -> None:
    for rank in range(2):
        expected, found = (torch.load(runs / f"{kind}_{one}.yaml.encoder{rank}") for one in ("zero2", way))
        assert len(expected) == len(found) >= SMALL_STEPS["max_steps"]
        for (weights, states), (theirs, other) in zip(expected, found, strict=True):
            assert weights == theirs == torch.float32
            for state, same in zip(states, other, strict=True):
                # In linear layers DeepSpeed's ZeRO-3 rounds the product to bf16 before it adds the bias.
                torch.testing.assert_close(same, state, atol=0.05, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", STAGES)
def test_files_have_the_precision_of_the_weights_and_the_config_says_so(kind: str, way: str, runs: Path) -> None:
    found = stored(runs / f"{kind}_{way}")
    moved = torch.float32 if way == "fsdp" else torch.bfloat16  # FSDP moves the weights themselves
    assert found["rest"] == {moved}
    config = json.loads((runs / f"{kind}_{way}" / "config.json").read_text())
    assert config["dtype"] == str(moved).removeprefix("torch.")
    if kind != "llm_pretrain":
        tower = moved if kind == "unfrozen" else torch.float32
        assert found["vision"] == {tower}
        assert config["text_config"]["dtype"] == config["dtype"]
        assert config["vision_config"]["dtype"] == str(tower).removeprefix("torch.")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_a_float32_llm_moves_from_its_own_weights_not_from_rounded_ones(way: str, runs: Path) -> None:
    exact = losses(runs / "fine_fsdp")  # whose optimizer moves the float32 weights themselves
    found = losses(runs / f"fine_{way}")
    moves = [exact[0] - loss for loss in exact]
    assert moves[-1] > 0.01
    # ZeRO-3's linear layers round to bf16 before they add the bias, which moves a loss by some thousandths.
    assert [found[0] - loss for loss in found] == pytest.approx(moves, abs=0.2 * moves[-1])
