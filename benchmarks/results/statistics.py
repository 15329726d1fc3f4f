"""Confidence intervals of metrics, and significance tests of differences between models.

It applies the noise model (``noise.py``) and the metrics (``aggregation.py``) to tables of items.

Letters: N items, C clusters (images), S seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.results.aggregation import AGGREGATIONS, Columns
from benchmarks.results.noise import ALPHA as LEVEL
from benchmarks.results.noise import Estimate, Scores, TrainingNoise, difference_estimate, metric_estimate, p_values

Z95 = 1.959963984540054
_LARGEST_QUANTILE = 30.0  # of the normal distribution, in double precision
_ROUNDING = 1e-9
_FEW_DEGREES, _SKEWED = 30, 0.1  # the limit on a difference is not computed where it is never reached


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % interval and its method (``"wilson"``, ``"student"`` or ``"none"``), or why there is none."""

    low: float | None
    high: float | None
    method: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Model A minus model B on the same items.

    Args:
        value: metric of A minus metric of B, in the metric's own unit (not scaled).
        low: lower end of the 95 % interval of the difference; NaN, like ``high``, if undefined.
        high: upper end.
        p_value: two-sided p-value of "no difference"; the interval excludes 0 if and only if it is below 5 %.
        n: number of compared items.
        min_detectable: minimum detectable difference: the smallest true difference that a single test at 5 % detects
            with power 0.8, for this number of items and this item-level variance; NaN if no item differs.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    min_detectable: float


