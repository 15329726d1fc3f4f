"""A small study for the tests: three encoders, one of them pretrained and without a text tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MAKE_SCENES = f"python {Path(__file__).parents[1] / 'scripts/demo/make_scenes.py'}"
SMALL: dict[str, Any] = {
    "name": "small",
    "baseline": "clip",
    "data": {
        "train": {"command": MAKE_SCENES, "num_scenes": 10},
        "test": {"command": MAKE_SCENES, "split": "test"},
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
    "llms": {"tiny": {}},
    "benchmarks": {"retrieval": {"data": "$data/test"}, "pope": None},
}
