"""Scores against a setting: the figures that a study asks for, from the numbers of its main table.

Beside each curve stands its slope: the score's change where the setting doubles, by least squares on the setting's
logarithm: a weighted sum of the points, whose interval has the noise of images and of training as theirs have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.report.cell_text import column_title, decimals, score
from benchmarks.report.figure import Figure, FigureSet, LegendEntry, plot_points, safe_file_name
from benchmarks.report.palette import Palette
from benchmarks.report.report import Report
from benchmarks.report.significance import Evidence
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import format_number
from benchmarks.results.item_scores import comparable
from benchmarks.results.noise import contrast_estimate
from benchmarks.study.study_record import RowRecord
from benchmarks.study.sweep import FigureSpec


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Change of the score for each doubling of the setting, scaled as shown, and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SweepCurve:
    """One line: value on the axis → cell; a level line has one cell and no values."""

    name: str
    color: int
    points: Mapping[float, Cell]
    level: Cell | None = None
    slope: Slope | None = None

    @property
    def cells(self) -> list[tuple[float | None, Cell]]:
        """Its points, or the level."""
        return [*self.points.items()] if self.level is None else [(None, self.level)]


@dataclass(frozen=True, kw_only=True)
class SweepPanel:
    """A metric against a setting; ``slope`` is the mean of its curves'."""

    name: str
    title: str
    label: str
    column: Column
    values: tuple[float, ...]
    curves: tuple[SweepCurve, ...]
    slope: Slope | None


def sweep_panels(report: Report) -> list[SweepPanel]:
    """A panel for each figure and primary metric that has a number."""
    study = report.source.study
    return [
        panel
        for place, figure in enumerate(study.figures if study else ())
        for column in report.table.columns
        if column.benchmark == figure.benchmark
        and (panel := _panel(figure, report, column, name=safe_file_name("setting", str(place), column.metric)))
    ]


def _panel(figure: FigureSpec, report: Report, column: Column, *, name: str) -> SweepPanel | None:
    table = report.table
    measured = [(row, cell) for row in table.rows if (cell := table.cell(row, column)).value is not None]
    of_entry = [(row, cell) for row, cell in measured if row.sweep_name == figure.encoders]
    if not of_entry:
        return None
    group = min(cell.group for _, cell in of_entry)  # what was measured otherwise is on no curve
    also = [name for name in ("llm", "llava_variant") if len({getattr(row, name) for row, _ in of_entry}) > 1]
    points: dict[str, dict[float, Cell]] = {}
    for row, cell in of_entry:
        if cell.group == group:
            points.setdefault(_name(row, figure, also), {})[float(row.sweep_settings[figure.x])] = cell
    curves = [
        SweepCurve(name=curve, color=place, points=found, slope=mean_slope([found], report.evidence))
        for place, (curve, found) in enumerate(points.items())
    ]
    for row, cell in measured:
        if cell.group == group and {row.encoder, row.sweep_name} & set(figure.reference_lines):
            curves.append(SweepCurve(name=row.name, color=len(curves), points={}, level=cell))
    label = figure.label or figure.x
    return SweepPanel(
        name=name,
        title=f"{figure.title or figure.encoders}: {column_title(column)}",
        label=label,
        column=column,
        values=tuple(sorted({value for found in points.values() for value in found})),
        curves=tuple(curves),
        slope=mean_slope([*points.values()], report.evidence),
    )


def mean_slope(curves: Sequence[Mapping[float, Cell]], evidence: Evidence) -> Slope | None:
    """The mean slope of some curves; None where nothing can be fitted.

    Args:
        curves: value on the axis → cell.
        evidence: of the cells.
    """
    if any(len(points) < 2 or min(points) <= 0 for points in curves):
        return None
    cells = [cell for points in curves for cell in points.values()]
    weights = [weight / len(curves) for points in curves for weight in _slope_weights([*points])]
    low, high = _slope_interval(cells, weights, evidence) or (None, None)
    value = sum(weight * (cell.value or 0.0) for weight, cell in zip(weights, cells, strict=True))
    return Slope(value=value, low=low, high=high)


