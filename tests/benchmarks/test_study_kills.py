"""The runner killed with -9 at random moments: what is there in the end is that of an undisturbed study."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from study_engine import make, run, start_runner, visits, wait_until_free

from benchmarks.study.state import Step

NAMES = ("first", "a", "b", "c", "last")


def chain(place: Path) -> list[Step]:
    """Steps of a third of a second: one, three in parallel, one."""
    middle = [make(place, name, "first", sleep=0.3) for name in NAMES[1:4]]
    return [make(place, "first", sleep=0.3), *middle, make(place, "last", *NAMES[1:4], sleep=0.3)]


def lines(place: Path) -> int:
    runs = place / "runs.txt"
    return len(runs.read_text(encoding="utf-8").splitlines()) if runs.is_file() else 0


@pytest.mark.slow
def test_kills_at_random_moments_leave_nothing_undone_and_do_nothing_twice(tmp_path):
    rng, begun = random.Random(0), set[int]()
    for _ in range(3):
        runs = lines(tmp_path)
        process = start_runner(tmp_path, "import test_study_kills as k\nrun(place, k.chain(place))", until=tmp_path)
        while lines(tmp_path) == runs and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.communicate()
        wait_until_free(tmp_path)
        begun.add(lines(tmp_path))
    summary = run(tmp_path, chain(tmp_path))
    assert summary.complete
    assert summary.present  # what was done before a kill was not done again
    assert len(begun) == 3
    assert all(visits(tmp_path, name) >= 1 and (tmp_path / "made" / name / "made.txt").is_file() for name in NAMES)
