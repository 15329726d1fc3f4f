"""How sure a benchmark's number is: intervals, and whether two rows really differ.

A metric is a *formula* over columns of the per-item table (``formulas.py``), which takes weights, one per item: all of
1 for the value, as often as its image was drawn for the bootstrap interval, and 1 or 0 for the paired test between two
rows, in which each image's items are counted for the one row or for the other.
``scripts/check_statistics.py`` measures by simulation that all of it holds what it promises.

Letters: N items, B bootstrap draws, C clusters (images).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.formulas import FORMULAS, Columns

DRAWS = 2000
LEVEL = 0.05
POWER = 0.8
_Z95 = 1.959963984540054
_ROUNDING = 1e-12
_CELLS_AT_ONCE = 4_000_000
_SHARES = frozenset({"mean", "mean_of_group_means", "ratio", "f1"})


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
        low: lower end of the 95 % interval of the difference; NaN, like the upper one, where none can be given.
        high: upper end.
        p_value: two-sided p-value of "no difference", by exchanging the rows.
        n: items compared.
        smallest: the smallest true difference that a single test at 5 % would show four times in five, on a benchmark
            of this size and with rows that differ from item to item as these two; NaN where no item differs.
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    smallest: float

    @property
    def significant(self) -> bool:
        """Whether a single test shows a difference; no interval of one that is not shown leaves out zero."""
        return self.p_value < LEVEL


def wilson(successes: float, n: float) -> tuple[float, float]:
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
    formula: str,
    columns: Columns,
    names: Sequence[str],
    clusters: Sequence[Any],
    *,
    most: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """95 % interval of a metric whose items come in clusters (several questions about one image).

    A share (mean of a column of zeros and ones) gets Wilson's interval, its sample size the *effective* number of
    items: so many independent ones would leave as much uncertainty (Korn and Graubard 1998). All else gets the
    percentile bootstrap over clusters, widened as Student's t is against the normal, without which it is too narrow
    where clusters are few (Hesterberg 2015, section 3.3). The same seed gives the same interval.

    A bootstrap whose draws all agree would claim certainty, from six items as from six thousand. Where a share is
    0 or 1 in every draw, Wilson's interval stands in, its sample size the number of clusters; else there is none.

    Args:
        formula: a name in ``formulas.FORMULAS``.
        columns: column name → (N,) array.
        names: the columns that the formula takes.
        clusters: (N,) cluster of each item.
        most: what a share is where all is right: 100 where items have points of 100.
        draws: bootstrap draws.
        seed: of the draws.
    """
    entering = _entering(columns, names)
    columns, owners = {name: columns[name][entering] for name in names}, np.asarray(clusters)[entering]
    count = len(np.unique(owners))
    if count == 0:
        return Interval(low=None, high=None, method="none")
    if formula == "mean" and len(names) == 1:
        values = columns[names[0]].astype(float) / most
        if np.isin(values, (0.0, 1.0)).all():
            size = _effective_size(values, owners)
            return _wilson_interval(values.mean() * size, size, most)
    found = bootstrap(formula, columns, names, owners, draws=draws, seed=seed)
    found = found[~np.isnan(found)]
    if not len(found):
        return Interval(low=None, high=None, method="none")
    if _agree(found):
        right = found[0] / most
        if formula in _SHARES and min(abs(right), abs(right - 1)) <= _ROUNDING:
            return _wilson_interval(round(right) * count, count, most)
        return Interval(low=None, high=None, method="none")
    low, high = _quantiles(found, count)
    return Interval(low=low, high=high, method="bootstrap")


def _agree(draws: np.ndarray) -> bool:
    """Whether bootstrap draws tell nothing of the spread, but for rounding."""
    return float(np.ptp(draws)) <= _ROUNDING * max(1.0, float(np.abs(draws).max()))


def _wilson_interval(successes: float, n: float, most: float) -> Interval:
    low, high = wilson(float(successes), n)
    return Interval(low=most * low, high=most * high, method="wilson")


def _effective_size(values: np.ndarray, owners: np.ndarray) -> float:
    """How many independent zeros and ones would tell as much of their share as these, which come in clusters."""
    _, owner = np.unique(owners, return_inverse=True)
    count = int(owner.max()) + 1
    share = values.mean()
    if count == len(values) or share in {0.0, 1.0}:
        return count
    of_cluster = np.bincount(owner, weights=values - share)
    variance = count / (count - 1) * (of_cluster**2).sum() / len(values) ** 2 if count > 1 else math.inf
    size = min(share * (1 - share) / variance, len(values)) if variance else len(values)
    return max(1.0, size * (_Z95 / _student(0.975, count)) ** 2)


def _student(share: float, clusters: int) -> float:
    """Student's quantile with one degree of freedom less than there are clusters."""
    from scipy import stats

    return float(stats.t.ppf(share, max(1, clusters - 1)))


def _quantiles(draws: np.ndarray, clusters: int) -> tuple[float, float]:
    """The ends of a 95 % interval from bootstrap draws over so many clusters."""
    from scipy import stats

    tail = stats.norm.cdf(-_student(0.975, clusters) * math.sqrt(clusters / max(1, clusters - 1)))
    low, high = np.quantile(draws, (tail, 1 - tail))
    return float(low), float(high)


