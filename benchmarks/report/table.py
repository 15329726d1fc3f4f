"""The one table that every format prints: rows × primary metrics, with intervals, differences and honest marks.

Rules of the marks, in one place:
- cells are compared only within a *group* of equal protocol (how a model takes its input may differ: it is
  part of the model);
- ``best``: alone at the top, and a paired test tells it from every other cell of its group;
- ``tied``: the top of a group and those that no test tells from it, where there is a worse cell;
- no mark where nothing can be told apart.
p-values are Holm-corrected: within a column for the marks, over the whole table for the differences to baselines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.protocol import INPUT, differences, fingerprint
from benchmarks.report.pairing import Pairing
from benchmarks.report.source import Gap, ReportSource
from benchmarks.results import Metric, Result
from benchmarks.statistics import DRAWS, Difference, holm
from benchmarks.study.record import RowRecord

SIGNIFICANCE = 0.05
Mark = Literal["best", "tied", ""]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric of one benchmark.

    Args:
        benchmark: name of the benchmark.
        metric: name of the metric; empty where no row has a number.
        label: for the head, ``"T→I R@1"``.
        scale: values are shown times this.
        higher_is_better: None where neither is better; such a column is not ranked.
        largest: the largest value shown, without its sign.
    """

    benchmark: str
    metric: str
    label: str
    scale: float
    higher_is_better: bool | None
    largest: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Delta:
    """Difference to the baseline row, scaled as shown, with its 95 % interval and corrected p-value."""

    baseline: str
    value: float
    low: float
    high: float
    p_value: float

    @property
    def significant(self) -> bool:
        """Whether a difference was shown, given how many were looked at."""
        return self.p_value < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, or why there is none.

    Args:
        row: its row.
        column: its column.
        value: as shown (scaled); None where there is a gap.
        low: lower end of the 95 % interval.
        high: upper end.
        n: items.
        delta: against the baseline row, where both were measured alike.
        mark: see the module's docstring.
        group: 0 for the column's main protocol, 1, 2, … for others, which are not ranked with it.
        unlike: in words, what differs from the main protocol.
        gap: why there is no number.
    """

    row: str
    column: Column
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    delta: Delta | None = None
    mark: Mark = ""
    group: int = 0
    unlike: tuple[str, ...] = ()
    gap: Gap | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows, columns and cells, and how many comparisons stand behind the corrected differences."""

    rows: tuple[RowRecord, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    comparisons: int

    def cell(self, row: RowRecord, column: Column) -> Cell:
        """The cell of a row in a column."""
        return self.cells[row.name, column.benchmark, column.metric]

    def column_cells(self, column: Column) -> list[Cell]:
        """A column from top to bottom."""
        return [self.cell(row, column) for row in self.rows]


def build_table(source: ReportSource, *, primary_only: bool = True) -> Table:
    """Make the table of a source's primary metrics, or of all its metrics (then without differences and marks)."""
    columns = [column for name in source.benchmarks for column in _columns(source, name, primary_only)]
    cells: dict[tuple[str, str, str], Cell] = {}
    for column in columns:
        for cell in _plain_cells(source, column):
            cells[cell.row, column.benchmark, column.metric] = cell
    table = Table(rows=source.rows, columns=tuple(columns), cells=cells, comparisons=0)
    if not primary_only:
        return table
    compare = _Comparer(source)
    return _with_deltas(_with_marks(table, compare), compare)


def _columns(source: ReportSource, benchmark: str, primary_only: bool) -> list[Column]:
    found: dict[str, list[Metric]] = {}
    for result in source.results(benchmark).values():
        for name in result.primary if primary_only else result.metrics:
            if name in result.metrics:
                found.setdefault(name, []).append(result.metrics[name])
    if not found and primary_only:
        return [Column(benchmark=benchmark, metric="", label=benchmark, scale=1.0, higher_is_better=None)]
    return [
        Column(
            benchmark=benchmark,
            metric=name,
            label=metrics[0].label,
            scale=metrics[0].scale,
            higher_is_better=metrics[0].higher_is_better,
            largest=max(abs(metric.value * metric.scale) for metric in metrics),
        )
        for name, metrics in found.items()
    ]


def _plain_cells(source: ReportSource, column: Column) -> list[Cell]:
    groups: dict[str, int] = {}
    main: Result | None = None
    cells = []
    for row in source.rows:
        outcome = source.outcomes[row.name, column.benchmark]
        if isinstance(outcome, Gap):
            cells.append(Cell(row=row.name, column=column, gap=outcome))
            continue
        metric = outcome.metrics.get(column.metric)
        if metric is None:
            reason = outcome.absent.get(column.metric, "this metric was not computed for this row")
            cells.append(Cell(row=row.name, column=column, gap=Gap(kind="not applicable", reason=reason)))
            continue
        main = main or outcome
        group = groups.setdefault(fingerprint(outcome.protocol, across=(INPUT,)), len(groups))
        unlike = tuple(differences(main.protocol, outcome.protocol)) if group else ()
        cells.append(_number(row.name, column, metric, group, unlike))
    return cells


def _number(row: str, column: Column, metric: Metric, group: int, unlike: tuple[str, ...]) -> Cell:
    return Cell(
        row=row,
        column=column,
        value=metric.value * metric.scale,
        low=None if metric.low is None else metric.low * metric.scale,
        high=None if metric.high is None else metric.high * metric.scale,
        n=metric.n,
        group=group,
        unlike=unlike,
    )


class _Comparer:
    """Paired tests between rows, benchmark by benchmark."""

    def __init__(self, source: ReportSource) -> None:
        draws = max(DRAWS, 80 * len(source.rows) * len(source.benchmarks))  # so that Holm can reach p < 0.05
        self._pairings = {name: Pairing(source.results(name), draws=draws) for name in source.benchmarks}

    def difference(self, column: Column, first: str, second: str) -> Difference | None:
        """Row ``first`` minus row ``second``; None where no paired test is possible."""
        return self._pairings[column.benchmark].difference(column.metric, first, second)


def _tells_apart(compare: _Comparer, top: Cell, other: Cell) -> float:
    """p-value that ``top`` and ``other`` are alike; from the intervals where no paired test is possible."""
    found = compare.difference(top.column, top.row, other.row)
    if found is not None:
        return found.p_value
    if None in (top.low, top.high, other.low, other.high):
        return 1.0
    apart = top.low > other.high or other.low > top.high  # type: ignore[operator]
    return 0.0 if apart else 1.0


def _with_marks(table: Table, compare: _Comparer) -> Table:
    cells = dict(table.cells)
    for column in table.columns:
        if column.higher_is_better is None:
            continue
        numbers = [cell for cell in table.column_cells(column) if cell.value is not None]
        for group in sorted({cell.group for cell in numbers}):
            for row, mark in _marks([cell for cell in numbers if cell.group == group], compare).items():
                key = (row, column.benchmark, column.metric)
                cells[key] = dataclasses.replace(cells[key], mark=mark)
    return dataclasses.replace(table, cells=cells)


def _marks(cells: Sequence[Cell], compare: _Comparer) -> dict[str, Mark]:
    if len(cells) < 2:
        return {}
    sign = 1 if cells[0].column.higher_is_better else -1
    top = max(cells, key=lambda cell: sign * (cell.value or 0.0))
    others = [cell for cell in cells if cell is not top]
    p_values = holm([_tells_apart(compare, top, other) for other in others])
    near = [other for other, p in zip(others, p_values, strict=True) if p >= SIGNIFICANCE]
    if not near:
        return {top.row: "best"}
    if len(near) == len(others):
        return {}
    return {cell.row: "tied" for cell in (top, *near)}


def _with_deltas(table: Table, compare: _Comparer) -> Table:
    found: dict[tuple[str, str, str], tuple[str, Difference]] = {}
    for row in table.rows:
        for column in table.columns if row.baseline else ():
            mine = table.cell(row, column)
            base = table.cells.get((row.baseline, column.benchmark, column.metric))  # type: ignore[arg-type]
            if base is None or mine.value is None or base.value is None or mine.group != base.group:
                continue
            difference = compare.difference(column, row.name, base.row)
            if difference is not None:
                found[row.name, column.benchmark, column.metric] = (base.row, difference)
    corrected = holm([difference.p_value for _, difference in found.values()])
    cells = dict(table.cells)
    for (key, (baseline, difference)), p_value in zip(found.items(), corrected, strict=True):
        cells[key] = dataclasses.replace(cells[key], delta=_delta(cells[key].column, baseline, difference, p_value))
    return dataclasses.replace(table, cells=cells, comparisons=len(found))


def _delta(column: Column, baseline: str, difference: Difference, p_value: float) -> Delta:
    return Delta(
        baseline=baseline,
        value=difference.value * column.scale,
        low=difference.low * column.scale,
        high=difference.high * column.scale,
        p_value=p_value,
    )
