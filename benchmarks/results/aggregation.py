"""Metrics as functions of item sums: one implementation gives values, chance levels and error estimates.

A formula maps each item to summands (N, K) and the K sums to the metric: F1 is 2 · sum(true positives) / sum(predicted
+ actual). Its *influence function* is the derivative of the metric with respect to an item's weight (Hampel, Journal of
the American Statistical Association 69, 1974; the infinitesimal jackknife of Efron, CBMS-NSF 38, 1982, chapter 6). The
noise model (``noise.py``) uses only the value and the influence function.

Letters: N items, K sums, B rows of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Name → (N,) values."""
_STEP = 1e-6  # relative


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """A metric of a table of items.

    Args:
        summands: (columns, names of the used ones) → (N, K) summands of each item, dense or sparse; zero for an item
            without a value.
        combine: (B, K) sums → (B,) metrics; NaN without items.
        bounded: whether the metric lies between 0 and the maximum of an item if its items do.
        counts: whether its columns are counts, which makes it bounded regardless of their values.
        linear: whether it is a mean over items.
    """

    summands: Callable[[Columns, Sequence[str]], Any]
    combine: Callable[[np.ndarray], np.ndarray]
    bounded: bool = True
    counts: bool = False
    linear: bool = False

    def value(self, columns: Columns, names: Sequence[str]) -> float:
        """The metric of all items; NaN where none has a value."""
        return float(self.combine(_total(self.summands(columns, names)))[0])

    def influence(self, columns: Columns, names: Sequence[str]) -> np.ndarray:
        """(N,) derivative of the metric with respect to each item's weight; 0 for items that do not enter it."""
        summands = self.summands(columns, names)
        sums = _total(summands)[0]
        steps = _STEP * np.maximum(np.abs(sums), 1.0)  # of central differences
        below = np.where(sums >= 0, np.minimum(steps, sums), steps)  # sums of counts stay nonnegative
        rise = self.combine(sums + np.diag(steps)) - self.combine(sums - np.diag(below))
        return np.asarray(summands @ np.nan_to_num(rise / (steps + below))).ravel()

    def enters(self, columns: Columns, names: Sequence[str]) -> np.ndarray:
        """(N,) whether an item enters the metric."""
        return np.asarray(abs(self.summands(columns, names)).sum(axis=1)).ravel() > 0


class _Median:
    """Median of a column, the mean of the two middle values for an even number. It is no function of sums."""

    bounded = False
    counts = False
    linear = False

    def value(self, columns: Columns, names: Sequence[str]) -> float:
        values = columns[names[0]].astype(float)
        present = values[~np.isnan(values)]
        return float(np.median(present)) if len(present) else math.nan

    def influence(self, columns: Columns, names: Sequence[str]) -> np.ndarray:
        """Bahadur's representation; the quantile density is a difference quotient (Siddiqui, Journal of Research of the
        National Bureau of Standards 64B, 1960) over the 95 % interval of the median's rank."""
        values = columns[names[0]].astype(float)
        present = ~np.isnan(values)
        count = int(present.sum())
        if not count:
            return np.zeros(len(values))
        half = min(0.5, 0.98 / math.sqrt(count))
        low, high = np.quantile(values[present], (0.5 - half, 0.5 + half))
        while low == high and half < 0.5:  # ties: extend to the next value
            half = min(0.5, 1.5 * half)
            low, high = np.quantile(values[present], (0.5 - half, 0.5 + half))
        sign = np.where(present, np.sign(values - np.median(values[present])), 0.0) / 2
        return sign * (high - low) / (2 * half) / count

    def enters(self, columns: Columns, names: Sequence[str]) -> np.ndarray:
        return ~np.isnan(columns[names[0]].astype(float))


def _total(summands: Any) -> np.ndarray:
    return np.asarray(summands.sum(axis=0), dtype=float).reshape(1, -1)


def _ratio_of(numerator: np.ndarray, denominator: np.ndarray, *, empty: float = np.nan) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, empty), where=denominator > 0)


