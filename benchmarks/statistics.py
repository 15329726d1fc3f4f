"""How sure a benchmark's number is: intervals, and whether two rows really differ.

A metric is a *formula* over columns of the per-item table (see ``FORMULAS``). A formula takes weights, one per
item, so that the same few lines give the value (all weights 1), its bootstrap interval (an image drawn twice
counts twice) and the paired test between two rows (both rows see the same draws).

Letters: N items, B bootstrap draws, C clusters (images).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000
_Z95 = 1.959963984540054
_CELLS_AT_ONCE = 4_000_000
_SHARES = frozenset({"mean", "ratio", "f1"})

Columns = Mapping[str, np.ndarray]
Formula = Callable[[Columns, Sequence[str], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and how it was made (``"wilson"``, ``"bootstrap"`` or ``"none"``)."""

    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Row A minus row B on the same items.

    Args:
        value: metric of A minus metric of B, in the metric's own unit (not scaled).
        low: lower end of the 95 % interval of the difference.
        high: upper end.
        p_value: two-sided bootstrap p-value of "no difference".
        n: items compared.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval leaves out zero."""
        return self.low > 0 or self.high < 0


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson's score interval); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    spread = 1 + _Z95**2 / n
    middle = (share + _Z95**2 / (2 * n)) / spread
    half = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n)) / spread
    return 0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half


def evaluate(formula: str, columns: Columns, names: Sequence[str]) -> float:
    """The value of a formula with every item counted once; NaN where it has no items to speak of."""
    size = len(next(iter(columns.values())))
    return float(FORMULAS[formula](columns, names, np.ones((1, size)))[0])


def interval(
    formula: str, columns: Columns, names: Sequence[str], clusters: Sequence[Any], *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """95 % interval of a metric whose items come in clusters (several questions about one image).

    A share of single-item clusters gets Wilson's interval, everything else the percentile bootstrap over clusters,
    the same for the same seed. Where every draw of a share gives 0, or every one 1, the bootstrap would claim
    certainty: Wilson's interval stands in, its sample size the number of clusters.

    Args:
        formula: a name in ``FORMULAS``.
        columns: column name → (N,) array.
        names: the columns that the formula takes.
        clusters: (N,) cluster of each item.
        draws: bootstrap draws.
        seed: of the draws.
    """
    present = ~np.any([np.isnan(columns[name].astype(float)) for name in names if _is_number(columns[name])], axis=0)
    owners = np.asarray(clusters)[present] if len(names) == 1 else np.asarray(clusters)
    count = len(np.unique(owners))
    if count == 0:
        return Interval(low=None, high=None, method="none")
    if formula == "mean" and len(names) == 1 and count == len(owners):
        values = columns[names[0]].astype(float)[present]
        if np.isin(values, (0.0, 1.0)).all():
            return Interval(*wilson(values.sum(), count), method="wilson")
    found = bootstrap(formula, columns, names, clusters, draws=draws, seed=seed)
    found = found[~np.isnan(found)]
    if not len(found):
        return Interval(low=None, high=None, method="none")
    if formula in _SHARES and found.min() == found.max() and found[0] in {0.0, 1.0}:
        return Interval(*wilson(found[0] * count, count), method="wilson")
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(low=float(low), high=float(high), method="bootstrap")


def _is_number(values: np.ndarray) -> bool:
    return np.issubdtype(values.dtype, np.number)


def bootstrap(
    formula: str, columns: Columns, names: Sequence[str], clusters: Sequence[Any], *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """(draws,) values of the metric, each over as many clusters drawn with replacement as there are."""
    return np.concatenate([FORMULAS[formula](columns, names, block) for block in _draws(clusters, draws, seed)])


def paired_difference(
    formula: str,
    first: Columns,
    second: Columns,
    names: Sequence[str],
    clusters: Sequence[Any],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Difference:
    """Difference of one metric between two rows on the same items in the same order, by paired bootstrap.

    Args:
        formula: a name in ``FORMULAS``.
        first: columns of row A.
        second: columns of row B, item i being the same item as in A.
        names: the columns that the formula takes.
        clusters: (N,) cluster of each item.
        draws: bootstrap draws.
        seed: of the draws.
    """
    compute = FORMULAS[formula]
    blocks = [compute(first, names, block) - compute(second, names, block) for block in _draws(clusters, draws, seed)]
    differences = np.concatenate(blocks)
    differences = differences[~np.isnan(differences)]
    value = evaluate(formula, first, names) - evaluate(formula, second, names)
    if not len(differences):
        return Difference(value=value, low=math.nan, high=math.nan, p_value=1.0, n=len(clusters))
    low, high = np.quantile(differences, (0.025, 0.975))
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    p_value = min(1.0, 2 * (tail + 1) / (len(differences) + 1))
    return Difference(value=value, low=float(low), high=float(high), p_value=float(p_value), n=len(clusters))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for many comparisons (Holm's step-down), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _draws(clusters: Sequence[Any], draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (b, N) of how often each item is drawn, when whole clusters are drawn with replacement."""
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(owner.max()) + 1
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS_AT_ONCE // max(len(owner), count))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        picked = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(picked.ravel(), minlength=size * count).reshape(size, count)[:, owner].astype(float)


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
    """F1 from 0/1 columns ``predicted`` and ``actual``: 2 true positives / (predicted + actual); 0 where undefined."""
    predicted, actual = (columns[name].astype(float) for name in names)
    return np.nan_to_num(_share(2 * (weights @ (predicted * actual)), weights @ (predicted + actual)))


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
    """As the sum of group means, over the number of groups (MMStar's average)."""
    present = ~np.isnan(columns[names[0]].astype(float))
    return _sum_of_group_means(columns, names, weights) / max(len(set(columns[names[1]][present])), 1)


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
    "ratio": _ratio,
    "f1": _f1,
    "sum_of_group_means": _sum_of_group_means,
    "mean_of_group_means": _mean_of_group_means,
    "median": _median,
    "bleu": _bleu,
}
