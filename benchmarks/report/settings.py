"""Scores against a setting: the figures that a study asks for, from the numbers of its main table.

Beside each curve stands its slope: the score's change where the setting doubles, by least squares on the setting's
logarithm. With several seeds it is fitted seed by seed, and its interval is Student's over these slopes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import Any

from benchmarks.report.figure import Figure, FigureSet, Key, file_name
from benchmarks.report.inks import Inks
from benchmarks.report.model import Report
from benchmarks.report.seeds import t_interval
from benchmarks.report.table import Cell, Column, Table
from benchmarks.study.grid import FigureSpec
from benchmarks.study.record import RowRecord
from benchmarks.wording import column_title, decimals, number, score


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Change of the score for each doubling of the setting, scaled as shown, and its 95 % interval over seeds."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SettingCurve:
    """One line: value on the axis → cell; a level line has one cell and no values."""

    name: str
    colour: int
    points: Mapping[float, Cell]
    level: Cell | None = None
    slope: Slope | None = None

    @property
    def cells(self) -> list[tuple[float | None, Cell]]:
        """Its points, or the level."""
        return [*self.points.items()] if self.level is None else [(None, self.level)]


@dataclass(frozen=True, kw_only=True)
class SettingPanel:
    """A metric against a setting; ``slope`` is the mean of its curves'."""

    name: str
    title: str
    label: str
    column: Column
    values: tuple[float, ...]
    curves: tuple[SettingCurve, ...]
    slope: Slope | None


def setting_panels(report: Report) -> list[SettingPanel]:
    """A panel for each figure and primary metric that has a number."""
    study = report.source.study
    return [
        panel
        for place, figure in enumerate(study.figures if study else ())
        for column in report.table.columns
        if column.benchmark == figure.benchmark
        and (panel := _panel(figure, report.table, column, name=file_name("setting", str(place), column.metric)))
    ]


def _panel(figure: FigureSpec, table: Table, column: Column, *, name: str) -> SettingPanel | None:
    measured = [(row, cell) for row in table.rows if (cell := table.cell(row, column)).value is not None]
    of_entry = [(row, cell) for row, cell in measured if row.entry == figure.encoders]
    if not of_entry:
        return None
    group = min(cell.group for _, cell in of_entry)  # what was measured otherwise is on no curve
    also = [name for name in ("llm", "recipe") if len({getattr(row, name) for row, _ in of_entry}) > 1]
    points: dict[str, dict[float, Cell]] = {}
    for row, cell in of_entry:
        if cell.group == group:
            points.setdefault(_name(row, figure, also), {})[float(row.settings[figure.x])] = cell
    curves = [
        SettingCurve(name=curve, colour=place, points=found, slope=mean_slope([found]))
        for place, (curve, found) in enumerate(points.items())
    ]
    for row, cell in measured:
        if cell.group == group and {row.encoder, row.entry} & set(figure.beside):
            curves.append(SettingCurve(name=row.name, colour=len(curves), points={}, level=cell))
    label = figure.label or figure.x
    return SettingPanel(
        name=name,
        title=f"{figure.title or figure.encoders}: {column_title(column)}",
        label=label,
        column=column,
        values=tuple(sorted({value for found in points.values() for value in found})),
        curves=tuple(curves),
        slope=mean_slope([*points.values()]),
    )


def mean_slope(curves: Sequence[Mapping[float, Cell]]) -> Slope | None:
    """The mean slope of some curves, fitted for each seed that all their points have; None where nothing can be fitted.

    Args:
        curves: value on the axis → cell.
    """
    cells = [cell for points in curves for cell in points.values()]
    if any(len(points) < 2 or min(points) <= 0 for points in curves):
        return None
    seeds = [seed for seed in cells[0].by_seed if all(seed in cell.by_seed for cell in cells)]
    if not seeds:
        return Slope(value=fmean(_slope({x: cell.value or 0.0 for x, cell in points.items()}) for points in curves))
    slopes = [
        fmean(_slope({x: cell.by_seed[seed] for x, cell in points.items()}) for points in curves) for seed in seeds
    ]
    low, high = t_interval(slopes) or (None, None)
    return Slope(value=fmean(slopes), low=low, high=high)


def _slope(points: Mapping[float, float]) -> float:
    return linear_regression([math.log2(x) for x in points], [*points.values()]).slope


def _name(row: RowRecord, figure: FigureSpec, also: Sequence[str]) -> str:
    """The settings that tell this row's curve from the others; ``also`` are fields of the row that do."""
    own = ", ".join(str(value) for setting, value in row.settings.items() if setting != figure.x) or row.entry
    return ", ".join([own, *(str(getattr(row, name)) for name in also)])


_LEAD = (
    "Vertical strokes and shaded bands are the 95 % intervals of the table above. Dashed: rows without this setting. A "
    "slope is the change for each doubling of the setting, fitted on its logarithm seed by seed, with the 95 % "
    "interval over seeds."
)


def setting_figures(report: Report) -> FigureSet | None:
    """The panels of two values or more as figures; None where the study asks for none or there is no number."""
    figures = tuple(_figure(panel) for panel in setting_panels(report) if len(panel.values) > 1)
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def _figure(panel: SettingPanel) -> Figure:
    values = [f"{value:g}" for value in panel.values]
    blanks = ("",) * len(values)
    return Figure(
        name=panel.name,
        title=panel.title,
        alt=f"Line chart of {panel.title} against {panel.label} with 95 % intervals: {len(panel.curves)} lines.",
        plot=lambda axes, inks: _plot(panel, axes, inks),
        x_label=panel.label,
        y_label=panel.column.label,
        legend=tuple(Key(colour=curve.colour, label=curve.name) for curve in panel.curves),
        heads=(panel.label, *values, "slope"),
        rows=(
            *(_line(curve, panel) for curve in panel.curves),
            ("all curves", *blanks, _sloped(panel.slope, panel.column)),
        ),
    )


def _line(curve: SettingCurve, panel: SettingPanel) -> tuple[str, ...]:
    if curve.level:
        return (f"{curve.name}, without this setting", *[_said(curve.level)] * len(panel.values), "—")
    points = [_said(curve.points[value]) if value in curve.points else "—" for value in panel.values]
    return (curve.name, *points, _sloped(curve.slope, panel.column))


def _said(cell: Cell) -> str:
    return score(cell)


def _sloped(slope: Slope | None, column: Column) -> str:
    if slope is None:
        return "—"
    value, *ends = (number(each, decimals(column), sign=True) for each in (slope.value, slope.low, slope.high))
    return f"{value} ({ends[0]} to {ends[1]})" if slope.low is not None else value


def _plot(panel: SettingPanel, axes: Any, inks: Inks) -> None:
    for curve in panel.curves:
        colour = inks.series(curve.colour)
        if curve.level is not None:
            axes.axhline(curve.level.value, color=colour, linewidth=1.4, linestyle="--")
            if curve.level.low is not None:
                axes.axhspan(curve.level.low, curve.level.high, color=colour, alpha=0.08, linewidth=0)
            continue
        x = sorted(curve.points)
        cells = [curve.points[value] for value in x]
        axes.plot(x, [cell.value for cell in cells], color=colour, linewidth=1.8, marker="o", markersize=3.5)
        ends = [(value, cell.low, cell.high) for value, cell in zip(x, cells, strict=True) if cell.low is not None]
        if ends:
            axes.vlines(*zip(*ends, strict=True), color=colour, linewidth=1.2, alpha=0.6)
    axes.set_xticks(panel.values, [f"{value:g}" for value in panel.values])
