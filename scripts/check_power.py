"""Check the recommendations of ``clips-bench study power`` by simulation.

    python scripts/check_power.py

A pilot of a few seeds recommends a number of seeds for a difference. Then studies of that size are simulated in which
the models differ by it: 80 of 100 must find it. Pilots vary, so that the mean of the power over pilots is printed, with
twice its standard error, next to the recommendations' 10 to 90 % range; and how often the printed range contains the
number that has the power 0.8 in truth.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
from check_statistics import Column, World, percent

from benchmarks.results.noise import ALPHA, difference_estimate, p_values, training_noise
from benchmarks.results.power import Components, variance_components

WORLDS = [
    (World(models=models, seeds=seeds, training=training, images=images, kind=kind), gain)
    for kind, images, models, seeds, training, gain in (
        ("share", 300, 3, 3, 1.0, 0.09),
        ("share", 300, 3, 3, 0.3, 0.09),
        ("share", 1000, 3, 3, 1.0, 0.07),
        ("share", 1000, 3, 6, 1.0, 0.07),
        ("share", 1000, 8, 3, 0.5, 0.05),
        ("rare CIDEr", 1000, 3, 3, 0.5, 0.2),
    )
]


def pilot(world: World, rng: np.random.Generator) -> Components:
    """The components that a study of equal models finds."""
    column = Column(world, rng)
    first, *others = models = [column.model(place) for place in range(world.models)]
    return variance_components([(other, first) for other in others], training_noise(models))


def power(world: World, gain: float, trials: int, rng: np.random.Generator) -> float:
    """The power of the first model's difference from the second, which is better by ``gain``."""
    found = []
    for _ in range(trials):
        column = Column(world, rng)
        shift = gain / 2 if world.kind == "rare CIDEr" else gain  # see `Column`
        models = [column.model(place, shift if place == 1 else 0.0) for place in range(world.models)]
        found.append(difference_estimate(models[1], models[0], training_noise(models)))
    return float(np.mean(p_values(found) < ALPHA))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pilots", type=int, default=100)
    parser.add_argument("--trials", type=int, default=200, help="studies for each recommended size")
    given = parser.parse_args()
    rng = np.random.default_rng(11)
    for world, gain in WORLDS:
        found = [pilot(world, rng) for _ in range(given.pilots)]
        print(f"{world}: a difference of {100 * gain:g} points", flush=True)
        sizes = [parts.seeds_for(gain) for parts in found]
        known = [size for size in sizes if size is not None]
        steps = np.unique(np.quantile(known, np.linspace(0.05, 0.95, 10)).round().astype(int))
        curve = [power(dataclasses.replace(world, seeds=int(size)), gain, given.trials, rng) for size in steps]
        mean = float(np.mean(np.interp(known, steps, curve)))
        low, high = np.quantile(known, (0.1, 0.9))
        print(f"  power {percent(mean, given.trials * len(steps))}, recommended {low:.0f} to {high:.0f} seeds, "
              f"none for {len(sizes) - len(known)} of {len(sizes)} pilots", flush=True)  # fmt: skip
        enough = next((size for size, reached in zip(steps, curve, strict=True) if reached >= 0.8), None)
        if enough is not None:
            ranges = [[end.seeds_for(gain) for end in parts.bounds()] for parts in found]
            inside = [(low or 1e9) <= enough <= (high or 1e9) for low, high in ranges]
            print(f"  range contains {enough}: {percent(float(np.mean(inside)), len(inside))}", flush=True)


if __name__ == "__main__":
    main()
