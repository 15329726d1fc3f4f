"""Text and images in one step: processes that have only text do what those with images do, in the same order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
from bridge_world import Parts, assert_same_training, instruct_file, losses
from mixed_driver import STEPS

from llava_bridge.training.inputs import read_deepspeed_file
from llava_bridge.training.train_config import DistributedConfig, LoraConfig

EVERY = ["vision", "projector", "llm"]
LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
KINDS: dict[str, dict[str, Any]] = {
    "recomputed": {"activation_checkpointing": True},
    "plain": {},
    "cached": {"cache_vision_features": True},
    "unfrozen": {"tunable_parts": EVERY, "activation_checkpointing": True, "micro_batch_size": 1},
    "padded": {"lora": LORA, "activation_checkpointing": True},
    "packed": {"packing": True, "max_length": 120, "tunable_parts": EVERY},
    "tiles": {"max_length": 400, "activation_checkpointing": True},
    "adapted_tiles": {"max_length": 400, "lora": LORA},
    "unfrozen_tiles": {"max_length": 400, "tunable_parts": EVERY, "micro_batch_size": 1},
}
"""The settings of a stage. Tiles are LLaVA-NeXT's (anyres), ``padded`` pads to squares, the others squash."""


def make_mixture(directory: Path) -> Path:
    """Images of several shapes with talk about one or two of them, and as much talk about nothing."""
    album = bridge_world.make_album(directory)
    rows = json.loads((album / "talk.json").read_text())
    longer = [
        {**row, "id": f"{row['id']}-{number}", "conversations": row["conversations"] * (number + 1)}
        for number in range(3)
        for row in rows[5:]
    ]
    (album / "talk.json").write_text(json.dumps([*rows[:5], *longer]))
    return album


def distributed(directory: Path, way: str) -> DistributedConfig:
    """How processes share the work.

    The shipped ZeRO-3 keeps small weights whole in every process, which all weights here are, and gathers the rest far
    ahead. Cut everywhere, and gathered for one module and released after it, they are in a training as large ones are.
    """
    if way != "zero3":
        return DistributedConfig(deepspeed=way)
    settings = dict(read_deepspeed_file("zero3", "deepspeed").settings)
    sizes = {"param_persistence_threshold": 0, "prefetch_bucket_size": 5_000, "max_live_parameters": 20_000}
    sizes |= {"max_reuse_distance": 5_000}
    settings["zero_optimization"] |= {f"stage3_{name}": size for name, size in sizes.items()}
    path = directory / "zero3_small.json"
    path.write_text(json.dumps(settings))
    return DistributedConfig(deepspeed=str(path))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_long_llm: Path) -> Path:
    """Every kind in every way to share the work."""
    directory = tmp_path_factory.mktemp("runs")
    parts = Parts(bridge_encoder, bridge_long_llm, make_mixture(directory / "album"))
    for way in ("zero2", "zero3"):  # processes that hang in one way say nothing about the others
        paths = []
        for kind, settings in KINDS.items():
            fit = "anyres" if "tiles" in kind else "pad" if kind == "padded" else "squash"
            settings = {"max_steps": len(STEPS), "learning_rate": 1e-3, **settings}
            fields: dict[str, Any] = {"image_aspect_ratio": fit, "distributed": distributed(directory, way)}
            paths.append(str(instruct_file(directory, f"{kind}_{way}", parts, settings, **fields)))
        cache = {"XDG_CACHE_HOME": str(directory / f"{way}_cache")}  # each way computes some features and finds others
        bridge_world.run_processes(2, "mixed_driver.py", *paths, timeout=60 + 45 * len(paths), **cache)
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batches_train_the_same_under_every_strategy(kind: str, runs: Path) -> None:
    assert len(losses(runs / f"{kind}_zero2")) == len(STEPS)
    assert_same_training(runs / f"{kind}_zero3", runs / f"{kind}_zero2", 1e-4, 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_processes_with_cached_features_do_not_wait_for_those_without(way: str, runs: Path) -> None:
    assert_same_training(runs / f"cached_{way}", runs / "plain_zero2", 1e-4, 1e-5)
