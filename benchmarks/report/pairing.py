"""Whether two rows differ on a metric: a paired test over the pictures that both were asked about."""

from __future__ import annotations

import math

import pandas as pd

from benchmarks.results import Result, columns_of, read_items
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
        if described is None or described.formula is None or mine is None or other is None:
            return None
        if list(mine["item"]) != list(other["item"]) or not set(described.columns).issubset({*mine} & {*other}):
            return None
        found = paired_difference(
            described.formula,
            columns_of(mine, described.columns),
            columns_of(other, described.columns),
            described.columns,
            mine["image"].to_numpy(),
            draws=self._draws,
        )
        return None if math.isnan(found.low) else found
