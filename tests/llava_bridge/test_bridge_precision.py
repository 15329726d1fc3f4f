"""Encoder, optimizer and files have the precision that is stated, however the work is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import losses

from llava_bridge.training.train_config import DistributedConfig, LoraConfig

WAYS = {
    "zero2": DistributedConfig(deepspeed="zero2"),
    "zero3": DistributedConfig(deepspeed="zero3"),
}
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, merge_weights=False)
STAGES: dict[str, dict[str, Any]] = {
    "align": {},
    "unfrozen": {"tunable_parts": ["vision", "projector", "llm"]},
    "lora": {"lora": LORA},
    "fine": {},
}
"""``fine`` trains a float32 LLM, the others one that is stored in bf16. Steps are small: most of the LLM's weights are
near 0.2, where bf16 has steps of 0.001."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_llm: Path) -> Path:
    """Two processes in bf16: every kind in every way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("runs")
    half = AutoModelForCausalLM.from_pretrained(bridge_llm, dtype=torch.bfloat16)
    llm = bridge_world.save(directory / "llm", half, AutoTokenizer.from_pretrained(bridge_llm))
    talk = bridge_world.make_talk(directory / "talk", samples=1)  # alike batches: losses tell how far weights move
    for way, distributed in WAYS.items():
        paths = []
        for kind, settings in STAGES.items():
            name = kind if kind == "align" else "instruct"
            make_stage = bridge_world.align_stage if name == "align" else bridge_world.stage
            stage = make_stage(talk, max_steps=6, learning_rate=3e-5, **settings)
            parts = bridge_world.Parts(bridge_encoder, bridge_llm if kind == "fine" else llm, talk)
            fields: dict[str, Any] = {"stages": [name], name: stage, "precision": "bf16", "distributed": distributed}
            paths.append(str(bridge_world.instruct_file(directory, f"{kind}_{way}", parts, {}, **fields)))
            if (kind, way) == ("fine", "zero2"):
                fields["precision"] = "fp32"
                paths.append(str(bridge_world.instruct_file(directory, "exact", parts, {}, **fields)))
        bridge_world.run_processes(2, "encoder_driver.py", *paths, timeout=60 + 45 * len(paths))
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["align", "lora", "fine"])
def test_a_frozen_encoder_computes_alike_with_float32_weights(kind: str, runs: Path) -> None:
    for rank in range(2):
        expected, found = (torch.load(runs / f"{kind}_{way}.yaml.encoder{rank}") for way in WAYS)
        assert len(expected) == len(found) >= 6
        for (weights, states), (theirs, other) in zip(expected, found, strict=True):
            assert weights == theirs == torch.float32
            for state, same in zip(states, other, strict=True):
                # In linear layers DeepSpeed's ZeRO-3 rounds the product to bf16 before it adds the bias.
                torch.testing.assert_close(same, state, atol=0.05, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", STAGES)
def test_files_have_the_precision_of_the_weights_and_the_config_says_so(kind: str, way: str, runs: Path) -> None:
    found: dict[str, set[torch.dtype]] = {"vision": set(), "rest": set()}
    for name, value in bridge_world.weights(runs / f"{kind}_{way}").items():
        if value.is_floating_point():
            found["vision" if "vision_tower" in name else "rest"].add(value.dtype)
    assert found["rest"] == {torch.bfloat16}
    config = json.loads((runs / f"{kind}_{way}" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    tower = torch.bfloat16 if kind == "unfrozen" else torch.float32
    assert found["vision"] == {tower}
    assert config["text_config"]["dtype"] == config["dtype"]
    assert config["vision_config"]["dtype"] == str(tower).removeprefix("torch.")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_float32_llm_moves_from_its_own_weights_not_from_rounded_ones(way: str, runs: Path) -> None:
    exact = losses(runs / "exact")  # without bf16
    found = losses(runs / f"fine_{way}")
    moves = [exact[0] - loss for loss in exact]
    assert moves[-1] > 0.01
    # ZeRO-3's linear layers round to bf16 before they add the bias, which moves a loss by some thousandths.
    assert [found[0] - loss for loss in found] == pytest.approx(moves, abs=0.2 * moves[-1])
