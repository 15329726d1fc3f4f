"""Variance components of the difference of two models, and the seeds that a planned study needs.

The noise model (``noise.py``, docs/statistics.md) has three parts: images, which all seeds share; the interaction of
seed and image, the answers that a training run changes at random; and training, the shift of a run as a whole. More
images reduce the first two, more seeds the last two. ``scripts/check_statistics.py --part plans`` simulates what is
recommended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.results.noise import ALPHA, POWER, Estimate, Scores, TrainingNoise, contrast_estimate

MAX_SEEDS = 1000
_RANGE = 0.8  # probability of the range of the variance over seeds


@dataclass(frozen=True, kw_only=True)
class Components:
    """Variances of the difference of two models, each trained once.

    Args:
        images: due to images, equal for all seeds; with one seed per model it contains ``interaction``.
        interaction: of seed and image.
        training: due to training; NaN if no model has several seeds, or if their seeds do not differ.
        num_images: C.
        num_seeds: of the models with the most.
        image_degrees: degrees of freedom of ``images``.
        num_trained: number of models whose seeds a study pools.
        degrees: degrees of freedom of the variance over seeds in these results; 0 if unknown.
    """

    images: float
    interaction: float
    training: float
    num_images: int
    num_seeds: int
    image_degrees: float
    num_trained: int
    degrees: int

    @property
    def total(self) -> float:
        """Variance of the difference of two models, each trained once; without training if that is unknown."""
        return self.images + self.interaction + (self.training if self.degrees else 0.0)

    def min_detectable(self, seeds: float, *, num_tests: int = 1) -> float:
        """The true difference that a test detects with power 0.8, with so many seeds of each model, 2 or more.

        ``num_tests`` are corrected together: the level is 5 % divided by it (Bonferroni).
        """
        of_training = (self.interaction + self.training) / seeds if self.degrees else 0.0
        planned = Estimate(
            value=0.0,
            image_variance=self.images,
            training_variance=of_training,
            image_degrees=self.image_degrees,
            training_degrees=self.num_trained * (seeds - 1) if of_training else 0,
            skewness=0.0,
            clusters=self.num_images,
            signs=0,
        )
        reach = planned.quantile(1 - ALPHA / num_tests) + planned.quantile(2 * POWER - 1)
        return reach * planned.standard_error if planned.standard_error else 0.0

    def seeds_for(self, difference: float, *, num_tests: int = 1) -> int | None:
        """The fewest seeds with which ``difference`` is detected; None if ``MAX_SEEDS`` do not suffice."""
        low, high = 2, MAX_SEEDS
        if self.min_detectable(high, num_tests=num_tests) > difference:
            return None
        while low < high:
            middle = (low + high) // 2
            suffices = self.min_detectable(middle, num_tests=num_tests) <= difference
            low, high = (low, middle) if suffices else (middle + 1, high)
        return high

    def bounds(self) -> tuple[Components, Components]:
        """The components at both ends of the 80 % interval of the variance over seeds (chi-squared)."""
        from scipy import stats

        total = self.degrees * (self.interaction + self.training)
        ends = [total / stats.chi2.ppf(part, self.degrees) for part in ((1 + _RANGE) / 2, (1 - _RANGE) / 2)]
        low, high = (dataclasses.replace(self, training=max(0.0, float(end) - self.interaction)) for end in ends)
        return low, high


def variance_components(pairs: Sequence[tuple[Scores, Scores]], noise: TrainingNoise) -> Components:
    """The components, averaged over pairs of models that were evaluated on the same images.

    Args:
        pairs: at least one; a pretrained model adds no interaction and no training variance.
        noise: of the metric.
    """
    estimates = [contrast_estimate(pair, [1.0, -1.0], noise) for pair in pairs]
    trained = [[scores for scores in pair if scores.trained] for pair in pairs]
    interaction = [sum(scores.interaction for scores in pair) if noise.degrees else 0.0 for pair in trained]
    over_seeds = [sum(noise.of(scores) * scores.num_seeds for scores in pair) for pair in trained]
    return Components(
        images=float(np.mean([each.image_variance for each in estimates])),
        interaction=float(np.mean(interaction)),
        training=float(np.mean(over_seeds) - np.mean(interaction)) if noise.degrees else math.nan,
        num_images=max(int(first.enters.sum()) for first, _ in pairs),
        num_seeds=max((scores.num_seeds for pair in trained for scores in pair), default=1),
        image_degrees=float(np.mean([each.image_degrees for each in estimates])),
        num_trained=len({id(scores) for pair in trained for scores in pair}),
        degrees=noise.degrees,
    )
