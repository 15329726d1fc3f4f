"""A benchmark's number kind by kind: POPE's three samplings, MME's abilities, GQA's types, SugarCrepe's edits.

Each kind's number is the benchmark's first primary metric, computed on the items of that kind alone. Differences to the
baseline are tested as in the main table, over pictures or over seeds; all of a report's are corrected together, apart
from the main table's, so that looking closer costs that table nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.report.cell_text import column_title, decimals, score
from benchmarks.report.figure import Figure, FigureSet, LegendEntry, safe_file_name
from benchmarks.report.forest_plots import effect_direction
from benchmarks.report.load_results import ReportSource, limit_rows
from benchmarks.report.palette import SERIES_COLORS, Palette
from benchmarks.report.report import Report
from benchmarks.report.seed_aggregation import aggregate_seeds, has_seeds, with_intervals
from benchmarks.report.significance import Evidence, add_significance
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results import statistics
from benchmarks.results.formatting import format_number, join_with_and, shorten_name
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.results import Result, columns_of
from benchmarks.study.study_record import RowRecord

MAX_CATEGORIES = 24
_SIGNS = {"better": "▲", "worse": "▼", "not shown": "≈"}
_LEAD = (
    "The first measure of each benchmark on the items of one kind alone, with 95 % intervals. Triangles differ from "
    "the baseline (▲ better, ▼ worse) after correction for all comparisons of this section; circles were not shown to. "
    "Where no stroke stands, all items came out alike. The fewer items a kind has, the more of a difference it takes."
)


def category_figures(report: Report) -> FigureSet | None:
    """A figure for each benchmark whose items are of several kinds; None where none has such."""
    tables = category_tables(report.source)
    places = {row.name: place % SERIES_COLORS for place, row in enumerate(report.table.rows)}
    figures = tuple(_figure(table, places) for table in tables)
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def category_tables(source: ReportSource) -> list[Table]:
    """For each benchmark with kinds of items: rows × kinds, with differences to the baseline corrected together."""
    looked_at = {row.but_for_seed for row in limit_rows(source).rows}
    few = dataclasses.replace(source, rows=tuple(row for row in source.rows if row.but_for_seed in looked_at))
    items = ItemScores()
    tables = [table for name in source.benchmarks if (table := _by_kind(few, name, items)) is not None]
    metrics = {table.columns[0].benchmark: _first_metrics(few, table.columns[0].benchmark) for table in tables}

    def place(cell: Cell) -> tuple[str, str, str]:
        metric = metrics[cell.column.benchmark][(cell.members or (cell.row,))[0]]
        return cell.column.benchmark, metric, cell.column.metric

    evidence = Evidence(few, place, items)
    if has_seeds(few):
        tables = [aggregate_seeds(table, evidence) for table in tables]
    else:
        tables = [with_intervals(table, evidence) for table in tables]
    return add_significance(tables, evidence, ranked=False)


def _first_metrics(source: ReportSource, benchmark: str) -> dict[str, str]:
    """Row → its first primary metric, of the rows that were measured alike and whose metric follows from items."""
    countable = {row: result for row, result in source.results(benchmark).items() if _has_formula(result)}
    groups = source.protocol_groups(countable)
    return {row: result.primary[0] for row, result in countable.items() if groups[row] == 0}


def _by_kind(source: ReportSource, benchmark: str, items: ItemScores) -> Table | None:
    """A table of a benchmark's kinds of items; None where there are none, or too many."""
    results, metrics = source.results(benchmark), _first_metrics(source, benchmark)
    tables = {row: table for row in metrics if (table := items.items(results[row])) is not None}
    kinds = sorted({str(kind) for table in tables.values() for kind in table["category"].dropna()} - {""})
    if not 2 <= len(kinds) <= MAX_CATEGORIES:
        return None
    first = next(results[row].metrics[metric] for row, metric in metrics.items())
    columns = tuple(
        Column(
            benchmark=benchmark,
            metric=kind,
            label=first.label,
            scale=first.scale,
            higher_is_better=first.higher_is_better,
            largest=abs(first.value * first.scale),
        )
        for kind in kinds
    )
    cells = {
        (row.name, benchmark, column.metric): _cell(row, column, tables.get(row.name), results, metrics)
        for row in source.rows
        for column in columns
    }
    rows = tuple(row for row in source.rows if row.name in tables)
    return Table(rows=rows, columns=columns, cells=cells, comparisons=0)


def _cell(
    row: RowRecord,
    column: Column,
    items: pd.DataFrame | None,
    results: Mapping[str, Result],
    metrics: Mapping[str, str],
) -> Cell:
    empty = Cell(row=row.name, column=column, seed=row.seed)
    if items is None:
        return empty
    metric, kept = results[row.name].metrics[metrics[row.name]], items[items["category"] == column.metric]
    if kept.empty or metric.aggregation is None:
        return empty
    value = statistics.aggregate(metric.aggregation, columns_of(kept, metric.columns), metric.columns)
    return empty if math.isnan(value) else dataclasses.replace(empty, value=value * column.scale, n=len(kept))


def _has_formula(result: Result) -> bool:
    """Whether its first primary metric can be computed on some of its items."""
    first = result.metrics.get(result.primary[0]) if result.primary else None
    return result.items is not None and first is not None and first.aggregation is not None


def _figure(table: Table, places: dict[str, int]) -> Figure:
    first = table.columns[0]
    title = column_title(dataclasses.replace(first, metric=""))
    shown = [
        f"{cell.row} {effect_direction(cell, cell.delta)} on {cell.column.metric}"
        for column in table.columns
        for cell in table.column_cells(column)
        if cell.delta and cell.delta.significant
    ]
    items = {column.metric: max(cell.n for cell in table.column_cells(column)) for column in table.columns}
    return Figure(
        name=safe_file_name("kinds", first.benchmark),
        title=title,
        alt=f"{title} of {len(table.rows)} rows on {len(table.columns)} kinds of items, with intervals; "
        + (f"shown to differ from the baseline: {join_with_and(shown)}." if shown else "no row was shown to differ."),
        plot=lambda axes, inks: _plot(table, places, axes, inks),
        x_label=first.label,
        legend=tuple(LegendEntry(color=places.get(row.name, 0), label=row.name) for row in table.rows),
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
    sign = _SIGNS[effect_direction(cell, cell.delta)]
    return f"{said} ({sign} {format_number(cell.delta.value, decimals(cell.column), sign=True)})"


def _plot(table: Table, places: dict[str, int], axes: Any, inks: Palette) -> None:
    step = 0.72 / max(1, len(table.rows))
    for above, column in enumerate(table.columns):
        for number_, cell in enumerate(table.column_cells(column)):
            if cell.value is None:
                continue
            y = above + step * (number_ - (len(table.rows) - 1) / 2)
            color = inks.series(places.get(cell.row, 0))
            if cell.ci_low is not None:
                axes.hlines(y, cell.ci_low, cell.ci_high, color=color, linewidth=1.3, alpha=0.7)
            kind = effect_direction(cell, cell.delta) if cell.delta else "not shown"
            axes.plot(cell.value, y, {"better": "^", "worse": "v", "not shown": "o"}[kind], color=color, markersize=4.5)
    names = [shorten_name(column.metric.replace("_", " ")) for column in table.columns]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
