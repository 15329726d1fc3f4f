"""A study of a minute whose every program is real, for trials in which its runner is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_study(output: Path) -> dict[str, Any]:
    """Two encoders of a few steps, evaluated by retrieval; scenes before."""
    scenes = {"num_object_classes": 8, "image_size": 32}
    return {
        "name": "killed",
        "output": str(output),
        "jobs": 2,
        "threads": 1,
        "baseline": "clip",
        "data": {
            "train": {"split": "train", "num_scenes": 96, **scenes},
            "test": {"split": "test", "num_scenes": 24, **scenes},
        },
        "defaults": {
            "encoder": {
                "model": {"architecture": "clips-rn-tiny"},
                "data": {"sources": [{"path": "$data/train"}]},
                "recipe": {"captioner": {"num_layers": 1, "max_length": 32, "max_loss_tokens": 4}},
                "max_steps": 24,
                "global_batch_size": 16,
                "save_steps": 4,
                "logging_steps": 4,
            }
        },
        "encoders": {"clip": {"recipe": {"name": "clip"}}, "clips": {"recipe": {"name": "clips"}}},
        "benchmarks": {"retrieval": {"data": "$data/test"}},
    }


def small(output: Path) -> dict[str, Any]:
    """The quick one: an encoder of two steps, so that its three kinds of step take seconds each."""
    study = tiny_study(output)
    study["encoders"] = {"clip": {"recipe": {"name": "clip"}, "max_steps": 2}}
    return study
