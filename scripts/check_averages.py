"""Simulate the intervals of averages and mean ranks over benchmarks, as the report computes them.

    python scripts/check_averages.py --trials 300

Prints per world: % of average intervals with the true average, % of tables in which two equal averages differ
significantly, % of rank intervals with the true mean rank, the same of percentile intervals of a bootstrap over images,
and the mean widths of both. Equal models have tied true ranks.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools

import numpy as np
from check_statistics import Column, World, percent
from scipy import stats

from benchmarks.results.noise import (
    ALPHA,
    Scores,
    TrainingNoise,
    average_scores,
    difference_estimate,
    metric_estimate,
    p_values,
)
from benchmarks.results.statistics import holm_correction

BENCHMARKS, RESAMPLES = 8, 400


def simulate(
    world: World, step: float, rng: np.random.Generator
) -> tuple[list[bool], bool, list[bool], list[bool], float, float]:
    """One table of models whose true scores have the distance ``step``."""
    columns = [Column(world, rng) for _ in range(BENCHMARKS)]
    models = [[column.model(place, step * place) for place in range(world.models)] for column in columns]
    noise = TrainingNoise()
    names = [
        np.array([f"{number} {place}" for place in range(world.images)], dtype=object) for number in range(BENCHMARKS)
    ]
    named = [[dataclasses.replace(each, images=own) for each in row] for row, own in zip(models, names, strict=True)]
    averages = [average_scores(list(found), [1.0] * BENCHMARKS) for found in zip(*named, strict=True)]
    covered = []
    for place, average in enumerate(averages):
        low, high = metric_estimate(average, noise).interval()
        covered.append(low <= world.right + step * place <= high)
    pairs = [*itertools.combinations(range(world.models), 2)]
    alarms = p_values([difference_estimate(averages[one], averages[other], noise) for one, other in pairs]).tolist()
    truth = np.arange(world.models, 0, -1.0) if step else np.full(world.models, (world.models + 1) / 2)
    estimates = [difference_estimate(row[one], row[other], noise) for row in models for one, other in pairs]
    corrected = np.array(holm_correction(p_values(estimates).tolist())).reshape(BENCHMARKS, -1)
    low, high = np.ones((2, world.models)) * [[1], [world.models]]
    for number, (one, other) in enumerate(pairs):
        for place in range(BENCHMARKS):
            if corrected[place, number] < ALPHA:
                better, worse = (one, other) if estimates[place * len(pairs) + number].value > 0 else (other, one)
                low[worse] += 1 / BENCHMARKS
                high[better] -= 1 / BENCHMARKS
    drawn = np.mean([_bootstrapped_ranks(row, rng) for row in models], axis=0)
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    inside = [bool(a - 1e-9 <= t <= b + 1e-9) for a, t, b in zip(low, truth, high, strict=True)]
    of_bootstrap = [bool(a <= t <= b) for a, t, b in zip(ends[0], truth, ends[1], strict=True)]
    alarm = step == 0 and min(holm_correction(alarms)) < ALPHA
    return covered, alarm, inside, of_bootstrap, float(np.mean(high - low)), float(np.mean(ends[1] - ends[0]))


def _bootstrapped_ranks(models: list[Scores], rng: np.random.Generator) -> np.ndarray:
    """(resamples, models) ranks with images drawn with replacement."""
    influence = np.stack([each.mean_influence for each in models])
    weights = rng.multinomial(influence.shape[1], np.full(influence.shape[1], 1 / influence.shape[1]), RESAMPLES)
    values = np.array([each.value for each in models]) + (weights - 1) @ influence.T
    return stats.rankdata(-values, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    trials = parser.parse_args().trials
    worlds = [
        World(models=6, images=images, questions=questions, right=0.6) for images, questions in ((100, 1), (500, 3))
    ]
    for world, step in itertools.product(worlds, (0.0, 0.01, 0.05)):
        rng = np.random.default_rng(11)
        found = [simulate(world, step, rng) for _ in range(trials)]
        averages, ranks, bootstrap = (np.concatenate([each[place] for each in found]).mean() for place in (0, 2, 3))
        alarms, widths = np.mean([each[1] for each in found]), np.mean([each[4:] for each in found], axis=0)
        shares = [percent(float(share), trials) for share in (averages, alarms, ranks, bootstrap)]
        print(f"{world!s:<60} step {step:g}", *shares, "widths", *(f"{width:.2f}" for width in widths), flush=True)


if __name__ == "__main__":
    main()