def _slope_weights(setting: Sequence[float]) -> list[float]:
    """What each point counts in the slope of a line through all, by least squares on the setting's logarithm."""
    logs = [math.log2(value) for value in setting]
    centered = [log - fmean(logs) for log in logs]
    squares = sum(each**2 for each in centered)
    return [each / squares for each in centered]


def _slope_interval(cells: Sequence[Cell], weights: Sequence[float], evidence: Evidence) -> tuple[float, float] | None:
    """The interval of a weighted sum; None where the points do not share their items, or nothing is known of noise."""
    scores, noise = [found for cell in cells if (found := evidence.scores(cell))], evidence.training_noise(cells[0])
    if len(scores) < len(cells) or not all(comparable(scores[0], each) for each in scores):
        return None
    if noise.without_spread and any(each.trained for each in scores):
        return None
    low, high = (end * cells[0].column.scale for end in contrast_estimate(scores, weights, noise).interval())
    return None if math.isnan(low) else (low, high)


def _name(row: RowRecord, figure: FigureSpec, also: Sequence[str]) -> str:
    """The settings that tell this row's curve from the others; ``also`` are fields of the row that do."""
    own = (
        ", ".join(str(value) for setting, value in row.sweep_settings.items() if setting != figure.x) or row.sweep_name
    )
    return ", ".join([own, *(str(getattr(row, name)) for name in also)])


_LEAD = (
    "Vertical strokes and shaded bands are the 95 % intervals of the table above. Dashed: rows without this setting. A "
    "slope is the change for each doubling of the setting, fitted on its logarithm, with a 95 % interval as the "
    "points have."
)


def sweep_figures(report: Report) -> FigureSet | None:
    """The panels of two values or more as figures; None where the study asks for none or there is no number."""
    figures = tuple(_figure(panel) for panel in sweep_panels(report) if len(panel.values) > 1)
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def _figure(panel: SweepPanel) -> Figure:
    values = [f"{value:g}" for value in panel.values]
    blanks = ("",) * len(values)
    return Figure(
        name=panel.name,
        title=panel.title,
        alt=f"Line chart of {panel.title} against {panel.label} with 95 % intervals: {len(panel.curves)} lines.",
        plot=lambda axes, inks: _plot(panel, axes, inks),
        x_label=panel.label,
        y_label=panel.column.label,
        legend=tuple(LegendEntry(color=curve.color, label=curve.name) for curve in panel.curves),
        heads=(panel.label, *values, "slope"),
        rows=(
            *(_line(curve, panel) for curve in panel.curves),
            ("all curves", *blanks, _sloped(panel.slope, panel.column)),
        ),
    )


def _line(curve: SweepCurve, panel: SweepPanel) -> tuple[str, ...]:
    if curve.level:
        return (f"{curve.name}, without this setting", *[_said(curve.level)] * len(panel.values), "—")
    points = [_said(curve.points[value]) if value in curve.points else "—" for value in panel.values]
    return (curve.name, *points, _sloped(curve.slope, panel.column))


def _said(cell: Cell) -> str:
    return score(cell)


def _sloped(slope: Slope | None, column: Column) -> str:
    if slope is None:
        return "—"
    value, *ends = (format_number(each, decimals(column), sign=True) for each in (slope.value, slope.low, slope.high))
    return f"{value} ({ends[0]} to {ends[1]})" if slope.low is not None else value


def _plot(panel: SweepPanel, axes: Any, inks: Palette) -> None:
    for curve in panel.curves:
        color = inks.series(curve.color)
        if curve.level is not None:
            axes.axhline(curve.level.value, color=color, linewidth=1.4, linestyle="--")
            if curve.level.ci_low is not None:
                axes.axhspan(curve.level.ci_low, curve.level.ci_high, color=color, alpha=0.08, linewidth=0)
            continue
        plot_points(axes, sorted(curve.points.items(), key=lambda point: point[0]), color)
    axes.set_xticks(panel.values, [f"{value:g}" for value in panel.values])
