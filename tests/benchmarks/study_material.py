"""A small study for the tests: three encoders, one of them pretrained and without a text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "scripts/demo"
MAKE_SCENES = f"python {DEMO / 'make_scenes.py'}"
TRAIN_LLM = f"python {DEMO / 'train_llm.py'}"
SMALL: dict[str, Any] = {
    "name": "small",
    "baseline": "clip",
    "data": {
        "train": {"command": MAKE_SCENES, "num_scenes": 10},
        "test": {"command": MAKE_SCENES, "split": "test"},
        "llm": {"command": TRAIN_LLM, "data": [{"path": "$data/train/llava_text.json"}]},
    },
    "defaults": {
        "encoder": {"data": {"path": "$data/train"}, "optimizer": {"lr": 1, "warmup": 2}},
        "llava": {"align": {"max_steps": 5}},
        "benchmark": {"data": "$data/test/hub"},
    },
    "encoders": {
        "clip": {"recipe": "clip"},
        "clips": {"optimizer": {"lr": 3}},
        "net": "timm:net@weights/net.safetensors",
    },
    "llms": {"tiny": "$data/llm"},
    "benchmarks": {"retrieval": {"data": "$data/test"}, "pope": None},
}
