"""How sure a benchmark's number is: intervals, and whether two models really differ.

The noise model is in ``noise.py``, metrics as functions of items in ``aggregation.py``; here both meet tables of items.

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
from benchmarks.results.noise import Scores, TrainingNoise, difference_estimate, metric_estimate, p_values

_Z95 = 1.959963984540054
_LARGEST_QUANTILE = 30.0  # of the normal distribution, in double precision
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % interval and how it was made (``"wilson"``, ``"student"`` or ``"none"``)."""

    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Model A minus model B on the same items.

    Args:
        value: metric of A minus metric of B, in the metric's own unit (not scaled).
        low: lower end of the 95 % interval of the difference; NaN, like the upper one, where none can be given.
        high: upper end.
        p_value: two-sided p-value of "no difference"; the interval omits 0 just where it is below 5 %.
        n: items compared.
        smallest: the smallest true difference that a single test at 5 % would show four times in five, on a benchmark
            of this size and with models that differ from item to item as these two; NaN where no item differs.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    smallest: float


def wilson_interval(successes: float, n: float, quantile: float = _Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, at 95 % unless ``quantile`` differs; (0, 1) where n is 0."""
    from scipy import stats
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, n, alpha=2 * stats.norm.sf(quantile), method="wilson")
    return 0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high)


def aggregate(formula: str, columns: Columns, names: Sequence[str]) -> float:
    """The value of a formula with every item counted once; NaN where it has no items to speak of."""
    return AGGREGATIONS[formula].value(columns, names)


def image_scores(
    formula: str,
    tables: Sequence[Columns],
    names: Sequence[str],
    clusters: Sequence[Any],
    *,
    items: Sequence[Any] = (),
    most: float = 1.0,
    trained: bool = False,
) -> Scores:
    """A metric of one model and the influence of each image on it.

    Args:
        formula: a name in ``aggregation.AGGREGATIONS``.
        tables: columns of the same items, once for every seed.
        names: the columns that the formula takes.
        clusters: (N,) image of each item.
        items: (N,) names of the items.
        most: the value of an item that is all right, of a metric that has an upper end.
        trained: whether each table is of a training of its own.
    """
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(owner.max()) + 1 if len(owner) else 0
    metric = AGGREGATIONS[formula]
    influence = np.stack([np.bincount(owner, metric.influence(columns, names), count) for columns in tables])
    enters = np.any([np.bincount(owner, metric.enters(columns, names), count) > 0 for columns in tables], axis=0)
    bounded = metric.bounded and (metric.counts or all(_within(columns, names, most) for columns in tables))
    return Scores(
        values=np.array([metric.value(columns, names) for columns in tables]),
        influence=influence,
        enters=enters,
        items=np.asarray(items, dtype=object),
        trained=trained,
        largest=most if bounded else None,
        linear=metric.linear,
    )


def _within(columns: Columns, names: Sequence[str], most: float) -> bool:
    numbers = [columns[name].astype(float) for name in names if np.issubdtype(columns[name].dtype, np.number)]
    return all(bool(np.all(np.isnan(values) | ((values >= 0) & (values <= most)))) for values in numbers)


def confidence_interval(
    formula: str, columns: Columns, names: Sequence[str], clusters: Sequence[Any], *, most: float = 1.0
) -> ConfidenceInterval:
    """95 % interval of a metric whose items come in clusters (several questions about one image), over images alone.

    Args:
        formula: a name in ``aggregation.AGGREGATIONS``.
        columns: column name → (N,) array.
        names: the columns that the formula takes.
        clusters: (N,) cluster of each item.
        most: what a proportion is where all is right: 100 where items have points of 100.
    """
    return scores_interval(image_scores(formula, [columns], names, clusters, most=most), TrainingNoise())


def scores_interval(scores: Scores, noise: TrainingNoise) -> ConfidenceInterval:
    """95 % interval of a metric, a mean over the model's seeds.

    A metric between 0 and 1 has Wilson's interval, its sample size the *effective* number of items: so many independent
    ones would leave as much uncertainty (Korn and Graubard, Survey Methodology 24, 1998). All else has Student's with
    Hall's correction. Where no item differs from another nothing tells how far a number is to be trusted, unless it is
    a proportion of 0 or 1 of so many images.
    """
    if scores.enters.sum() == 0 or math.isnan(scores.value) or (noise.without_spread and scores.trained):
        return ConfidenceInterval(low=None, high=None, method="none")
    found = metric_estimate(scores, noise)
    if found.training_variance and found.clusters < 2:  # nothing is known of the images
        return ConfidenceInterval(low=None, high=None, method="none")
    if scores.largest is not None:
        # Wilson's interval knows how skewed and heavy-tailed a proportion is: no degrees of freedom for that again
        found = dataclasses.replace(found, image_degrees=max(1.0, found.clusters - 1.0))
        share = min(1.0, max(0.0, scores.value / scores.largest))
        error = found.standard_error / scores.largest
        if error and share * (1 - share) > _ROUNDING:
            size, quantile = share * (1 - share) / error**2, min(_LARGEST_QUANTILE, found.quantile(1 - LEVEL))
            low, high = wilson_interval(share * size, size, quantile)
        elif share * (1 - share) <= _ROUNDING:
            low, high = wilson_interval(round(share) * found.clusters, found.clusters)
        else:
            return ConfidenceInterval(low=None, high=None, method="none")
        return ConfidenceInterval(low=low * scores.largest, high=high * scores.largest, method="wilson")
    if not found.standard_error:
        return ConfidenceInterval(low=None, high=None, method="none")
    low, high = found.interval()
    return ConfidenceInterval(low=low, high=high, method="student")


def compare(first: Scores, second: Scores, noise: TrainingNoise) -> PairedDifference:
    """The metric of one model minus that of another on the same items, in the metric's unit.

    Where the models answer alike the difference of two proportions has Tango's score interval (Statistics in Medicine
    17, 1998), its sample size the number of images, and any other metric none.
    """
    estimate = difference_estimate(first, second, noise)
    low, high = estimate.interval()
    largest = first.largest if first.largest == second.largest else None
    if not estimate.standard_error and largest is not None and estimate.signs:
        low, high = (largest * end for end in _tango(estimate.value / largest, estimate.clusters))
    p_value = float(p_values([estimate])[0])
    if p_value >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)  # Tango's, of fewer than six images
    if largest is not None:
        low, high = max(low, -largest), min(high, largest)
    return PairedDifference(
        value=estimate.value,
        low=low,
        high=high,
        p_value=p_value,
        n=len(first.items),
        smallest=estimate.min_detectable,
    )


def _tango(difference: float, n: int) -> tuple[float, float]:
    """95 % score interval of the difference of two proportions of n pairs that all differ by the same -1, 0 or 1.

    There it is Wilson's interval: of the pairs that differ, none, for 0; of twice as far, all, for 1.
    """
    step = round(difference)
    if abs(difference - step) > _ROUNDING:
        return math.nan, math.nan
    low, high = wilson_interval(abs(step) * n, n)
    if step == 0:
        return -high, high
    return (2 * low - 1, 1.0) if step > 0 else (-1.0, 1 - 2 * low)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for many comparisons (Holm's step-down), in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(p_values, method="holm")[1]] if len(p_values) else []
