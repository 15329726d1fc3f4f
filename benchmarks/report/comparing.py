"""Which cells differ: the paired tests behind a table's marks and its differences to the baselines.

The tests that a table consults are found first and corrected together; marks and differences only read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from benchmarks.report.pairing import Pairing
from benchmarks.report.source import ReportSource
from benchmarks.report.table import SIGNIFICANCE, Cell, Delta, Mark, Table
from benchmarks.statistics import DRAWS, Difference, holm

Group = list[Cell]
_Pair = tuple[str, str, frozenset[str]]


def with_comparisons(table: Table, source: ReportSource) -> Table:
    """``table`` with its marks and differences, and the number of tests behind them."""
    tests = Tests(table, source)
    cells = dict(table.cells)
    for cell, base in _against_baseline(table):
        cells[_place(cell)] = dataclasses.replace(cell, delta=tests.delta(cell, base))
    for group in _ranked_groups(table):
        for cell, mark in _marks(group, tests):
            cells[_place(cell)] = dataclasses.replace(cells[_place(cell)], mark=mark)
    return dataclasses.replace(table, cells=cells, comparisons=len(tests))


class Tests:
    """Every paired test that the marks and differences of a table need, Holm-corrected as one family."""

    def __init__(self, table: Table, source: ReportSource) -> None:
        pairs = [*_against_baseline(table), *_against_top(table)]
        wanted = {_pair(first, second): (first, second) for first, second in pairs}
        draws = max(DRAWS, 80 * len(wanted))  # so that the correction leaves p < 0.05 within reach
        pairings = {name: Pairing(source.results(name), draws=draws) for name in source.benchmarks}
        found = {
            pair: pairings[first.column.benchmark].difference(first.column.metric, *sorted(pair[2]))
            for pair, (first, second) in wanted.items()
        }
        self._differences = {pair: difference for pair, difference in found.items() if difference is not None}
        corrected = holm([difference.p_value for difference in self._differences.values()])
        self._p_values = dict(zip(self._differences, corrected, strict=True))

    def __len__(self) -> int:
        return len(self._differences)

    def p_value(self, first: Cell, second: Cell) -> float:
        """Corrected p-value of "no difference"; 0 or 1 by the two intervals where no paired test is possible."""
        pair = _pair(first, second)
        if pair in self._p_values:
            return self._p_values[pair]
        if first.low is None or first.high is None or second.low is None or second.high is None:
            return 1.0
        return 0.0 if first.low > second.high or second.low > first.high else 1.0

    def delta(self, cell: Cell, base: Cell) -> Delta | None:
        """``cell`` minus ``base``, scaled as shown; None where no paired test is possible."""
        pair = _pair(cell, base)
        if pair not in self._differences:
            return None
        difference = self._differences[pair]
        if cell.row != min(pair[2]):
            difference = _reversed(difference)
        scale = cell.column.scale
        return Delta(
            baseline=base.row,
            value=difference.value * scale,
            low=difference.low * scale,
            high=difference.high * scale,
            p_value=self._p_values[pair],
            smallest=difference.smallest * scale,
        )


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.row, cell.column.benchmark, cell.column.metric


def _pair(first: Cell, second: Cell) -> _Pair:
    return first.column.benchmark, first.column.metric, frozenset({first.row, second.row})


def _reversed(difference: Difference) -> Difference:
    return dataclasses.replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)


def _against_baseline(table: Table) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with its baseline's, where both were measured alike."""
    for row in table.rows:
        for column in table.columns if row.baseline else ():
            cell = table.cell(row, column)
            base = table.cells.get((row.baseline, column.benchmark, column.metric))  # type: ignore[arg-type]
            if base and cell.value is not None and base.value is not None and cell.group == base.group:
                yield cell, base


def _against_top(table: Table) -> Iterator[tuple[Cell, Cell]]:
    """The top cell of each ranked group with each other of that group."""
    for top, *others in _ranked_groups(table):
        for other in others:
            yield top, other


def _ranked_groups(table: Table) -> Iterator[Group]:
    """Cells that may be ranked together, best first: of one column, measured alike."""
    for column in table.columns:
        if column.higher_is_better is None:
            continue
        sign = 1 if column.higher_is_better else -1
        numbers = [cell for cell in table.column_cells(column) if cell.value is not None]
        for group in sorted({cell.group for cell in numbers}):
            yield sorted(
                (cell for cell in numbers if cell.group == group), key=lambda cell: -sign * (cell.value or 0.0)
            )


def _marks(group: Group, tests: Tests) -> list[tuple[Cell, Mark]]:
    top, *others = group
    near = [other for other in others if tests.p_value(top, other) >= SIGNIFICANCE]
    if len(near) == len(others):
        return []  # also where the top is alone
    return [(cell, "tied") for cell in (top, *near)] if near else [(top, "best")]
