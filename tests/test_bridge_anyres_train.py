"""LLaVA-NeXTs trained: all that learns with tiles, text among pictures, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from bridge_world import losses
from PIL import Image
from safetensors.torch import load_file

from llava_bridge import answer, load_llava
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.train_config import LaunchConfig, LoraConfig, StageConfig

pytestmark = pytest.mark.slow
PARTS = {"vision_tower": "vision", "projector": "projector", "image_newline": "newline", "language_model": "llm"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an LLM, an album, and two samples of it, of which one has no picture."""
    folder = tmp_path_factory.mktemp("anyres")
    bridge_world.make_llm(folder / "llm", context=400)
    rows = json.loads((bridge_world.make_album(folder / "album") / "talk.json").read_text())
    (folder / "album" / "mixed.json").write_text(json.dumps([rows[0], rows[5]]))
    return folder


def config(folder: Path, encoder: Path, name: str, file: str, stage: dict[str, Any], **fields: Any) -> Path:
    settings = {
        "data": [ConversationSourceConfig(path=str(folder / "album" / file))],
        "max_steps": 3,
        "global_batch_size": 4,
        "learning_rate": 1e-2,
    }
    made = StageConfig(**{**settings, "warmup_ratio": 0.0, **stage})
    fields = {
        "stages": ["instruct"],
        "encoder": str(encoder),
        "llm": str(folder / "llm"),
        "image_aspect_ratio": "anyres",
    } | fields
    return bridge_world.config_file(folder, name, folder / "album", align=made, instruct=made, **fields)


def mixed(folder: Path, encoder: Path, name: str, **fields: Any) -> Path:
    """Three steps of two samples, so that a step has one with a picture and one without."""
    stage = {"global_batch_size": 2, "tunable_parts": ["vision", "projector", "llm"], "learning_rate": 1e-3}
    return config(folder, encoder, name, "mixed.json", stage, **fields)


@pytest.fixture(scope="module")
def runs(folder: Path, bridge_encoder: Path) -> Path:
    """LLaVAs that one process trained, each with other settings."""
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
    stages: dict[str, dict[str, Any]] = {
        "untrained": {"learning_rate": 1e-30},
        "plain": {},
        "packed": {"packing": True, "max_length": 300},
        "llm_alone": {"tunable_parts": ["llm"]},
        "kept": {"cache_vision_features": True},
        "found": {"cache_vision_features": True, "packing": True, "max_length": 300},
        "whole": {"tunable_parts": ["vision", "projector", "llm"]},
        "again": {"tunable_parts": ["vision", "projector", "llm"], "activation_checkpointing": True},
        "lora": {"lora": lora},
    }
    paths = [config(folder, bridge_encoder, name, "talk.json", stage) for name, stage in stages.items()]
    paths += [config(folder, bridge_encoder, "aligned", "talk.json", {}, stages=["align"])]
    paths += [config(folder, bridge_encoder, "both", "talk.json", {}, stages=["align", "instruct"])]
    paths += [mixed(folder, bridge_encoder, f"mixed_{fit}", image_aspect_ratio=fit) for fit in ("anyres", "squash")]
    printed = bridge_world.trained_alone(*paths, XDG_CACHE_HOME=str(folder / "cache"))
    (folder / "printed.txt").write_text(printed)
    return folder


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def moved(runs: Path, name: str) -> set[str]:
    """Which parts differ from those before training."""
    before, after = weights(runs / "untrained"), weights(runs / name)
    assert before.keys() == after.keys()
    changed = [key for key, value in before.items() if (after[key] - value).abs().max() > 1e-6]
    return {part for key in changed for mark, part in PARTS.items() if mark in key}


def test_the_end_of_rows_learns_with_the_projector(runs: Path) -> None:
    assert moved(runs, "aligned") == {"projector", "newline"}
    assert moved(runs, "plain") == moved(runs, "both") == moved(runs, "lora") == {"projector", "newline", "llm"}
    assert moved(runs, "llm_alone") == {"llm"}
    assert moved(runs, "whole") == {"vision", "projector", "newline", "llm"}
    # two linear layers with biases, from 32 to 32, and the 32 of the token
    assert "align: projector trains, 2,144 parameters" in (runs / "printed.txt").read_text()


def test_packed_kept_and_recomputed_it_learns_the_same(runs: Path) -> None:
    plain = losses(runs / "plain")
    assert losses(runs / "packed") == pytest.approx(plain, abs=1e-4)
    assert losses(runs / "kept") == pytest.approx(plain, abs=1e-6)
    assert losses(runs / "found") == pytest.approx(plain, abs=1e-4)
    assert losses(runs / "again") == pytest.approx(losses(runs / "whole"), abs=1e-5)
    kept = [path for path in (runs / "cache" / "clips" / "features").rglob("*") if path.is_file()]
    assert len(kept) == 3 + 3 + 5 + 4  # each tile of the album's pictures is one


def test_the_trained_one_is_asked(runs: Path) -> None:
    assert losses(runs / "both")[-1] < losses(runs / "both")[0]
    model, processor = load_llava(runs / "both", device="cpu")
    pictures: list[Any] = [Image.effect_noise(size, 60).convert("RGB") for size in bridge_world.SHAPES]
    asked = [*pictures, None, pictures[:2]]
    prompts = ["What color is it?"] * len(asked)
    together = answer(model, processor, asked, prompts, max_new_tokens=5, batch_size=6)
    assert together == [answer(model, processor, [one], prompts[:1], max_new_tokens=5)[0] for one in asked]


@pytest.mark.parametrize(("fit", "way"), [("anyres", "zero2"), ("anyres", "zero3"), ("squash", "zero2")])
def test_two_processes_of_which_one_has_no_picture_learn_what_one_does(
    fit: str, way: str, runs: Path, bridge_encoder: Path
) -> None:
    launch = LaunchConfig(num_processes=2, deepspeed=way)
    path = mixed(runs, bridge_encoder, f"{fit}_{way}", image_aspect_ratio=fit, launch=launch)
    done = bridge_world.run_python("-m", "llava_bridge", "train", "--config", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    norms = [
        [json.loads(line)["grad_norm"] for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        for name in (f"mixed_{fit}", f"{fit}_{way}")
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert losses(runs / f"{fit}_{way}") == pytest.approx(losses(runs / f"mixed_{fit}"), abs=1e-4)
    one, two = weights(runs / f"mixed_{fit}"), weights(runs / f"{fit}_{way}")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-4, msg=name)
