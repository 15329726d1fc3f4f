"""Whether two rows differ on a metric: a paired test over the pictures that both were asked about."""

from __future__ import annotations

import math

import pandas as pd

from benchmarks.results import Metric, Result, columns_of, read_items
from benchmarks.statistics import DRAWS, Difference, paired_difference


class Pairing:
    """Tests between the rows of one benchmark, by their item tables.

    Args:
        results: row → result, read from files.
        draws: of each test.
    """

    def __init__(self, results: dict[str, Result], *, draws: int = DRAWS) -> None:
        self._results = results
        self._draws = draws
        self._items: dict[str, pd.DataFrame | None] = {}
        self._tested: dict[tuple[str, str, str], Difference | None] = {}

    def difference(self, metric: str, first: str, second: str) -> Difference | None:
        """Row ``first`` minus row ``second``; None where they do not share their items or the metric has no formula."""
        key = (metric, first, second)
        if key not in self._tested:
            self._tested[key] = self._test(metric, first, second)
        return self._tested[key]

    def items(self, row: str) -> pd.DataFrame | None:
        """A row's items, ordered by name; None where it kept none."""
        if row not in self._items:
            result = self._results[row]
            self._items[row] = None if result.items is None else read_items(result).sort_values("item")
        return self._items[row]

    def _test(self, metric: str, first: str, second: str) -> Difference | None:
        described = self._results[first].metrics.get(metric)
        mine, other = self.items(first), self.items(second)
        if described is None or mine is None or other is None:
            return None
        return paired(described, mine, other, draws=self._draws)


def paired(metric: Metric, mine: pd.DataFrame, other: pd.DataFrame, *, draws: int = DRAWS) -> Difference | None:
    """One row's metric minus another's; None where they do not share their items or the metric has no formula.

    Args:
        metric: how it is computed.
        mine: items of the one row, ordered by name.
        other: items of the other, likewise.
        draws: of the test.
    """
    if metric.formula is None or list(mine["item"]) != list(other["item"]):
        return None
    if not set(metric.columns).issubset({*mine} & {*other}):
        return None
    found = paired_difference(
        metric.formula,
        columns_of(mine, metric.columns),
        columns_of(other, metric.columns),
        metric.columns,
        mine["image"].to_numpy(),
        draws=draws,
    )
    return found if found.n and math.isfinite(found.value) else None
