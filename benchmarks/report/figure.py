"""A figure as data: what every section of figures makes, and what the page, SVG and PDF files draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.palette import Palette
from benchmarks.report.table import Cell

MAX_POINT_LABELS = 12
"""How many points of a figure are told apart, by color and number."""

Plot = Callable[[Any, Palette], None]


def safe_file_name(*parts: str) -> str:
    """Parts of a figure's name, which may come from files of others, joined to what is fit for a file."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class LegendEntry:
    """An entry of a figure's legend: the place of its color among the series, and what has that color."""

    color: int
    label: str


@dataclass(frozen=True, kw_only=True)
class PointLabel:
    """What stands beside a point, where there is room: its data coordinates and the text."""

    x: float
    y: float
    text: str


def number_points(
    points: Sequence[tuple[int, str, float, float]],
) -> tuple[tuple[LegendEntry, ...], tuple[PointLabel, ...]]:
    """Legend and labels of points (place of the color, name, x, y): numbers, told in the legend; of many none."""
    if len(points) > MAX_POINT_LABELS:
        return (), ()
    keys = tuple(LegendEntry(color=place, label=f"{place + 1} {name}") for place, name, _, _ in sorted(points))
    return keys, tuple(PointLabel(x=x, y=y, text=str(place + 1)) for place, _, x, y in points)


def plot_points(axes: Any, points: Sequence[tuple[float, Cell]], color: str, style: str = "-") -> None:
    """A line through cells at their places on the x axis, with strokes for their 95 % intervals."""
    x, y = zip(*((place, cell.value) for place, cell in points), strict=True)
    axes.plot(x, y, style, color=color, linewidth=1.8, marker="o", markersize=3.5)
    ends = [(place, cell.ci_low, cell.ci_high) for place, cell in points if cell.ci_low is not None]
    if ends:
        axes.vlines(*zip(*ends, strict=True), color=color, linewidth=1.2, alpha=0.6)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Args:
        name: unique in the report, fit for a file.
        title: above it.
        alt: what it shows, for those who do not see it; the numbers are in the table.
        plot: draws on matplotlib's axes with the inks that it is given.
        x_label: name of the x axis.
        y_label: name of the y axis; may be empty.
        legend: which color is what.
        labels: of points; numbers that stand in the legend.
        heads: of the table of what was drawn.
        rows: of that table; the first cell of each names it.
        height: in inches; figures are 4.4 wide.
        upright: whether lines stand at the values of the x axis instead of the y axis'.
    """

    name: str
    title: str
    alt: str
    plot: Plot
    x_label: str
    y_label: str = ""
    legend: tuple[LegendEntry, ...] = ()
    labels: tuple[PointLabel, ...] = ()
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    height: float = 2.7
    upright: bool = False


@dataclass(frozen=True, kw_only=True)
class FigureSet:
    """What a section of figures shows.

    Args:
        lead: how to read the figures.
        figures: in order; the page folds those behind the sixth.
        remarks: below them.
        heads: of a table below them; no table where empty.
        rows: of that table.
    """

    lead: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