def _entering(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """(N,) whether an item has a number in one of the columns, and a group; the others say nothing of a metric."""
    numbers = [np.isnan(columns[name].astype(float)) for name in names if _is_number(columns[name])]
    groups = [[isinstance(group, str) for group in columns[name]] for name in names if not _is_number(columns[name])]
    return np.all([~np.all(numbers, axis=0), *groups], axis=0)


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
    """Difference of one metric between two rows on the same items in the same order.

    The p-value is a randomisation test's: were the rows alike, it would not matter which of them gave a cluster's
    answers, so both are exchanged in each cluster by a coin's toss, again and again. It is exact however few items
    differ, where a bootstrap's p-value is too small by a factor of ten and more (eight answers that differ, all to
    one side, have 2/2⁸). The interval is that of a paired bootstrap, and reaches zero where the test shows nothing.
    Where all of its draws agree, as they do for rows that answer alike, the difference of two shares has Tango's score
    interval (Statistics in Medicine 17, 1998), its sample size the number of clusters, and any other none.

    Args:
        formula: a name in ``formulas.FORMULAS``.
        first: columns of row A.
        second: columns of row B, item i being the same item as in A.
        names: the columns that the formula takes.
        clusters: (N,) cluster of each item.
        draws: of the test; no p-value is below 1 / (draws + 1).
        seed: of the draws.
    """
    entering = _entering(first, names) | _entering(second, names)
    first, second = ({name: row[name][entering] for name in names} for row in (first, second))
    clusters = np.asarray(clusters)[entering]
    if not len(clusters):
        return Difference(value=math.nan, low=math.nan, high=math.nan, p_value=1.0, n=0, smallest=math.nan)
    compute = FORMULAS[formula]
    blocks = [compute(first, names, block) - compute(second, names, block) for block in _draws(clusters, DRAWS, seed)]
    differences = np.concatenate(blocks)
    differences = differences[~np.isnan(differences)]
    value = evaluate(formula, first, names) - evaluate(formula, second, names)
    if not len(differences):
        return Difference(value=value, low=math.nan, high=math.nan, p_value=1.0, n=len(clusters), smallest=math.nan)
    count = len(np.unique(clusters))
    if _agree(differences):
        low, high = _tango(float(differences[0]), count) if _of_shares(formula, first, second) else (math.nan, math.nan)
    else:
        low, high = _quantiles(differences, count)
    p_value = _exchange_test(formula, first, second, names, clusters, draws=draws, seed=seed)
    if p_value >= LEVEL and math.isfinite(low):
        low, high = min(low, 0.0), max(high, 0.0)
    error = math.nan if _agree(differences) else float(differences.std()) * math.sqrt(count / max(1, count - 1))
    smallest = (_student(1 - LEVEL / 2, count) + _student(POWER, count)) * error
    return Difference(value=value, low=low, high=high, p_value=p_value, n=len(clusters), smallest=smallest)


def _of_shares(formula: str, *rows: Columns) -> bool:
    """Whether a metric is a mean of columns of zeros and ones, or of what lies between."""
    if formula != "mean":
        return False
    values = np.concatenate([column.astype(float) for row in rows for column in row.values()])
    return bool(np.nanmin(values) >= 0 and np.nanmax(values) <= 1)


def _tango(difference: float, n: int) -> tuple[float, float]:
    """95 % score interval of the difference of two shares of n pairs that all differ by the same -1, 0 or 1.

    There it is Wilson's interval: of the pairs that differ, none, for 0; of twice as far, all, for 1.
    """
    step = round(difference)
    if abs(difference - step) > _ROUNDING:
        return math.nan, math.nan
    low, high = wilson(abs(step) * n, n)
    if step == 0:
        return -high, high
    return (2 * low - 1, 1.0) if step > 0 else (-1.0, 1 - 2 * low)


def _exchange_test(
    formula: str,
    first: Columns,
    second: Columns,
    names: Sequence[str],
    clusters: Sequence[Any],
    *,
    draws: int,
    seed: int,
) -> float:
    """Two-sided p-value: how often rows put together by tossing coins differ as much as the two rows do."""
    compute = FORMULAS[formula]
    both = {name: np.concatenate([first[name], second[name]]) for name in names}
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    count, size = int(owner.max()) + 1, len(owner)
    observed = abs(evaluate(formula, first, names) - evaluate(formula, second, names))
    generator = np.random.default_rng(seed)
    gains = _gains(first, second, names, owner) if FORMULAS[formula] is FORMULAS["mean"] else None
    as_far = 0
    block = max(1, _CELLS_AT_ONCE // (2 * size))
    for start in range(0, draws, block):
        coins = generator.integers(0, 2, size=(min(block, draws - start), count), dtype=np.int8)
        if gains is not None:
            found = np.abs((2.0 * coins - 1) @ gains)
        else:
            kept = coins[:, owner].astype(float)
            one, other = np.hstack([kept, 1 - kept]), np.hstack([1 - kept, kept])
            found = np.abs(compute(both, names, one) - compute(both, names, other))
        as_far += int((~(found < observed * (1 - 1e-9))).sum())  # NaN, a group that nothing is left of, counts as far
    return (as_far + 1) / (draws + 1)


def _gains(first: Columns, second: Columns, names: Sequence[str], owner: np.ndarray) -> np.ndarray | None:
    """(C,) each cluster's part in a difference of means, so that no item is looked at again in every draw.

    None where the rows lack values of different items, so that their means have other denominators.
    """
    parts = []
    for name in names:
        mine, other = first[name].astype(float), second[name].astype(float)
        present = ~np.isnan(mine)
        if (np.isnan(other) == present).any():
            return None
        parts.append(np.bincount(owner[present], (mine - other)[present], owner.max() + 1) / max(1, present.sum()))
    return np.mean(parts, axis=0)


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
