"""A small study for the tests: three encoders, one of them pretrained and without a text tower."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "baseline": "clip",
    "data": {"train": {"num_scenes": 10}, "test": {"split": "test"}},
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
