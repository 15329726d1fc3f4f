"""The runner killed with -9 at random moments: what is there in the end is that of an undisturbed study."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from study_engine import make, run, visits
from test_study_engine import RUNNER, wait_until_free

NAMES = ("first", "a", "b", "c", "last")


def chain(place: Path) -> list[object]:
    """Steps of a third of a second: one, three in parallel, one."""
    middle = [make(place, name, "first", sleep=0.3) for name in NAMES[1:4]]
    return [make(place, "first", sleep=0.3), *middle, make(place, "last", *NAMES[1:4], sleep=0.3)]


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_undone_and_do_nothing_twice(tmp_path):
    code = RUNNER.format(tests=str(Path(__file__).parent), root=str(Path(__file__).parents[1]), place=str(tmp_path))
    head = code[: code.index("steps = [")]
    code = f"{head}import test_study_kills as k\nrun(Path({str(tmp_path)!r}), k.chain(Path({str(tmp_path)!r})))"
    rng, begun = random.Random(0), set[int]()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        runs = lines(tmp_path)
        while lines(tmp_path) == runs and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.wait()
        wait_until_free(tmp_path)
        begun.add(lines(tmp_path))
    summary = run(tmp_path, chain(tmp_path))  # type: ignore[arg-type]
    assert summary.complete
    assert summary.present  # what was done before a kill was not done again
    assert len(begun) == 3
    assert all(visits(tmp_path, name) >= 1 and (tmp_path / "made" / name / "made.txt").is_file() for name in NAMES)


def lines(place: Path) -> int:
    runs = place / "runs.txt"
    return len(runs.read_text(encoding="utf-8").splitlines()) if runs.is_file() else 0
