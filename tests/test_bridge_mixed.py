"""Text and pictures in one step: processes that have only text do what those with pictures do, in the same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import losses
from mixed_driver import STEPS
from safetensors.torch import load_file

from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.launch import deepspeed_config
from llava_bridge.training.train_config import LaunchConfig, LoraConfig, StageConfig

WAYS = ("zero2", "zero3", "fsdp")
EVERY = ["vision", "projector", "llm"]
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
KINDS: dict[str, dict[str, Any]] = {
    "recomputed": {"activation_checkpointing": True},
    "plain": {},
    "unfrozen": {"tunable_parts": EVERY, "activation_checkpointing": True, "micro_batch_size": 1},
    "padded": {"lora": LORA, "activation_checkpointing": True},
    "packed": {"packing": True, "max_length": 120, "tunable_parts": EVERY},
    "tiles": {"max_length": 400, "activation_checkpointing": True},
    "adapted_tiles": {
        "max_length": 400,
        "lora": LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, apply_to=["llm", "vision"]),
    },
    "unfrozen_tiles": {"max_length": 400, "tunable_parts": EVERY, "micro_batch_size": 1},
}
"""What a stage is told. Tiles are LLaVA-NeXT's (anyres), ``padded`` pads to squares, the others squash."""


def make_mixture(directory: Path) -> Path:
    """Pictures of several shapes with talk about one or two of them, and as much talk about nothing."""
    album = bridge_world.make_album(directory)
    rows = json.loads((album / "talk.json").read_text())
    shown, text = rows[:5], rows[5:]
    longer = [
        {**row, "id": f"{row['id']}-{number}", "conversations": row["conversations"] * (number + 1)}
        for number in range(3)
        for row in text
    ]
    (album / "talk.json").write_text(json.dumps([*shown, *longer]))
    return album


def launch(directory: Path, way: str) -> LaunchConfig:
    """How processes share the work.

    The shipped ZeRO-3 keeps small weights whole in every process, which all weights here are, and gathers the rest far
    ahead. Cut everywhere, and gathered for one module and released after it, they are in a training as large ones are.
    """
    if way == "fsdp":
        return LaunchConfig(strategy="fsdp")
    if way == "zero2":
        return LaunchConfig(deepspeed="zero2")
    settings = deepspeed_config("zero3")
    settings["zero_optimization"] |= {
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 5_000,
        "stage3_max_live_parameters": 20_000,
        "stage3_max_reuse_distance": 5_000,
    }
    path = directory / "zero3_small.json"
    path.write_text(json.dumps(settings))
    return LaunchConfig(deepspeed=str(path))


def run_file(directory: Path, kind: str, way: str, parts: tuple[Path, Path, Path]) -> Path:
    encoder, llm, album = parts
    data = [ConversationSourceConfig(path=str(album / "talk.json"))]
    stage = StageConfig(
        data=data, max_steps=len(STEPS), global_batch_size=4, learning_rate=1e-3, warmup_ratio=0.0, **KINDS[kind]
    )
    fit = "anyres" if "tiles" in kind else "pad" if kind == "padded" else "squash"
    return bridge_world.config_file(
        directory,
        f"{kind}_{way}",
        album,
        stages=["instruct"],
        encoder=str(encoder),
        llm=str(llm),
        image_aspect_ratio=fit,
        instruct=stage,
        launch=launch(directory, way),
    )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path) -> tuple[Path, Path, Path]:
    directory = tmp_path_factory.mktemp("mixed")
    return bridge_encoder, bridge_world.make_llm(directory / "llm", context=400), make_mixture(directory / "album")


def trained(directory: Path, kinds: list[str], ways: list[str], parts: tuple[Path, Path, Path]) -> None:
    paths = [str(run_file(directory, kind, way, parts)) for way in ways for kind in kinds]
    bridge_world.run_processes(2, "mixed_driver.py", *paths, timeout=60 + 45 * len(paths))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, parts: tuple[Path, Path, Path]) -> Path:
    """Every kind in every way to share the work."""
    directory = tmp_path_factory.mktemp("runs")
    for way in WAYS:  # processes that hang in one way say nothing about the others
        trained(directory, list(KINDS), [way], parts)
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", ["zero3", "fsdp"])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_steps_teach_the_same_in_every_way_to_share_the_work(kind: str, way: str, runs: Path) -> None:
    same(runs, kind, way)


def same(directory: Path, kind: str, way: str) -> None:
    """The losses of all steps, and the weights after them, are those under ZeRO-2."""
    expected = losses(directory / f"{kind}_zero2")
    assert len(expected) == len(STEPS)
    assert losses(directory / f"{kind}_{way}") == pytest.approx(expected, abs=1e-5)
    ours = load_file(directory / f"{kind}_{way}" / "model.safetensors")
    for name, value in load_file(directory / f"{kind}_zero2" / "model.safetensors").items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-4, msg=name)
