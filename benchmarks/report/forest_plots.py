"""Forest plots: the difference of each model from its baseline with its interval, one figure per metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.report.cell_text import UNCREDITED, column_header, column_title, decimals
from benchmarks.report.figure import Figure, FigureSet, Palette, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.table import BaselineDifference, Cell, Column, Table
from benchmarks.results.formatting import (
    decimals_needed,
    difference_ci_text,
    format_number,
    join_with_and,
    shorten_name,
)

_LEAD = (
    "Each model minus its baseline, with the 95 % interval, in the order of the differences. Filled triangles are "
    "significant, Holm-corrected for all comparisons of the main table (▲ better, ▼ worse); open circles are not."
)
_CREDIT_NOTE = (
    f" {UNCREDITED}: the model's score is not credited to the images; a diamond: a significant difference whose better "
    "score is not."
)


def forest_plots(report: Report) -> FigureSet | None:
    """A figure for each ranked metric with a difference from a baseline; None without any."""
    compared = [(column, _compared_cells(report.table, column)) for column in report.table.columns]
    figures = tuple(_difference_figure(column, cells) for column, cells in compared if cells)
    shown = [difference for _, cells in compared for difference in cells]
    note = _CREDIT_NOTE if any(cell.credited is False or delta.credited is False for cell, delta in shown) else ""
    return FigureSet(lead=_LEAD + note, figures=figures) if figures else None


Difference = tuple[Cell, BaselineDifference]


def _compared_cells(table: Table, column: Column) -> list[Difference]:
    """The cells of a ranked column with their differences, the largest first."""
    if not column.ranked:
        return []
    cells = [(cell, cell.delta) for cell in table.column_cells(column) if cell.delta is not None]
    return sorted(cells, key=lambda each: -each[1].value)


def effect_direction(cell: Cell, delta: BaselineDifference) -> str:
    """``better``, ``worse``, ``not significant``, or ``not credited``: the better score is not, to the images."""
    if not delta.significant:
        return "not significant"
    if delta.credited is False:
        return "not credited"
    return "better" if (delta.value > 0) == bool(cell.column.higher_is_better) else "worse"


def _difference_figure(column: Column, cells: Sequence[Difference]) -> Figure:
    places, baselines = decimals(column), list(dict.fromkeys(delta.baseline for _, delta in cells))
    names = [
        cell.row
        + (UNCREDITED if cell.credited is False else "")
        + ("" if len(baselines) == 1 else f" − {delta.baseline}")
        for cell, delta in cells
    ]
    significant = [name for name, (_, delta) in zip(names, cells, strict=True) if delta.significant]
    return Figure(
        name=safe_file_name("forest", column.key, column.metric),
        title=column_header(column),
        alt=f"Forest plot of differences on {column_title(column)}: "
        + (f"significant: {join_with_and(significant)}." if significant else f"none of {len(cells)} is significant."),
        plot=lambda axes, palette: _plot(cells, names, axes, palette),
        x_label=f"difference from {shorten_name(baselines[0])}" if len(baselines) == 1 else "difference",
        headers=("model", "difference", "95 % interval", "corrected p", "significant", "minimum detectable difference"),
        rows=tuple(
            (
                name,
                format_number(delta.value, places, sign=True),
                difference_ci_text(delta.ci_low, delta.ci_high, places),
                f"{delta.p_adjusted:.3g}",
                effect_direction(cell, delta),
                format_number(
                    delta.min_detectable_difference, decimals_needed(delta.min_detectable_difference, places)
                ),
            )
            for name, (cell, delta) in zip(names, cells, strict=True)
        ),
        height=0.75 + 0.24 * len(cells),
        vertical_grid=True,
    )


_MARKERS = {
    "better": ("^", "gain"),
    "worse": ("v", "loss"),
    "not credited": ("D", "ink-soft"),
    "not significant": ("o", "ink-soft"),
}


def _plot(cells: Sequence[Difference], names: list[str], axes: Any, palette: Palette) -> None:
    axes.axvline(0, color=palette["ink-soft"], linewidth=1)
    for y, (cell, delta) in enumerate(cells):
        direction = effect_direction(cell, delta)
        marker, color_name = _MARKERS[direction]
        color = palette[color_name]
        if math.isfinite(delta.ci_low):
            axes.hlines(y, delta.ci_low, delta.ci_high, color=color, linewidth=1.4)
        face, size = (palette["sheet"], 4.5) if direction == "not significant" else (color, 5.5)
        axes.plot(delta.value, y, marker, color=color, markerfacecolor=face, markersize=size)
    axes.set_yticks(range(len(names)), [shorten_name(name, 40 if " − " in name else 28) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
