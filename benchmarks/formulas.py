"""What a metric is of a table of items: formulas over its columns, each item counted as often as its weight says.

Letters: N items, B rows of weights (one, or the draws of a bootstrap). A formula gives (B,) values, NaN where a
draw has nothing to speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Name → (N,) values."""
Formula = Callable[[Columns, Sequence[str], np.ndarray], np.ndarray]
"""Of columns, the names of those that it takes, and (B, N) weights."""


def _share(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _mean(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Mean of a column over the items that have it; of several columns: the mean of their means."""
    means = []
    for name in names:
        values = columns[name].astype(float)
        present = ~np.isnan(values)
        means.append(_share(weights[:, present] @ values[present], weights[:, present].sum(axis=1)))
    return np.mean(means, axis=0)


def _ratio(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Sum of the first column over the sum of the second; 0 where the second sums to 0."""
    return np.nan_to_num(_share(weights @ columns[names[0]].astype(float), weights @ columns[names[1]].astype(float)))


def _f1(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """F1 from 0/1 columns ``predicted`` and ``actual``: 2 true positives / (predicted + actual); 0 where undefined.

    Items without values are left out. With a third column it is the mean over its groups of the F1 in each.
    """
    predicted, actual = (np.nan_to_num(columns[name].astype(float)) for name in names[:2])
    groups = columns[names[2]] if len(names) > 2 else np.zeros(len(predicted))
    masks = [groups == group for group in sorted(set(groups))]
    parts = [
        np.nan_to_num(_share(2 * (weights @ (predicted * actual * mask)), weights @ ((predicted + actual) * mask)))
        for mask in masks
    ]
    return np.mean(parts, axis=0)


def _sum_of_group_means(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Mean of the first column within each group of the second, summed over groups (MME's total score).

    Items without a value are left out. A group that a draw misses altogether makes that draw NaN.
    """
    values, groups = columns[names[0]].astype(float), columns[names[1]]
    total = np.zeros(len(weights))
    present = ~np.isnan(values)
    for group in sorted(set(groups[present])):
        chosen = present & (groups == group)
        total += _share(weights[:, chosen] @ values[chosen], weights[:, chosen].sum(axis=1))
    return total


def _mean_of_group_means(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Mean over the groups of the second column of the first one's mean in each (mean per-class recall).

    Items without a value or a group are left out, and so is from a draw a group of which it has no item.
    """
    values, groups = columns[names[0]].astype(float), columns[names[1]]
    present = ~np.isnan(values) & np.array([isinstance(group, str) for group in groups])
    order = np.flatnonzero(present)[np.argsort(groups[present], kind="stable")]
    starts = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]][: len(order)])
    drawn = weights[:, order]
    means = _share(np.add.reduceat(drawn * values[order], starts, axis=1), np.add.reduceat(drawn, starts, axis=1))
    return _share(np.nansum(means, axis=1), (~np.isnan(means)).sum(axis=1))


def _median(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Median of a column over the items that have it: the mean of the two middle ones where their number is even."""
    values = columns[names[0]].astype(float)
    present = ~np.isnan(values)
    order = np.argsort(values[present], kind="stable")
    ordered = values[present][order]
    reached = np.cumsum(weights[:, present][:, order], axis=1)
    half = reached[:, -1:] / 2
    low = (reached >= half).argmax(axis=1)
    high = (reached > half).argmax(axis=1)
    return (ordered[low] + ordered[high]) / 2


def _bleu(columns: Columns, names: Sequence[str], weights: np.ndarray) -> np.ndarray:
    """Corpus BLEU-n from n columns of matched and n of possible n-grams, then candidate and reference lengths.

    The same arithmetic as pycocoevalcap's ``BleuScorer``, its tiny constants included.
    """
    sums = np.stack([weights @ columns[name].astype(float) for name in names], axis=1)
    order = (len(names) - 2) // 2
    matched, possible, lengths = sums[:, :order], sums[:, order : 2 * order], sums[:, 2 * order :]
    precision = ((matched + 1e-15) / (possible + 1e-9)).prod(axis=1) ** (1 / order)
    ratio = (lengths[:, 0] + 1e-15) / (lengths[:, 1] + 1e-9)
    return np.where(ratio < 1, precision * np.exp(1 - 1 / ratio), precision)


FORMULAS: dict[str, Formula] = {
    "mean": _mean,
    "mean_of_scores": _mean,  # that have no upper end, so that a mean of 0 or 1 is no share
    "ratio": _ratio,
    "f1": _f1,
    "sum_of_group_means": _sum_of_group_means,
    "mean_of_group_means": _mean_of_group_means,
    "median": _median,
    "bleu": _bleu,
}
