"""A figure as data, and the colors of figures: built by the sections, drawn on the page and in SVG and PDF files."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.table import Cell

SERIES_COLORS = 8
_STYLE = Path(__file__).parent / "templates" / "style.css"
_SERIES = (f"series-{index}" for index in range(SERIES_COLORS))
COLOR_NAMES = ("ink", "ink-soft", "line", "sheet", "gain", "loss", *_SERIES)


@dataclass(frozen=True)
class Palette:
    """Name of a color in ``style.css`` → hexadecimal color."""

    colors: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.colors[name]

    def series(self, index: int) -> str:
        """The color of the model at an index of the table."""
        return self.colors[f"series-{index % SERIES_COLORS}"]


@functools.cache
def light_palette() -> Palette:
    """The colors of the page in its light scheme; no two are equal."""
    colors = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}),", _STYLE.read_text(encoding="utf-8")))
    return Palette({name: colors[name] for name in COLOR_NAMES})


Plot = Callable[[Any, Palette], None]


def safe_file_name(*parts: str) -> str:
    """Join parts of a figure's name, which may come from untrusted files, to a file name."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """An entry of a figure's legend: the index of its color in the series, and its label."""

    color: int
    label: str


def plot_points(axes: Any, points: Sequence[tuple[float, Cell]], color: str, style: str = "-") -> None:
    """Plot a line through (x, cell) points, with vertical strokes for their 95 % intervals."""
    axes.plot(
        *zip(*((x, cell.value) for x, cell in points), strict=True),
        style,
        color=color,
        linewidth=1.8,
        marker="o",
        markersize=3.5,
    )
    intervals = [(x, cell.ci_low, cell.ci_high) for x, cell in points if cell.ci_low is not None]
    if intervals:
        axes.vlines(*zip(*intervals, strict=True), color=color, linewidth=1.2, alpha=0.6)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Args:
        name: unique in the report, and a valid file name.
        title: above it.
        alt: its alternative text; the numbers are in the table.
        plot: draws on matplotlib's axes with a palette.
        x_label: name of the x axis.
        y_label: name of the y axis; may be empty.
        legend: the colors and their labels.
        headers: of the table of the drawn numbers.
        rows: of that table; the first cell of each is its header.
        height: in inches; the width is 4.4.
        vertical_grid: draw the grid lines at the values of the x axis instead of the y axis.
    """

    name: str
    title: str
    alt: str
    plot: Plot
    x_label: str
    y_label: str = ""
    legend: tuple[LegendEntry, ...] = ()
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    height: float = 2.7
    vertical_grid: bool = False


@dataclass(frozen=True, kw_only=True)
class FigureSet:
    """The content of a section of figures.

    Args:
        lead: how to read the figures.
        figures: in order; the page folds those after the sixth.
        notes: below them.
        headers: of a table below them; empty without a table.
        rows: of that table.
    """

    lead: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