def _values_and_counts(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """(N, 2 · names): each column's values with 0 for NaN, then 1 where it has a value."""
    values = np.stack([columns[name].astype(float) for name in names], axis=1)
    return np.hstack([np.nan_to_num(values), ~np.isnan(values)])


def _mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """Mean over columns of each column's mean over its non-missing items."""
    return _ratio_of(*np.hsplit(sums, 2)).mean(axis=1)


def _grouped(columns: Columns, names: Sequence[str]) -> Any:
    """(N, 2 · groups) sparse: the first column's value in the column of its group, then likewise counts of 1."""
    from scipy import sparse

    values, groups = columns[names[0]].astype(float), columns[names[1]]
    present = ~np.isnan(values) & np.array([isinstance(group, str) for group in groups])
    rows = np.flatnonzero(present)
    known, column = np.unique(groups[present].astype(str), return_inverse=True)
    shape = (len(values), len(known))
    sums = sparse.csr_array((values[present], (rows, column)), shape=shape)
    return sparse.hstack([sums, sparse.csr_array((np.ones(len(rows)), (rows, column)), shape=shape)], format="csr")


def _sum_of_group_means(sums: np.ndarray) -> np.ndarray:
    return _ratio_of(*np.hsplit(sums, 2)).sum(axis=1)


def _mean_of_group_means(sums: np.ndarray) -> np.ndarray:
    means = _ratio_of(*np.hsplit(sums, 2))
    present = ~np.isnan(means)
    return _ratio_of(np.nansum(means, axis=1), present.sum(axis=1))


def _true_positives(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """(N, 2 · groups): twice the true positives, then predicted plus actual, in the column of the item's group."""
    predicted, actual = (np.nan_to_num(columns[name].astype(float)) for name in names[:2])
    groups = columns[names[2]] if len(names) > 2 else np.zeros(len(predicted))
    of_group = np.stack([groups == group for group in sorted(set(groups))], axis=1)
    return np.hstack([(2 * predicted * actual)[:, None] * of_group, (predicted + actual)[:, None] * of_group])


def _mean_f1(sums: np.ndarray) -> np.ndarray:
    return _ratio_of(*np.hsplit(sums, 2), empty=0.0).mean(axis=1)


def _complete_columns(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """(N, names): the columns; zeros for an item with a missing value."""
    values = np.stack([columns[name].astype(float) for name in names], axis=1)
    return np.where(np.isnan(values).any(axis=1, keepdims=True), 0.0, values)


def _ratio_or_zero(sums: np.ndarray) -> np.ndarray:
    return _ratio_of(sums[:, 0], sums[:, 1], empty=0.0)


def _bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU-n from sums of n matched and n possible n-grams, then candidate and reference lengths.

    The arithmetic, small constants included, is that of pycocoevalcap's ``BleuScorer``.
    """
    order = (sums.shape[1] - 2) // 2
    matched, possible, lengths = sums[:, :order], sums[:, order : 2 * order], sums[:, 2 * order :]
    precision = ((matched + 1e-15) / (possible + 1e-9)).prod(axis=1) ** (1 / order)
    ratio = (lengths[:, 0] + 1e-15) / (lengths[:, 1] + 1e-9)
    return np.where(ratio < 1, precision * np.exp(1 - 1 / ratio), precision)


AGGREGATIONS: dict[str, Aggregation | _Median] = {
    "mean": Aggregation(summands=_values_and_counts, combine=_mean_of_ratios, linear=True),
    "mean_of_scores": Aggregation(summands=_values_and_counts, combine=_mean_of_ratios, bounded=False, linear=True),
    "ratio": Aggregation(summands=_complete_columns, combine=_ratio_or_zero),
    "f1": Aggregation(summands=_true_positives, combine=_mean_f1),
    "sum_of_group_means": Aggregation(summands=_grouped, combine=_sum_of_group_means, bounded=False),
    "mean_of_group_means": Aggregation(summands=_grouped, combine=_mean_of_group_means),
    "median": _Median(),
    "bleu": Aggregation(summands=_complete_columns, combine=_bleu, counts=True),
}
"""``mean``: of a column over its non-missing items; of several columns, the mean of their means. ``mean_of_scores``:
the same for unbounded scores. ``ratio``: sum of the first column over that of the second, 0 if it is 0. ``f1``: of 0/1
columns ``predicted`` and ``actual``; with a third column, the mean of its groups' F1. Group means: of the first column
within each group of the second (MME's total, mean per-class recall)."""
