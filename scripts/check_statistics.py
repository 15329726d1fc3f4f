"""Do the intervals, tests and smallest differences of the reports hold what they promise? By simulation.

    python scripts/check_statistics.py                       (five minutes on one core)
    python scripts/check_statistics.py --trials 200          (a look)

Benchmarks are drawn at random: pictures of unlike difficulty, several questions about each, which succeed together.
A 95 % interval must hold the truth 95 times in 100; of rows that are equally good, a family of tests with Holm's
correction may tell some apart 5 times in 100; a true difference of the size that a benchmark states as the smallest
must be shown 80 times in 100. Beside each share stands what chance leaves of it: twice its standard error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics import LEVEL, Difference, holm, interval, paired_difference

Generator = np.random.Generator


@dataclass(frozen=True)
class World:
    """A benchmark: so many pictures, questions about each, and the share that a row gets right."""

    pictures: int
    questions: int
    share: float

    @property
    def owner(self) -> np.ndarray:
        """(N,) the picture of each question."""
        return np.repeat(np.arange(self.pictures), self.questions)

    def ease(self, rng: Generator, shift: float = 0.0) -> np.ndarray:
        """(N,) the chance of a right answer; one and the same for all questions about a picture."""
        share = self.share + shift
        return rng.beta(3 * share, 3 * (1 - share), self.pictures)[self.owner]


def draw(chance: np.ndarray, rng: Generator) -> np.ndarray:
    """(N,) zeros and ones."""
    return (rng.random(len(chance)) < chance).astype(float)


def coverage(world: World, trials: int, *, formula: str = "share") -> float:
    """How often the interval of a share, or of the mean or median of lopsided scores, holds the truth."""
    rng, hits = np.random.default_rng(0), 0
    truth = {"share": world.share, "mean": math.exp(0.5), "median": 1.0}[formula]
    for trial in range(trials):
        if formula == "share":
            values = draw(world.ease(rng), rng)
        else:  # as CIDEr and ranks are
            hard = rng.normal(size=world.pictures)[world.owner]
            values = np.exp((hard + rng.normal(size=len(hard))) / math.sqrt(2))
        name = formula.replace("share", "mean")
        found = interval(name, {"x": values}, ("x",), world.owner, draws=1000, seed=trial)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / trials


def false_alarms(world: World, trials: int, *, tests: int, apart: float) -> float:
    """How often Holm-corrected tests tell some of ``tests`` rows from a baseline that all of them equal.

    Each answers ``apart`` of the questions by its own luck, the rest as the baseline does.
    """
    rng, alarms = np.random.default_rng(1), 0
    for trial in range(trials):
        p_values = []
        for test in range(tests):
            ease = world.ease(rng)
            one, lucky = draw(ease, rng), rng.random(len(ease)) < apart
            other = np.where(lucky, draw(ease, rng), one)
            found = paired_difference(
                "mean",
                {"x": one},
                {"x": other},
                ("x",),
                world.owner,
                draws=80 * tests + 1000,
                seed=trial * tests + test,
            )
            p_values.append(found.p_value)
        alarms += min(holm(p_values)) < LEVEL
    return alarms / trials


def power(world: World, trials: int) -> tuple[float, float]:
    """How often a true difference of the smallest size that benchmarks of equal rows state is shown, and that size."""
    stated = float(np.nanmedian([found.smallest for found in _compared(world, trials, gain=0.0)]))
    return float(np.mean([found.significant for found in _compared(world, trials, gain=stated)])), stated


def _compared(world: World, trials: int, *, gain: float) -> Iterator[Difference]:
    """Two rows that differ in one answer of seven, whatever ``gain`` is; by it the second is better."""
    rng, apart = np.random.default_rng(2), 1 / 7
    for trial in range(trials):
        ease = world.ease(rng)
        one = draw(ease, rng)
        to_right, to_wrong = ((apart + gain) / (1 - world.share) / 2, (apart - gain) / world.share / 2)
        other = np.abs(one - draw(np.where(one == 1, to_wrong, to_right), rng))
        yield paired_difference("mean", {"x": other}, {"x": one}, ("x",), world.owner, draws=1000, seed=trial)


def chance(share: float, trials: int) -> float:
    """Twice the standard error of a share, in per cent."""
    return 200 * math.sqrt(max(share * (1 - share), 0.01) / trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print("95 % intervals: how often they hold the truth")
    for formula, pictures, share in (
        *(("share", pictures, share) for pictures in (10, 30, 100, 300) for share in (0.5, 0.9, 0.97)),
        *(("mean", pictures, 0.5) for pictures in (10, 30, 100, 300)),
        *(("median", pictures, 0.5) for pictures in (30, 300)),
    ):
        found = coverage(World(pictures, 3, share), trials, formula=formula)
        name = f"{formula}, {pictures} pictures × 3" + (f", {share:.0%} right" if formula == "share" else "")
        print(f"  {name:<42} {found:6.1%} ±{chance(found, trials):.1f}")
    print("equal rows: how often a family of tests tells any apart")
    for tests, pictures, apart in ((1, 100, 0.1), (1, 300, 0.5), (10, 100, 0.1), (10, 300, 0.5), (30, 100, 0.1)):
        rounds = max(100, 2 * trials // tests)
        found = false_alarms(World(pictures, 3, 0.6), rounds, tests=tests, apart=apart)
        name = f"{tests} tests, {pictures} pictures × 3, {apart:.0%} apart"
        print(f"  {name:<42} {found:6.1%} ±{chance(found, rounds):.1f}")
    print("the smallest difference: how often it is shown")
    for pictures, questions in ((30, 3), (100, 1), (100, 5), (500, 2)):
        found, smallest = power(World(pictures, questions, 0.6), trials // 2)
        name = f"{pictures} pictures × {questions}: {100 * smallest:.1f} points"
        print(f"  {name:<42} {found:6.1%} ±{chance(found, trials // 2):.1f}")


if __name__ == "__main__":
    main()
