"""A benchmark's number kind by kind: POPE's three samplings, MME's abilities, GQA's types, SugarCrepe's edits.

Each kind's number is the benchmark's first primary metric, computed on the items of that kind alone. Differences to the
baseline are tested as in the main table, over pictures or over seeds; all of a report's are corrected together, apart
from the main table's, so that looking closer costs that table nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from benchmarks import statistics
from benchmarks.report.figure import Figure, FigureSet, Key, file_name
from benchmarks.report.forest import direction
from benchmarks.report.inks import SERIES_COLOURS, Inks
from benchmarks.report.model import Report
from benchmarks.report.pairing import paired
from benchmarks.report.seeds import has_seeds, over_seeds
from benchmarks.report.source import ReportSource, few_rows
from benchmarks.report.table import Cell, Column, Delta, Table
from benchmarks.results import Metric, Result, columns_of, read_items
from benchmarks.wording import column_title, decimals, listed, number, score, short_name

MOST_KINDS = 24
_SIGNS = {"better": "▲", "worse": "▼", "not shown": "≈"}
_LEAD = (
    "The first measure of each benchmark on the items of one kind alone, with 95 % intervals. Triangles differ from "
    "the baseline (▲ better, ▼ worse) after correction for all comparisons of this section; circles were not shown to. "
    "Where no stroke stands, all items came out alike. The fewer items a kind has, the more of a difference it takes."
)


def category_figures(report: Report) -> FigureSet | None:
    """A figure for each benchmark whose items are of several kinds; None where none has such."""
    tables = category_tables(report.source)
    places = {row.name: place % SERIES_COLOURS for place, row in enumerate(report.table.rows)}
    figures = tuple(_figure(table, places) for table in tables)
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def category_tables(source: ReportSource) -> list[Table]:
    """For each benchmark with kinds of items: rows × kinds, with differences to the baseline corrected together."""
    looked_at = {row.but_for_seed for row in few_rows(source).rows}
    rows = tuple(row for row in source.rows if row.but_for_seed in looked_at)
    few = dataclasses.replace(source, rows=rows)
    seeds = has_seeds(few)
    found = [_Breakdown(few, name) for name in source.benchmarks]
    tables = [breakdown.table(intervals=not seeds) for breakdown in found if breakdown.columns]
    if not seeds:
        return _with_differences(tables, [breakdown for breakdown in found if breakdown.columns])
    return _corrected([over_seeds(table) for table in tables])


class _Breakdown:
    """One benchmark's items by row and kind."""

    def __init__(self, source: ReportSource, benchmark: str) -> None:
        self.source, self.benchmark = source, benchmark
        self.metrics: dict[str, Metric] = {}
        self.items: dict[str, pd.DataFrame] = {}
        self.columns: tuple[Column, ...] = ()
        countable = {row: result for row, result in source.results(benchmark).items() if _has_formula(result)}
        for row, group in source.protocol_groups(countable).items():
            if group == 0:
                self.metrics[row] = countable[row].metrics[countable[row].primary[0]]
                self.items[row] = read_items(countable[row]).sort_values("item")
        self._name_kinds()

    def _name_kinds(self) -> None:
        kinds = sorted({str(kind) for items in self.items.values() for kind in items["category"].dropna()} - {""})
        if not 2 <= len(kinds) <= MOST_KINDS:
            return
        first = next(iter(self.metrics.values()))
        self.columns = tuple(
            Column(
                benchmark=self.benchmark,
                metric=kind,
                label=first.label,
                scale=first.scale,
                higher_is_better=first.higher_is_better,
                largest=abs(first.value * first.scale),
            )
            for kind in kinds
        )

    def of_kind(self, row: str, kind: str) -> pd.DataFrame:
        items = self.items[row]
        return items[items["category"] == kind]

    def table(self, *, intervals: bool) -> Table:
        cells = {
            (row.name, self.benchmark, column.metric): self._cell(row.name, row.seed, column, intervals=intervals)
            for row in self.source.rows
            for column in self.columns
        }
        kept = tuple(row for row in self.source.rows if row.name in self.items)
        return Table(rows=kept, columns=self.columns, cells=cells, comparisons=0)

    def _cell(self, row: str, seed: int | None, column: Column, *, intervals: bool) -> Cell:
        metric = self.metrics.get(row)
        items = self.of_kind(row, column.metric) if metric else pd.DataFrame()
        if metric is None or metric.formula is None or items.empty:
            return Cell(row=row, column=column, seed=seed)
        columns = columns_of(items, metric.columns)
        value = statistics.evaluate(metric.formula, columns, metric.columns) * column.scale
        if math.isnan(value):
            return Cell(row=row, column=column, seed=seed)
        found = statistics.Interval(low=None, high=None, method="none")
        if intervals:
            found = statistics.interval(metric.formula, columns, metric.columns, items["image"].to_numpy())
        low, high = (None if end is None else end * column.scale for end in (found.low, found.high))
        return Cell(
            row=row,
            seed=seed,
            column=column,
            value=value,
            low=low,
            high=high,
            n=len(items),
        )


