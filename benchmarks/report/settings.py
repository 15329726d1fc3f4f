"""Scores against a setting: the figures that a study asks for, from the numbers of its main table.

Beside each curve stands its slope: the score's change where the setting doubles, by least squares on the setting's
logarithm. With several seeds it is fitted seed by seed, and its interval is Student's over these slopes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import TYPE_CHECKING, Any

from benchmarks.report.drawing import draw_panel, series_colour
from benchmarks.report.seeds import t_interval
from benchmarks.report.table import Cell, Column, Table
from benchmarks.report.wording import column_title
from benchmarks.study.grid import FigureSpec
from benchmarks.study.record import RowRecord

if TYPE_CHECKING:
    from benchmarks.report.model import Report


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
    """A metric against a setting; ``slope`` is the mean of its curves'. Matplotlib has escaped all text in ``svg``."""

    title: str
    label: str
    column: Column
    values: tuple[float, ...]
    curves: tuple[SettingCurve, ...]
    slope: Slope | None
    svg: str


def setting_panels(report: Report) -> list[SettingPanel]:
    """A panel for each figure and primary metric that has a number."""
    study = report.source.study
    return [
        panel
        for number, figure in enumerate(study.figures if study else ())
        for column in report.table.columns
        if column.benchmark == figure.benchmark
        and (panel := _panel(figure, report.table, column, salt=f"setting{number}{column.metric}"))
    ]


def _panel(figure: FigureSpec, table: Table, column: Column, *, salt: str) -> SettingPanel | None:
    points: dict[str, dict[float, Cell]] = {}
    for row in table.rows:
        cell = table.cell(row, column)
        if row.entry == figure.encoders and cell.value is not None:
            points.setdefault(_name(row, figure), {})[float(row.settings[figure.x])] = cell
    if not points:
        return None
    curves = [
        SettingCurve(name=name, colour=place, points=found, slope=mean_slope([found]))
        for place, (name, found) in enumerate(points.items())
    ]
    for row in table.rows:
        cell = table.cell(row, column)
        if cell.value is not None and {row.encoder, row.entry} & set(figure.beside):
            curves.append(SettingCurve(name=row.name, colour=len(curves), points={}, level=cell))
    label = figure.label or figure.x
    return SettingPanel(
        title=f"{figure.title or figure.encoders}: {column_title(column)}",
        label=label,
        column=column,
        values=tuple(sorted({value for found in points.values() for value in found})),
        curves=tuple(curves),
        slope=mean_slope([*points.values()]),
        svg=_draw(curves, x_label=label, y_label=column.label, salt=salt),
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


def _name(row: RowRecord, figure: FigureSpec) -> str:
    """The settings that tell this row's curve from the others."""
    return ", ".join(str(value) for setting, value in row.settings.items() if setting != figure.x) or row.entry


def _draw(curves: Sequence[SettingCurve], *, x_label: str, y_label: str, salt: str) -> str:
    def plot(axes: Any) -> None:
        for curve in curves:
            colour = series_colour(curve.colour)
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
        values = sorted({value for curve in curves for value in curve.points})
        axes.set_xticks(values, [f"{value:g}" for value in values])

    return draw_panel(plot, x_label=x_label, y_label=y_label, salt=salt)
