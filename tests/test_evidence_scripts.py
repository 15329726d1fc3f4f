"""The scripts behind docs/evidence.md: verdicts follow the stated criteria, the figure shows every seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A study's output: three seeds of four encoders, of which clips is surely above clip, and surely below veclip."""
    scores = {
        "scenes.clip": (0.03, 0.04, 0.05),
        "scenes.multi_positive": (0.06, 0.09, 0.07),
        "scenes.clips": (0.07, 0.08, 0.09),
        "scenes.veclip_compute": (0.12, 0.13, 0.14),
    }
    for name, values in scores.items():
        for seed, value in enumerate(values, start=4):
            row = f"{name}-s{seed}"
            (tmp_path / "results" / row).mkdir(parents=True)
            result = {"row": row, "status": "ok", "metrics": {"t2i_r1": {"value": value}}}
            (tmp_path / "results" / row / "scenes.json").write_text(json.dumps(result))
    return tmp_path


def call(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / script, *arguments], capture_output=True, text=True, check=False)


def test_an_interval_on_one_side_of_zero_decides(run: Path) -> None:
    done = call("judge_claims.py", run)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "| C1 | scenes | clips − clip | +4.0 [+4.0, +4.0] | 3 | reproduced |" in lines
    assert "| C2 | scenes | clips − veclip_compute | -5.0 [-5.0, -5.0] | 3 | contradicted |" in lines
    (between,) = [line for line in lines if line.startswith("| B3 |")]
    assert between.endswith("| 3 | not significant |")
    assert "+0.7 [" in between


def test_the_figure_has_a_dot_for_each_seed(run: Path, tmp_path: Path) -> None:
    done = call("draw_ablation.py", run, tmp_path / "figure.svg")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "figure.svg").read_text()
    assert "scenes, like an MLLM" in drawn
    sys.path.insert(0, str(SCRIPTS))
    try:
        import draw_ablation
        import judge_claims

        worlds = draw_ablation.by_world(judge_claims.read(run))
    finally:
        sys.path.remove(str(SCRIPTS))
    assert list(worlds) == ["scenes"]
    assert list(worlds["scenes"]) == ["clip", "multi_positive", "clips", "veclip_compute"]
    assert worlds["scenes"]["clip"] == pytest.approx([3, 4, 5])