def wilson_interval(successes: float, n: float, quantile: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927), at 95 % unless ``quantile`` differs; (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, quantile**2
    center = (share + square / (2 * n)) / (1 + square / n)
    reach = quantile / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return 0.0 if successes == 0 else center - reach, 1.0 if successes == n else center + reach


def aggregate(formula: str, columns: Columns, names: Sequence[str]) -> float:
    """The value of a metric over all items; NaN if none has a value."""
    return AGGREGATIONS[formula].value(columns, names)


def image_scores(
    formula: str,
    tables: Sequence[Columns],
    names: Sequence[str],
    clusters: Sequence[Any] | np.ndarray,
    *,
    items: Sequence[Any] | np.ndarray = (),
    most: float | None = 1.0,
    trained: bool = False,
) -> Scores:
    """A metric of one model and the influence of each image on it.

    Args:
        formula: a name in ``aggregation.AGGREGATIONS``.
        tables: columns of the same items, one table per seed.
        names: the columns that the formula takes.
        clusters: (N,) image of each item.
        items: (N,) names of the items.
        most: maximum value of an item, for bounded metrics; None if it is not known, so that they have no known end.
        trained: whether each table comes from its own training run.
    """
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    metric = AGGREGATIONS[formula]
    influence = np.stack([np.bincount(owner, metric.influence(columns, names), count) for columns in tables])
    entering = np.stack([np.bincount(owner, metric.enters(columns, names), count) for columns in tables])
    enters = np.any(entering > 0, axis=0)
    if metric.linear and enters.sum() > 1:
        # An image with most questions pulls the mean toward itself; without it, as the jackknife asks (HC3 of MacKinnon
        # and White, Journal of Econometrics 29, 1985), it differs more. Equally many questions an image change nothing.
        left_out = 1 - entering / np.maximum(1, entering.sum(axis=1, keepdims=True))
        influence *= np.divide(1 - 1 / enters.sum(), left_out, out=np.ones_like(influence), where=left_out > 0)
    bounded = metric.bounded and most is not None
    if most is not None and bounded and not metric.counts:
        numbers = [
            columns[name] for columns in tables for name in names if np.issubdtype(columns[name].dtype, np.number)
        ]
        bounded = all(np.all(np.isnan(part) | ((part >= 0) & (part <= most))) for part in numbers)
    return Scores(
        values=np.array([metric.value(columns, names) for columns in tables]),
        influence=influence,
        enters=enters,
        items=np.asarray(items, dtype=object),
        trained=trained,
        largest=most if bounded else None,
        linear=metric.linear,
    )


def confidence_interval(
    formula: str, columns: Columns, names: Sequence[str], clusters: Sequence[Any], *, most: float | None = 1.0
) -> ConfidenceInterval:
    """95 % interval of a metric over images, the clusters of its items, without training noise; see `image_scores`."""
    return scores_interval(image_scores(formula, [columns], names, clusters, most=most), TrainingNoise())


def scores_interval(scores: Scores, noise: TrainingNoise) -> ConfidenceInterval:
    """95 % interval of a metric's mean over the model's seeds.

    A bounded metric has Wilson's interval with the *effective* sample size, the number of independent items with the
    same variance (Korn and Graubard, Survey Methodology 24, 1998). Other metrics have Student's with Hall's correction;
    the value is always inside, which a skewed metric's may exclude. If all items are equal there is no interval, except
    for a proportion of 0 or 1. An average has that of its parts (`_average_interval`), and none if one has none; a gain
    has that of a paired difference.
    """

    def none(reason: str) -> ConfidenceInterval:
        return ConfidenceInterval(low=None, high=None, method="none", reason=reason)

    if scores.enters.sum() == 0 or math.isnan(scores.value):
        return none("no item enters it")
    if noise.without_spread and scores.trained:
        return none("the seeds of every model with several seeds have equal scores: their variance is unknown")
    if scores.parts and not scores.is_gain:
        return _average_interval(scores, noise)
    estimate = metric_estimate(scores, noise)
    no_variance = (
        "a single image has no variance" if estimate.clusters < 2 else "the score does not vary over the images"
    )
    if estimate.training_variance and estimate.clusters < 2:
        return none(no_variance)
    if scores.is_gain:
        tested = compare_with_zero(scores, noise)
        if math.isnan(tested.low) or (scores.trained and estimate.clusters < 2):
            return none(no_variance)
        return ConfidenceInterval(low=tested.low, high=tested.high, method="student")
    if scores.largest is not None:
        ratio = min(1.0, max(0.0, scores.value / scores.largest))
        error = estimate.standard_error / scores.largest
        if error and ratio * (1 - ratio) > _ROUNDING:
            # Wilson's interval accounts for the kurtosis of few hits, (1 - 3pq) / pq, not for that of uneven clusters
            of_hits = (1 / (ratio * (1 - ratio)) - 4) / max(len(scores.items), estimate.clusters)
            excess = max(2 / estimate.image_degrees - of_hits, 2 / max(1.0, estimate.clusters - 1.0))
            estimate = dataclasses.replace(estimate, image_degrees=2 / excess)
            size, quantile = ratio * (1 - ratio) / error**2, min(_LARGEST_QUANTILE, estimate.quantile(1 - LEVEL))
            low, high = wilson_interval(ratio * size, size, quantile)
        elif ratio * (1 - ratio) <= _ROUNDING:
            low, high = wilson_interval(round(ratio) * estimate.clusters, estimate.clusters)
        else:
            return none(no_variance)
        low, high, method = low * scores.largest, high * scores.largest, "wilson"
    elif not estimate.standard_error:
        return none(no_variance)
    else:
        (low, high), method = estimate.interval(), "student"
    return ConfidenceInterval(low=min(low, scores.value), high=max(high, scores.value), method=method)


def _average_interval(scores: Scores, noise: TrainingNoise) -> ConfidenceInterval:
    """95 % interval of an average over benchmarks.

    The influences know no uncertainty of a benchmark that is all right or all wrong, and not that of one with few
    items. Such a part has the margins of its own interval instead, and the squares of margins are added (MOVER: Zou
    and Donner, Statistics in Medicine 27, 2008).
    """
    estimate = metric_estimate(scores, noise)
    below, above = list[tuple[float, Estimate, float]](), list[tuple[float, Estimate, float]]()
    for weight, part in scores.parts:
        alone = metric_estimate(_over_images(part), TrainingNoise())
        if _is_small(alone):
            interval = scores_interval(_over_images(part), TrainingNoise())
            if interval.low is None or interval.high is None:
                return interval
            below.append((weight, alone, part.value - interval.low))
            above.append((weight, alone, interval.high - part.value))
    sides = [_with_margins(estimate, parts) for parts in (below, above)]
    low, high = (side.interval()[end] if side.standard_error else side.value for end, side in enumerate(sides))
    if scores.largest is not None:
        low, high = max(0.0, low), min(scores.largest, high)
    return ConfidenceInterval(low=min(low, scores.value), high=max(high, scores.value), method="student")


def average_difference(first: Scores, second: Scores, noise: TrainingNoise) -> Estimate | None:
    """The average of one model minus that of another on the same items; None if a part has no interval.

    The parts of `_average_interval` have the margins of their own differences, on the side of 0.
    """
    estimate = difference_estimate(first, second, noise)
    parts = list[tuple[float, Estimate, float]]()
    for (weight, one), (_, other) in zip(first.parts, second.parts, strict=True):
        pair = _over_images(one), _over_images(other)
        alone = difference_estimate(*pair, TrainingNoise())
        if _is_small(alone):
            between = compare(*pair, TrainingNoise())
            if math.isnan(between.low):
                return None
            margin = between.value - between.low if estimate.value > 0 else between.high - between.value
            parts.append((weight, alone, margin))
    return _with_margins(estimate, parts)


def _over_images(scores: Scores) -> Scores:
    """The scores for the population of images alone: an average has a training noise of its own."""
    return dataclasses.replace(scores, trained=False)


def _is_small(estimate: Estimate) -> bool:
    """Whether an interval may differ from what the standard error says, as of few images or at an end of the scale."""
    return not estimate.standard_error or estimate.image_degrees < _FEW_DEGREES or abs(estimate.skewness) > _SKEWED


def _with_margins(estimate: Estimate, parts: Sequence[tuple[float, Estimate, float]]) -> Estimate:
    """An average's error with the margins of parts in place of their variances.

    Args:
        estimate: by the influences.
        parts: weight, error by the influences, and margin of each.
    """
    if not parts:
        return estimate
    more = 0.0
    for weight, alone, margin in parts:
        of_few = _bessel(estimate.clusters) / _bessel(alone.clusters)  # the variance is here that among all images
        more += weight**2 * ((margin / Z95) ** 2 - of_few * alone.image_variance)
    # the margins account for skewness and few degrees of freedom
    variance, degrees = max(0.0, estimate.image_variance + more), max(1.0, estimate.clusters - 1.0)
    return dataclasses.replace(estimate, image_variance=variance, image_degrees=degrees, skewness=0.0)


def _bessel(clusters: int) -> float:
    return clusters / max(1, clusters - 1)


def compare(first: Scores, second: Scores, noise: TrainingNoise) -> PairedDifference:
    """The metric of one model minus that of another on the same items, in the metric's unit.

    If all images have the same difference, two proportions have Tango's score interval (Statistics in Medicine 17,
    1998) with the number of images as sample size; other metrics have none. The interval of a bounded metric lies
    within the differences of the scores' own intervals; the difference of two gains has no such limits.
    """
    estimate = difference_estimate(first, second, noise)
    low, high = estimate.interval()
    largest = first.largest if first.largest == second.largest and not second.is_gain else None
    if not estimate.standard_error and largest is not None and estimate.signs:
        low, high = (largest * end for end in _tango(estimate.value / largest, estimate.clusters))
    p_value = float(p_values([estimate])[0])
    sides = [first, second]
    if first.is_gain:  # minus 0; its noise over trainings is not that of its two scores
        sides = [] if first.trained else [part for _, part in first.parts]
    if largest is not None and sides and (estimate.image_degrees < _FEW_DEGREES or abs(estimate.skewness) > _SKEWED):
        # With one or two hits, Student's quantile and the correction for skewness are huge. In large samples the limit
        # is never reached: the standard error of a difference is at most the sum of the two scores'.
        one, two = (scores_interval(each, noise) for each in sides)
        low = max(low, -largest if one.low is None or two.high is None else one.low - two.high)
        high = min(high, largest if one.high is None or two.low is None else one.high - two.low)
    if p_value >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)  # Tango's with fewer than six images
    if largest is not None:
        low, high = max(low, -largest), min(high, largest)
    return PairedDifference(
        value=estimate.value,
        low=low,
        high=high,
        p_value=p_value,
        n=len(first.items),
        min_detectable=estimate.min_detectable,
    )


def compare_with_zero(gain: Scores, noise: TrainingNoise) -> PairedDifference:
    """The test that a gain is 0: if it is equal for all images, it has Tango's interval and the sign test."""
    zero = dataclasses.replace(
        gain, values=np.zeros(1), influence=np.zeros_like(gain.influence[:1]), trained=False, is_gain=False
    )
    return compare(gain, zero, noise)


def _tango(difference: float, n: int) -> tuple[float, float]:
    """Tango's 95 % interval for n pairs with the same difference, -1, 0 or 1: it follows from Wilson's interval."""
    step = round(difference)
    if abs(difference - step) > _ROUNDING:
        return math.nan, math.nan
    low, high = wilson_interval(abs(step) * n, n)
    if step == 0:
        return -high, high
    return (2 * low - 1, 1.0) if step > 0 else (-1.0, 1 - 2 * low)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons (Holm's step-down), in the given order."""
    values = np.array(p_values, dtype=float)  # statsmodels' function collects garbage in each call
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1.0, steps)
    return [float(value) for value in corrected]
