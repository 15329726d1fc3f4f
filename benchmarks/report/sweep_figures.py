"""Scores against a setting: the figures that a study configures, from the numbers of its main table.

Each curve has a slope: the change of the score per doubling of the setting, by least squares on the setting's
logarithm. It is a weighted sum of the points, so its interval includes the same variance over images and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.report.cell_text import column_title, decimals, score
from benchmarks.report.figure import Figure, FigureSet, LegendEntry, Palette, plot_points, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.significance import Evidence
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import format_number
from benchmarks.results.item_scores import comparable
from benchmarks.results.noise import contrast_estimate
from benchmarks.study.rows import RowRecord
from benchmarks.study.sweep import FigureSpec


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Change of the score per doubling of the setting, scaled, and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class SweepCurve:
    """One curve: value on the x axis → cell; a horizontal reference line has the cell ``level`` and no points."""

    name: str
    color: int
    points: Mapping[float, Cell]
    level: Cell | None = None
    slope: Slope | None = None

    @property
    def cells(self) -> list[tuple[float | None, Cell]]:
        """The points, or the level."""
        return [*self.points.items()] if self.level is None else [(None, self.level)]


@dataclass(frozen=True, kw_only=True)
class SweepPanel:
    """A metric against a setting; ``slope`` is the mean slope of its curves."""

    name: str
    title: str
    label: str
    column: Column
    values: tuple[float, ...]
    curves: tuple[SweepCurve, ...]
    slope: Slope | None


def sweep_panels(report: Report) -> list[SweepPanel]:
    """A panel for each configured figure and metric with a number."""
    study = report.source.study
    return [
        panel
        for index, figure in enumerate(study.figures if study else ())
        for column in report.table.columns
        if column.key == figure.benchmark
        and (panel := _panel(figure, report, column, name=safe_file_name("setting", str(index), column.metric)))
    ]


def _panel(figure: FigureSpec, report: Report, column: Column, *, name: str) -> SweepPanel | None:
    table = report.table
    measured = [(row, cell) for row in table.rows if (cell := table.cell(row, column)).value is not None]
    swept = [(row, cell) for row, cell in measured if row.sweep_name == figure.encoders]
    if not swept:
        return None
    group = min(cell.group for _, cell in swept)  # a curve has one protocol
    varying = [name for name in ("llm", "llava_variant") if len({getattr(row, name) for row, _ in swept}) > 1]
    points: dict[str, dict[float, Cell]] = {}
    for row, cell in swept:
        if cell.group == group:
            points.setdefault(_curve_name(row, figure, varying), {})[float(row.sweep_settings[figure.x])] = cell
    curves = [
        SweepCurve(name=curve, color=index, points=cells, slope=mean_slope([cells], report.evidence))
        for index, (curve, cells) in enumerate(points.items())
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
        values=tuple(sorted({value for cells in points.values() for value in cells})),
        curves=tuple(curves),
        slope=mean_slope([*points.values()], report.evidence),
    )


def mean_slope(curves: Sequence[Mapping[float, Cell]], evidence: Evidence) -> Slope | None:
    """The mean slope of some curves; None if a curve has a single point or values that are not positive.

    Args:
        curves: value on the x axis → cell.
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
    """The weight of each point in the slope of a least-squares line on the setting's logarithm."""
    logs = [math.log2(value) for value in setting]
    centered = [log - fmean(logs) for log in logs]
    squares = sum(each**2 for each in centered)
    return [each / squares for each in centered]


def _slope_interval(cells: Sequence[Cell], weights: Sequence[float], evidence: Evidence) -> tuple[float, float] | None:
    """The interval of a weighted sum; None if the points have different items or the seed variance is unknown."""
    scores = [each for cell in cells if (each := evidence.scores(cell))]
    noise = evidence.training_noise(cells[0])
    if len(scores) < len(cells) or not all(comparable(scores[0], each) for each in scores):
        return None
    if noise.without_spread and any(each.trained for each in scores):
        return None
    low, high = (end * cells[0].column.scale for end in contrast_estimate(scores, weights, noise).interval())
    return None if math.isnan(low) else (low, high)


def _curve_name(row: RowRecord, figure: FigureSpec, varying: Sequence[str]) -> str:
    """The other settings of the model, and its fields that vary between curves."""
    settings = ", ".join(str(value) for setting, value in row.sweep_settings.items() if setting != figure.x)
    return ", ".join([settings or row.sweep_name, *(str(getattr(row, name)) for name in varying)])


_LEAD = (
    "Vertical strokes and shaded bands are the 95 % intervals of the table above. Dashed: models without this setting. "
    "A slope is the change per doubling of the setting, fitted on its logarithm, with its 95 % interval."
)


def sweep_figures(report: Report) -> FigureSet | None:
    """The panels with at least two values as figures; None without any."""
    figures = tuple(_figure(panel) for panel in sweep_panels(report) if len(panel.values) > 1)
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def _figure(panel: SweepPanel) -> Figure:
    values = [f"{value:g}" for value in panel.values]
    return Figure(
        name=panel.name,
        title=panel.title,
        alt=f"Line chart of {panel.title} against {panel.label} with 95 % intervals: {len(panel.curves)} lines.",
        plot=lambda axes, palette: _plot(panel, axes, palette),
        x_label=panel.label,
        y_label=panel.column.label,
        legend=tuple(LegendEntry(color=curve.color, label=curve.name) for curve in panel.curves),
        headers=(panel.label, *values, "slope"),
        rows=(
            *(_line(curve, panel) for curve in panel.curves),
            ("all curves", *("" for _ in values), _slope_text(panel.slope, panel.column)),
        ),
    )


def _line(curve: SweepCurve, panel: SweepPanel) -> tuple[str, ...]:
    if curve.level:
        return (f"{curve.name}, without this setting", *[score(curve.level)] * len(panel.values), "—")
    points = [score(curve.points[value]) if value in curve.points else "—" for value in panel.values]
    return (curve.name, *points, _slope_text(curve.slope, panel.column))


def _slope_text(slope: Slope | None, column: Column) -> str:
    if slope is None:
        return "—"
    numbers = (slope.value, slope.low, slope.high)
    value, low, high = (format_number(each, decimals(column), sign=True) for each in numbers)
    return f"{value} ({low} to {high})" if slope.low is not None else value


def _plot(panel: SweepPanel, axes: Any, palette: Palette) -> None:
    for curve in panel.curves:
        color = palette.series(curve.color)
        if curve.level is not None:
            axes.axhline(curve.level.value, color=color, linewidth=1.4, linestyle="--")
            if curve.level.ci_low is not None:
                axes.axhspan(curve.level.ci_low, curve.level.ci_high, color=color, alpha=0.08, linewidth=0)
            continue
        plot_points(axes, sorted(curve.points.items(), key=lambda point: point[0]), color)
    axes.set_xticks(panel.values, [f"{value:g}" for value in panel.values])
