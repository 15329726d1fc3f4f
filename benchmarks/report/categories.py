"""A benchmark's score per category: POPE's samplings, MME's abilities, GQA's types, SugarCrepe's edits.

The score of a category is the benchmark's first primary metric on its items. Differences from the baseline are tested
as in the main table. The tests of all categories are one family of their own, so that they do not raise the p-values of
the main table.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from benchmarks.report.differences import compare_models
from benchmarks.report.figures import SERIES_COLORS, Figure, FigureSet, LegendEntry, Palette, safe_file_name
from benchmarks.report.load_results import ReportSource, limit_rows
from benchmarks.report.scores import completed, mean_tables
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.formatting import join_with_and, shorten_name
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.measure import value_of

MAX_CATEGORIES = 24
_SIGNS = {"better": "▲", "worse": "▼", "different": "≠", "not significant": "≈"}
_MARKERS = {"better": "^", "worse": "v", "different": "D", "not significant": "o"}
_LEAD = (
    "The first metric of each benchmark on the items of one category, with 95 % intervals. Triangles differ "
    "significantly from the baseline (▲ better, ▼ worse), Holm-corrected for all comparisons of this section; "
    "circles do not. A number without a stroke has no interval. Small categories have large minimum "
    "detectable differences."
)


def category_figures(source: ReportSource, table: Table, items: ItemScores) -> FigureSet | None:
    """A figure for each benchmark with several categories, in the colors of the main table; None without any."""
    colors = {row.name: index % SERIES_COLORS for index, row in enumerate(table.rows)}
    figures = tuple(_figure(each, colors) for each in category_tables(source, items))
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def category_tables(source: ReportSource, items: ItemScores) -> list[Table]:
    """For each benchmark with categories: models × categories, with differences from the baseline."""
    selected = {row.but_for_seed for row in limit_rows(source).rows}
    source = dataclasses.replace(source, rows=tuple(row for row in source.rows if row.but_for_seed in selected))
    seed_tables = [table for name in source.benchmarks if (table := _category_table(source, name, items)) is not None]
    tables = [mean_tables([table], source, items)[0] for table in seed_tables]
    return compare_models(tables, items, ranked=False)


def _category_table(source: ReportSource, benchmark: str, items: ItemScores) -> Table | None:
    """The table of a benchmark's categories, a row for each seed; None without categories, or with too many.

    Its models are those in the main protocol whose first primary metric can be computed on a part of the items, and is
    that of the first of them: a model may lack the first metric of the others.
    """
    results = {
        row: result
        for row, result in source.results(benchmark).items()
        if result.items is not None
        and (metric := result.metrics.get(next(iter(result.primary), ""))) is not None
        and metric.aggregation is not None
    }
    groups = source.protocol_groups(results)
    main = next((row for row in results if groups[row] == 0), None)
    primary = results[main].primary[0] if main else ""
    tables = {row: table for row, result in results.items()
             if groups[row] == 0 and result.primary[0] == primary
             and (table := items.items(result)) is not None}  # fmt: skip
    names = sorted({str(name) for table in tables.values() for name in table["category"].dropna().unique()} - {""})
    if not 2 <= len(names) <= MAX_CATEGORIES:
        return None
    first = results[next(iter(tables))].metrics[primary]
    columns = tuple(
        Column(
            benchmark=benchmark,
            metric=name,
            label=first.label,
            scale=first.scale,
            higher_is_better=first.higher_is_better,
            largest=abs(first.value * first.scale),
            key=source.benchmark_id(benchmark),
            is_category=True,
        )
        for name in names
    )
    rows, scores = tuple(row for row in source.rows if row.name in tables), list[Cell]()
    for column in columns:
        cells = []
        for row in rows:
            result, own = results[row.name], tables[row.name]
            metric, own = result.metrics[primary], own[own["category"] == column.metric]
            value, n = math.nan, 0
            if not own.empty:
                value = value_of(own, metric)
                n = int(own[metric.columns[0]].notna().sum())  # as in the main table
            known = None if math.isnan(value) else value * column.scale
            cells.append(Cell(row=row.name, column=column, rows=(row.name,), value=known, n=n, results=(result,)))
        scores += completed(cells, items)
    return Table(rows=rows, columns=columns, scores=scores)


def _figure(table: Table, colors: dict[str, int]) -> Figure:
    first = table.columns[0]
    significant = [
        f"{cell.row} {cell.delta.verdict} on {cell.column.metric}"
        for column in table.columns
        for cell in table.cells(column)
        if cell.delta and cell.delta.significant
    ]
    about_tests = ""
    if any(cell.delta for cell in table.scores):
        about_tests = (
            f"; significantly different from the baseline: {join_with_and(significant) if significant else 'none'}"
        )
    size = f"{len(table.rows)} models on {len(table.columns)} categories"

    def plot(axes: Any, palette: Palette) -> None:
        step = 0.72 / max(1, len(table.rows))
        for category, column in enumerate(table.columns):
            for index, cell in enumerate(table.cells(column)):
                if cell.value is None:
                    continue
                y = category + step * (index - (len(table.rows) - 1) / 2)
                color = palette.series(colors.get(cell.row, 0))
                if cell.ci_low is not None:
                    axes.hlines(y, cell.ci_low, cell.ci_high, color=color, linewidth=1.3, alpha=0.7)
                verdict = cell.delta.verdict if cell.delta else "not significant"
                axes.plot(cell.value, y, _MARKERS[verdict], color=color, markersize=4.5)
        names = [shorten_name(column.metric.replace("_", " ")) for column in table.columns]
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)

    return Figure(
        name=safe_file_name("kinds", first.key),
        title=first.title,
        alt=f"{first.title} of {size}, with intervals{about_tests}.",
        plot=plot,
        x_label=first.label,
        legend=tuple(LegendEntry(color=colors.get(row.name, 0), label=row.name) for row in table.rows),
        headers=("category", "items", *(row.name for row in table.rows)),
        rows=tuple(
            (
                column.metric,
                str(max(cell.n for cell in table.cells(column))),
                *(
                    cell.score + (f" ({_SIGNS[cell.delta.verdict]} {cell.delta.number})" if cell.delta else "")
                    for cell in table.cells(column)
                ),
            )
            for column in table.columns
        ),
        height=0.7 + len(table.columns) * (0.13 + 0.11 * len(table.rows)),
        vertical_grid=True,
    )
