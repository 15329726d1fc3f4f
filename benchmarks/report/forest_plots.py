"""Forest plots: for each measure every row's difference to its baseline, with its interval."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.report.cell_text import column_head, column_title, decimals
from benchmarks.report.figure import Figure, FigureSet, safe_file_name
from benchmarks.report.palette import Palette
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
    "Each row minus its baseline, with the 95 % interval; rows stand in the order of their differences. A filled "
    "triangle was shown to differ, after correction for all comparisons of the main table (▲ better, ▼ worse); an open "
    "circle was not."
)


def forest_plots(report: Report) -> FigureSet | None:
    """A figure for every ranked measure on which some row can be compared with its baseline; None where none can."""
    compared = [(column, compared_cells(report.table, column)) for column in report.table.columns]
    figures = tuple(_figure(column, cells) for column, cells in compared if cells)
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def compared_cells(table: Table, column: Column) -> list[tuple[Cell, BaselineDifference]]:
    """The cells of a ranked column that have a difference, the largest first."""
    if column.higher_is_better is None:
        return []
    found = [(cell, cell.delta) for cell in table.column_cells(column) if cell.delta is not None]
    return sorted(found, key=lambda each: -each[1].value)


def effect_direction(cell: Cell, delta: BaselineDifference) -> str:
    """``better``, ``worse`` or ``not shown``."""
    if not delta.significant:
        return "not shown"
    return "better" if (delta.value > 0) == bool(cell.column.higher_is_better) else "worse"


def _figure(column: Column, cells: list[tuple[Cell, BaselineDifference]]) -> Figure:
    places, baselines = decimals(column), list(dict.fromkeys(delta.baseline for _, delta in cells))
    names = [cell.row if len(baselines) == 1 else f"{cell.row} − {delta.baseline}" for cell, delta in cells]
    shown = [name for name, (cell, delta) in zip(names, cells, strict=True) if delta.significant]
    return Figure(
        name=safe_file_name("forest", column.benchmark, column.metric),
        title=column_head(column),
        alt=f"Forest plot of differences on {column_title(column)}: "
        + (f"shown to differ: {join_with_and(shown)}." if shown else f"none of {len(cells)} was shown to differ."),
        plot=lambda axes, inks: _plot(cells, names, axes, inks),
        x_label=f"difference to {shorten_name(baselines[0])}" if len(baselines) == 1 else "difference",
        heads=("row", "difference", "95 % interval", "corrected p", "shown", "smallest that could be shown"),
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
        upright=True,
    )


_MARKERS = {"better": ("^", "gain"), "worse": ("v", "loss"), "not shown": ("o", "ink-soft")}


def _plot(cells: list[tuple[Cell, BaselineDifference]], names: list[str], axes: Any, inks: Palette) -> None:
    axes.axvline(0, color=inks["ink-soft"], linewidth=1)
    for place, (cell, delta) in enumerate(cells):
        kind = effect_direction(cell, delta)
        marker, ink = _MARKERS[kind]
        if math.isfinite(delta.ci_low):
            axes.hlines(place, delta.ci_low, delta.ci_high, color=inks[ink], linewidth=1.4)
        face = inks["sheet"] if kind == "not shown" else inks[ink]
        axes.plot(
            delta.value, place, marker, color=inks[ink], markerfacecolor=face, markersize=5.5 if marker != "o" else 4.5
        )
    axes.set_yticks(range(len(names)), [shorten_name(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
