"""A figure as data: what every section of figures makes, and what the page, SVG and PDF files draw."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.inks import Inks

MOST_NAMES = 12
"""How many points of a figure are told apart, by colour and number."""

Plot = Callable[[Any, Inks], None]


def file_name(*parts: str) -> str:
    """Parts of a figure's name, which may come from files of others, joined to what is fit for a file."""
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Key:
    """An entry of a figure's legend: the place of its colour among the series, and what has that colour."""

    colour: int
    label: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """What stands beside a point, where there is room: its data coordinates and the text."""

    x: float
    y: float
    text: str


def numbered(points: Sequence[tuple[int, str, float, float]]) -> tuple[tuple[Key, ...], tuple[Label, ...]]:
    """Legend and labels of points (place of the colour, name, x, y): numbers, told in the legend; of many none."""
    if len(points) > MOST_NAMES:
        return (), ()
    keys = tuple(Key(colour=place, label=f"{place + 1} {name}") for place, name, _, _ in sorted(points))
    return keys, tuple(Label(x=x, y=y, text=str(place + 1)) for place, _, x, y in points)


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
        legend: which colour is what.
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
    legend: tuple[Key, ...] = ()
    labels: tuple[Label, ...] = ()
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
