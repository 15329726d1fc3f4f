"""Forest plots of the gain of the image: the score of each model minus its score without the image."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.report.cell_text import column_header, column_title, decimals
from benchmarks.report.figure import Figure, FigureSet, Palette, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.table import ALPHA, BlindGain, Cell, Column
from benchmarks.results.formatting import difference_ci_text, format_number, join_or_count, shorten_name

_LEAD = (
    "The score minus that of the same LLaVA on the same questions without their image, with its 95 % interval. Filled "
    "triangles are significant (▲ the image helps, ▼ it hurts); open circles are not. A score is credited to the "
    "images if it is above every run without them."
)
_MARKERS = {1: ("^", "gain"), -1: ("v", "loss"), 0: ("o", "ink-soft")}


def gain_figures(report: Report) -> FigureSet | None:
    """A figure for each ranked metric with blind runs; None without any."""
    figures = tuple(
        _figure(column, lines)
        for column in report.table.columns
        if column.ranked
        and (lines := [(cell, *each) for cell in report.table.column_cells(column) for each in cell.gains.items()])
    )
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def _direction(cell: Cell, gain: BlindGain) -> int:
    if gain.p_value >= ALPHA:
        return 0
    return 1 if gain.credits(cell.column.higher_is_better) else -1


def _figure(column: Column, lines: list[tuple[Cell, str, BlindGain]]) -> Figure:
    places, title = decimals(column), column_title(column)
    names = [f"{cell.row}, {kind}" for cell, kind, _ in lines]
    rows = list(dict.fromkeys(cell.row for cell, *_ in lines if cell.credited))
    return Figure(
        name=safe_file_name("blind", column.key, column.metric),
        title=column_header(column),
        alt=f"Forest plot of the gain of the image on {title}: credited: {join_or_count(rows or ['none'], 'models')}.",
        plot=lambda axes, palette: _plot(lines, names, axes, palette),
        x_label="gain over the score without the image",
        headers=("model", "without the image", "score", "score on these items", "gain", "95 % interval", "p", "items"),
        rows=tuple(
            (
                cell.row,
                kind,
                format_number(gain.blind, places),
                format_number(gain.sighted, places),
                format_number(gain.value, places, sign=True),
                difference_ci_text(gain.ci_low, gain.ci_high, places),
                f"{gain.p_value:.2g}",
                f"{gain.n:,}",
            )
            for cell, kind, gain in lines
        ),
        height=0.75 + 0.24 * len(lines),
        vertical_grid=True,
    )


def _plot(lines: list[tuple[Cell, str, BlindGain]], names: list[str], axes: Any, palette: Palette) -> None:
    axes.axvline(0, color=palette["ink-soft"], linewidth=1)
    for y, (cell, _, gain) in enumerate(lines):
        direction = _direction(cell, gain)
        marker, color_name = _MARKERS[direction]
        color = palette[color_name]
        if math.isfinite(gain.ci_low):
            axes.hlines(y, gain.ci_low, gain.ci_high, color=color, linewidth=1.4)
        face, size = (color, 5.5) if direction else (palette["sheet"], 4.5)
        axes.plot(gain.value, y, marker, color=color, markerfacecolor=face, markersize=size)
    axes.set_yticks(range(len(names)), [shorten_name(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