def _has_formula(result: Result) -> bool:
    """Whether its first primary metric can be computed on some of its items."""
    first = result.metrics.get(result.primary[0]) if result.primary else None
    return result.items is not None and first is not None and first.formula is not None


def _with_differences(tables: Sequence[Table], breakdowns: Sequence[_Breakdown]) -> list[Table]:
    """The tables with paired tests over pictures."""
    wanted = [(place, cell, base) for place, table in enumerate(tables) for cell, base in _against_baseline(table)]
    draws = max(statistics.DRAWS, 80 * len(wanted))  # so that the correction leaves p < 0.05 within reach
    cells = [dict(table.cells) for table in tables]
    for place, cell, base in wanted:
        breakdown, kind, scale = breakdowns[place], cell.column.metric, cell.column.scale
        mine, other = breakdown.of_kind(cell.row, kind), breakdown.of_kind(base.row, kind)
        found = paired(breakdown.metrics[cell.row], mine, other, draws=draws)
        if found is not None:
            delta = Delta(
                baseline=base.row,
                value=found.value * scale,
                low=found.low * scale,
                high=found.high * scale,
                p_value=found.p_value,
                smallest=found.smallest * scale,
            )
            cells[place][cell.row, cell.column.benchmark, kind] = dataclasses.replace(cell, delta=delta)
    return _corrected([dataclasses.replace(table, cells=new) for table, new in zip(tables, cells, strict=True)])


def _against_baseline(table: Table) -> Iterator[tuple[Cell, Cell]]:
    for row in table.rows:
        for column in table.columns:
            cell, base = table.cell(row, column), table.cells.get((row.baseline or "", column.benchmark, column.metric))
            if cell.value is not None and base is not None and base.value is not None:
                yield cell, base


def _corrected(tables: Sequence[Table]) -> list[Table]:
    """The tables with the p-values of all their differences Holm-corrected as one family."""
    places = [
        (number, place) for number, table in enumerate(tables) for place, cell in table.cells.items() if cell.delta
    ]
    p_values = [delta.p_value for number, place in places if (delta := tables[number].cells[place].delta)]
    cells = [dict(table.cells) for table in tables]
    for (which, place), p_value in zip(places, statistics.holm(p_values), strict=True):
        cell = cells[which][place]
        assert cell.delta is not None
        cells[which][place] = dataclasses.replace(cell, delta=dataclasses.replace(cell.delta, p_value=p_value))
    return [
        dataclasses.replace(table, cells=new, comparisons=len(places)) for table, new in zip(tables, cells, strict=True)
    ]


def _figure(table: Table, places: dict[str, int]) -> Figure:
    first = table.columns[0]
    title = column_title(dataclasses.replace(first, metric=""))
    shown = [
        f"{cell.row} {direction(cell, cell.delta)} on {cell.column.metric}"
        for column in table.columns
        for cell in table.column_cells(column)
        if cell.delta and cell.delta.significant
    ]
    items = {column.metric: max(cell.n for cell in table.column_cells(column)) for column in table.columns}
    return Figure(
        name=file_name("kinds", first.benchmark),
        title=title,
        alt=f"{title} of {len(table.rows)} rows on {len(table.columns)} kinds of items, with intervals; "
        + (f"shown to differ from the baseline: {listed(shown)}." if shown else "no row was shown to differ."),
        plot=lambda axes, inks: _plot(table, places, axes, inks),
        x_label=first.label,
        legend=tuple(Key(colour=places.get(row.name, 0), label=row.name) for row in table.rows),
        heads=("kind", "items", *(row.name for row in table.rows)),
        rows=tuple(
            (column.metric, str(items[column.metric]), *map(_said, table.column_cells(column)))
            for column in table.columns
        ),
        height=0.7 + len(table.columns) * (0.13 + 0.11 * len(table.rows)),
        upright=True,
    )


def _said(cell: Cell) -> str:
    said = score(cell)
    if cell.delta is None:
        return said
    sign = _SIGNS[direction(cell, cell.delta)]
    return f"{said} ({sign} {number(cell.delta.value, decimals(cell.column), sign=True)})"


def _plot(table: Table, places: dict[str, int], axes: Any, inks: Inks) -> None:
    step = 0.72 / max(1, len(table.rows))
    for above, column in enumerate(table.columns):
        for number_, cell in enumerate(table.column_cells(column)):
            if cell.value is None:
                continue
            y = above + step * (number_ - (len(table.rows) - 1) / 2)
            colour = inks.series(places.get(cell.row, 0))
            if cell.low is not None:
                axes.hlines(y, cell.low, cell.high, color=colour, linewidth=1.3, alpha=0.7)
            kind = direction(cell, cell.delta) if cell.delta else "not shown"
            axes.plot(
                cell.value, y, {"better": "^", "worse": "v", "not shown": "o"}[kind], color=colour, markersize=4.5
            )
    names = [short_name(column.metric.replace("_", " ")) for column in table.columns]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
