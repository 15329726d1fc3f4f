"""The demo study in miniature, as it is shipped; tests/test_packaging.py runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from study_material import MAKE_SCENES

ROOT = Path(__file__).parents[2]
ROWS = ("untrained", "clips")


def without_sizes(study: dict[str, Any]) -> dict[str, Any]:
    """A study without all in which the miniature may differ from the demo."""
    shared, rows, sizes = study["defaults"], study["encoders"], {"max_steps", "global_batch_size", "logging_steps"}
    trainings = [shared["encoder"], shared["llava"]["align"], shared["llava"]["instruct"]]
    for settings, names in [
        (study, {"name", "title", "question", "baseline"}),
        *((training, sizes) for training in trainings),
        *((study["data"][split], {"num_scenes", "num_object_classes"}) for split in ("train", "test")),
    ]:
        for name in names:
            settings.pop(name, None)
    study["data"]["test"]["benchmarks"] = sorted(study["data"]["test"]["benchmarks"])
    return {**study, "encoders": {name: rows[name] for name in ROWS}}


def test_the_shipped_miniature_is_the_demo_but_for_its_sizes():
    demo, mini = (
        without_sizes(yaml.safe_load(file.read_text(encoding="utf-8")))
        for file in (ROOT / "scripts/studies/demo.yaml", ROOT / "scripts/demo/mini.yaml")
    )
    assert mini == demo


def test_a_study_of_one_untrained_encoder_is_run_by_the_programs_themselves(tmp_path):
    """Scenes, a training of two steps and its evaluation."""
    scenes = {"command": MAKE_SCENES, "num_object_classes": 8, "image_size": 32}
    encoder = {
        "model": {"architecture": "clips-rn-tiny"},
        "data": {"sources": [{"path": "$data/train"}]},
        "max_steps": 2,
        "global_batch_size": 16,
    }
    study = {
        "name": "tiny",
        "output": str(tmp_path / "out"),
        "jobs": 2,
        "threads": 1,
        "data": {
            "train": {**scenes, "num_scenes": 96},
            "test": {**scenes, "split": "test", "num_scenes": 24},
        },
        "encoders": {"clip": {**encoder, "recipe": {"name": "clip"}}},
        "benchmarks": {"retrieval": {"data": "$data/test"}},
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study), encoding="utf-8")
    words = [sys.executable, "-m", "benchmarks.cli", "study", "run", str(file)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=900, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (found,) = (tmp_path / "out/results").rglob("*.json")
    assert json.loads(found.read_text(encoding="utf-8"))["status"] == "ok"
    page = (tmp_path / "out/report/index.html").read_text(encoding="utf-8")
    assert "T→I R@1" in page
