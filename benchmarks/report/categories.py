"""A benchmark's score per category: POPE's samplings, MME's abilities, GQA's types, SugarCrepe's edits.

The score of a category is the benchmark's first primary metric on its items. Differences from the baseline are tested
as in the main table. The tests of all categories are one family of their own, so that they do not raise the p-values of
the main table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from benchmarks.report.cell_text import column_title, decimals, score
from benchmarks.report.figure import SERIES_COLORS, Figure, FigureSet, LegendEntry, Palette, safe_file_name
from benchmarks.report.forest_plots import effect_direction
from benchmarks.report.load_results import ReportSource, limit_rows
from benchmarks.report.report import Report
from benchmarks.report.seed_aggregation import aggregate_seeds, has_seeds, with_intervals
from benchmarks.report.significance import Evidence, add_significance
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results import statistics
from benchmarks.results.formatting import format_number, join_with_and, shorten_name
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.results import Result, columns_of
from benchmarks.study.rows import RowRecord

MAX_CATEGORIES = 24
_SIGNS = {"better": "▲", "worse": "▼", "not significant": "≈"}
_MARKERS = {"better": "^", "worse": "v", "not significant": "o"}
_LEAD = (
    "The first metric of each benchmark on the items of one category, with 95 % intervals. Triangles differ "
    "significantly from the baseline (▲ better, ▼ worse), Holm-corrected for all comparisons of this section; "
    "circles do not. A number without a stroke has no interval. Small categories have large minimum "
    "detectable differences."
)


def category_figures(report: Report) -> FigureSet | None:
    """A figure for each benchmark with several categories; None without any."""
    colors = {row.name: index % SERIES_COLORS for index, row in enumerate(report.table.rows)}
    figures = tuple(_figure(table, colors) for table in category_tables(report.source, report.evidence.items))
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def category_tables(source: ReportSource, items: ItemScores | None = None) -> list[Table]:
    """For each benchmark with categories: models × categories, with differences from the baseline.

    Args:
        source: the results.
        items: cache of their item tables.
    """
    selected = {row.but_for_seed for row in limit_rows(source).rows}
    source = dataclasses.replace(source, rows=tuple(row for row in source.rows if row.but_for_seed in selected))
    items = items or ItemScores()
    tables = [table for name in source.benchmarks if (table := _category_table(source, name, items)) is not None]
    metrics = {table.columns[0].benchmark: _first_metrics(source, table.columns[0].benchmark) for table in tables}

    def item_key(cell: Cell) -> tuple[str, str, str]:
        metric = metrics[cell.column.benchmark][(cell.members or (cell.row,))[0]]
        return cell.column.benchmark, metric, cell.column.metric

    evidence = Evidence(source, item_key, items)
    aggregate = aggregate_seeds if has_seeds(source) else with_intervals
    return add_significance([aggregate(table, evidence) for table in tables], evidence, ranked=False)


def _first_metrics(source: ReportSource, benchmark: str) -> dict[str, str]:
    """Model → its first primary metric, of the models in the main protocol whose metric has an aggregation of items."""
    results = {row: result for row, result in source.results(benchmark).items() if _is_aggregated(result)}
    groups = source.protocol_groups(results)
    return {row: result.primary[0] for row, result in results.items() if groups[row] == 0}


def _category_table(source: ReportSource, benchmark: str, items: ItemScores) -> Table | None:
    """The table of a benchmark's categories; None without categories, or with too many."""
    results, metrics = source.results(benchmark), _first_metrics(source, benchmark)
    tables = {row: table for row in metrics if (table := items.items(results[row])) is not None}
    names = sorted({str(name) for table in tables.values() for name in table["category"].dropna().unique()} - {""})
    if not 2 <= len(names) <= MAX_CATEGORIES:
        return None
    first = next(results[row].metrics[metric] for row, metric in metrics.items())
    columns = tuple(
        Column(
            benchmark=benchmark,
            metric=name,
            label=first.label,
            scale=first.scale,
            higher_is_better=first.higher_is_better,
            largest=abs(first.value * first.scale),
            benchmark_id=source.benchmark_id(benchmark),
        )
        for name in names
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
    metric, selected = results[row.name].metrics[metrics[row.name]], items[items["category"] == column.metric]
    if selected.empty or metric.aggregation is None:
        return empty
    value = statistics.aggregate(metric.aggregation, columns_of(selected, metric.columns), metric.columns)
    return empty if math.isnan(value) else dataclasses.replace(empty, value=value * column.scale, n=len(selected))


def _is_aggregated(result: Result) -> bool:
    """Whether the first primary metric can be computed on a part of the items."""
    first = result.metrics.get(result.primary[0]) if result.primary else None
    return result.items is not None and first is not None and first.aggregation is not None


def _figure(table: Table, colors: dict[str, int]) -> Figure:
    first = table.columns[0]
    title = column_title(first)
    significant = [
        f"{cell.row} {effect_direction(cell, cell.delta)} on {cell.column.metric}"
        for column in table.columns
        for cell in table.column_cells(column)
        if cell.delta and cell.delta.significant
    ]
    items = {column.metric: max(cell.n for cell in table.column_cells(column)) for column in table.columns}
    return Figure(
        name=safe_file_name("kinds", first.key),
        title=title,
        alt=f"{title} of {len(table.rows)} models on {len(table.columns)} categories, with intervals; "
        + (
            f"significantly different from the baseline: {join_with_and(significant)}."
            if significant
            else "none differs significantly."
        ),
        plot=lambda axes, palette: _plot(table, colors, axes, palette),
        x_label=first.label,
        legend=tuple(LegendEntry(color=colors.get(row.name, 0), label=row.name) for row in table.rows),
        headers=("category", "items", *(row.name for row in table.rows)),
        rows=tuple(
            (column.metric, str(items[column.metric]), *map(_score_and_delta, table.column_cells(column)))
            for column in table.columns
        ),
        height=0.7 + len(table.columns) * (0.13 + 0.11 * len(table.rows)),
        vertical_grid=True,
    )


def _score_and_delta(cell: Cell) -> str:
    if cell.delta is None:
        return score(cell)
    sign = _SIGNS[effect_direction(cell, cell.delta)]
    return f"{score(cell)} ({sign} {format_number(cell.delta.value, decimals(cell.column), sign=True)})"


def _plot(table: Table, colors: dict[str, int], axes: Any, palette: Palette) -> None:
    step = 0.72 / max(1, len(table.rows))
    for category, column in enumerate(table.columns):
        for index, cell in enumerate(table.column_cells(column)):
            if cell.value is None:
                continue
            y = category + step * (index - (len(table.rows) - 1) / 2)
            color = palette.series(colors.get(cell.row, 0))
            if cell.ci_low is not None:
                axes.hlines(y, cell.ci_low, cell.ci_high, color=color, linewidth=1.3, alpha=0.7)
            direction = effect_direction(cell, cell.delta) if cell.delta else "not significant"
            axes.plot(cell.value, y, _MARKERS[direction], color=color, markersize=4.5)
    names = [shorten_name(column.metric.replace("_", " ")) for column in table.columns]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
