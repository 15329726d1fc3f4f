"""Variance components of the difference of two models, and the seeds and images that a planned study needs.

The noise model (``noise.py``, docs/trust.md) has three parts: images, which all seeds share; the interaction of seed
and image, the answers that a training run changes at random; and training, the shift of a run as a whole. More images
reduce the first two, more seeds the last two. ``scripts/check_power.py`` simulates the recommendations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.results.noise import ALPHA, POWER, Estimate, Scores, TrainingNoise, contrast_estimate

MAX_SEEDS = 1000
MAX_IMAGES = 10_000_000
_RANGE = 0.8  # probability of the range of the variance over seeds


@dataclass(frozen=True, kw_only=True)
class Components:
    """Variances of the difference of two models, each trained once and evaluated on ``num_images`` images.

    Args:
        images: due to images, equal for all seeds; with one seed per model it contains ``interaction``.
        interaction: of seed and image.
        training: due to training; NaN if no model has several seeds, or if their seeds do not differ.
        num_images: C.
        image_degrees: degrees of freedom of ``images``.
        num_trained: number of models whose seeds a study pools.
        degrees: degrees of freedom of the variance over seeds in these results; 0 if unknown.
    """

    images: float
    interaction: float
    training: float
    num_images: int
    image_degrees: float
    num_trained: int
    degrees: int

    @property
    def total(self) -> float:
        """Variance of the difference of two models, each trained once; without training if that is unknown."""
        return self.images + self.interaction + (self.training if self.degrees else 0.0)

    def min_detectable(self, seeds: int, images: float, *, num_tests: int = 1) -> float:
        """The true difference that a test detects with power 0.8 in a study of this size.

        Args:
            seeds: S of each model, at least 2; ignored if the variance due to training is unknown.
            images: number of images.
            num_tests: tests that are corrected together; the level is 5 % divided by it (Bonferroni).
        """
        ratio = images / self.num_images
        of_images, of_training = self.images / ratio, 0.0
        if self.degrees:
            of_training = (self.interaction / ratio + self.training) / seeds
        planned = Estimate(
            value=0.0,
            image_variance=of_images,
            training_variance=of_training,
            image_degrees=max(1.0, self.image_degrees * ratio),
            training_degrees=self.num_trained * (seeds - 1) if of_training else 0,
            skewness=0.0,
            clusters=round(images),
            signs=0,
        )
        reach = planned.quantile(1 - ALPHA / num_tests) + planned.quantile(2 * POWER - 1)
        return reach * planned.standard_error

    def seeds_for(self, difference: float, images: float, *, num_tests: int = 1) -> int | None:
        """The fewest seeds with which ``difference`` is detected on so many images; None if none suffice."""
        return _fewest(
            lambda seeds: self.min_detectable(seeds, images, num_tests=num_tests) <= difference, 2, MAX_SEEDS
        )

    def images_for(self, difference: float, seeds: int, *, num_tests: int = 1) -> int | None:
        """The fewest images on which so many seeds detect ``difference``; None if none suffice."""
        return _fewest(
            lambda images: self.min_detectable(seeds, images, num_tests=num_tests) <= difference, 2, MAX_IMAGES
        )

    def bounds(self) -> tuple[Components, Components]:
        """The components at both ends of the 80 % interval of the variance over seeds (chi-squared)."""
        from scipy import stats

        total = self.interaction + self.training
        ends = (stats.chi2.isf((1 - _RANGE) / 2, self.degrees), stats.chi2.ppf((1 - _RANGE) / 2, self.degrees))
        low, high = (
            dataclasses.replace(self, training=max(0.0, float(self.degrees * total / end) - self.interaction))
            for end in ends
        )
        return low, high


def variance_components(pairs: Sequence[tuple[Scores, Scores]], noise: TrainingNoise) -> Components:
    """The components, averaged over pairs of models that were evaluated on the same images.

    Args:
        pairs: at least one; a pretrained model adds no interaction and no training variance.
        noise: of the metric.
    """
    images, interaction, training, degrees = list[float](), list[float](), list[float](), list[float]()
    for first, second in pairs:
        found = contrast_estimate([first, second], [1.0, -1.0], noise)
        own = [scores.interaction for scores in (first, second) if scores.trained and noise.degrees]
        images.append(found.image_variance)
        interaction.append(sum(own))
        degrees.append(found.image_degrees)
        training.append(
            sum(noise.of(scores) * scores.num_seeds for scores in (first, second) if scores.trained) - sum(own)
        )
    trained = {id(scores) for pair in pairs for scores in pair if scores.trained}
    return Components(
        images=float(np.mean(images)),
        interaction=float(np.mean(interaction)),
        training=float(np.mean(training)) if noise.degrees else math.nan,
        num_images=max(int(first.enters.sum()) for first, _ in pairs),
        image_degrees=float(np.mean(degrees)),
        num_trained=len(trained),
        degrees=noise.degrees,
    )


def _fewest(suffices: Callable[[int], bool], low: int, most: int) -> int | None:
    """The smallest number from ``low`` to ``most`` that suffices, if all larger ones do; None if ``most`` does not."""
    high = low
    while not suffices(high):
        if high == most:
            return None
        low, high = high + 1, min(2 * high, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle + 1, high)
    return high
