"""The plots of a table: differences from the baseline, gains over blind, and scores against a setting or a length.

A curve against a setting has a slope: the change of the score per doubling of the setting, by least squares on the
setting's logarithm. It is a weighted sum of the points, so its interval includes the same variance over images and
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.report.figures import (
    SERIES_COLORS,
    Figure,
    FigureSet,
    LegendEntry,
    Palette,
    plot_points,
    safe_file_name,
)
from benchmarks.report.load_results import ReportSource
from benchmarks.report.table import UNCREDITED, Cell, Column, Table
from benchmarks.results.formatting import format_number, join_or_count, join_with_and, shorten_name
from benchmarks.results.measure import comparable
from benchmarks.results.noise import contrast_estimate
from benchmarks.study.study_record import FigureSpec
from benchmarks.tasks.encoders.long_retrieval import WORD_LIMITS, metric_suffix
from benchmarks.tasks.encoders.retrieval import DIRECTION_LABELS

_MARKERS = {
    "better": ("^", "gain"),
    "worse": ("v", "loss"),
    "not credited": ("D", "ink-soft"),
    "not significant": ("o", "ink-soft"),
}
_LEAD = (
    "Each model minus its baseline, with the 95 % interval, in the order of the differences. Filled triangles are "
    "significant, Holm-corrected for all comparisons of the main table (▲ better, ▼ worse); open circles are not."
)
_CREDIT_NOTE = (
    f" {UNCREDITED}: the model's score is not credited to the images; a diamond: a significant difference whose better "
    "score is not."
)
_GAIN_LEAD = (
    "The score minus that of the same LLaVA on the same questions without their image, with its 95 % interval. Filled "
    "triangles are significant (▲ the image helps, ▼ it hurts); open circles are not. A score is credited to the "
    "images if it is above every run without them."
)


def forest_plots(table: Table) -> FigureSet | None:
    """A figure for each ranked metric with a difference from a baseline; None without any."""
    figures, note = [], ""
    for column in table.columns if table.baselines else ():
        deltas = [cell.delta for cell in table.cells(column) if cell.delta is not None]
        if not deltas or not column.ranked:
            continue
        deltas.sort(key=lambda delta: -delta.value)
        if any(delta.cell.credited is False or delta.credited is False for delta in deltas):
            note = _CREDIT_NOTE
        baselines = list(dict.fromkeys(delta.baseline for delta in deltas))
        names = [
            f"{delta.cell.row}{UNCREDITED * (delta.cell.credited is False)}"
            + (f" − {delta.baseline}" if len(baselines) > 1 else "")
            for delta in deltas
        ]
        significant = [name for name, delta in zip(names, deltas, strict=True) if delta.significant]
        verdict = (
            f"significant: {join_with_and(significant)}." if significant else f"none of {len(deltas)} is significant."
        )
        figures.append(
            Figure(
                name=safe_file_name("forest", column.key, column.metric),
                title=column.title + column.arrow,
                alt=f"Forest plot of differences on {column.title}: {verdict}",
                plot=plot_intervals(names, [(each.value, each.ci_low, each.ci_high, each.verdict) for each in deltas]),
                x_label=f"difference from {shorten_name(baselines[0])}" if len(baselines) == 1 else "difference",
                headers=(
                    *("model", "difference", "95 % interval", "corrected p", "significant"),
                    "minimum detectable difference",
                ),
                rows=tuple(
                    (name, each.number, each.interval, f"{each.p_adjusted:.3g}", each.verdict, each.detectable)
                    for name, each in zip(names, deltas, strict=True)
                ),
                height=0.75 + 0.24 * len(deltas),
                vertical_grid=True,
            )
        )
    return FigureSet(lead=_LEAD + note, figures=tuple(figures)) if figures else None


def gain_figures(table: Table) -> FigureSet | None:
    """A figure for each ranked metric with blind runs; None without any."""
    figures = []
    for column in table.columns:
        lines = [(cell, *each) for cell in table.cells(column) for each in cell.gains.items()]
        if not lines or not column.ranked:
            continue
        points = []
        for *_, gain in lines:
            value, low, high = (math.nan if each is None else each for each in (gain.value, gain.ci_low, gain.ci_high))
            points.append(
                (value, low, high, "better" if gain.credits else "worse" if low > 0 or high < 0 else "not significant")
            )
        credited = list(dict.fromkeys(cell.row for cell, *_ in lines if cell.credited))
        names = join_or_count(credited or ["none"], "models")
        figures.append(
            Figure(
                name=safe_file_name("blind", column.key, column.metric),
                title=column.title + column.arrow,
                alt=f"Forest plot of the gain of the image on {column.title}: credited: {names}.",
                plot=plot_intervals([f"{cell.row}, {kind.replace('_', ' ')}" for cell, kind, _ in lines], points),
                x_label="gain over the score without the image",
                headers=(
                    *("model", "without the image", "score", "score on these items", "gain", "95 % interval"),
                    *("p", "items"),
                ),
                rows=tuple(
                    (
                        *(cell.row, kind.replace("_", " "), *gain_texts(gain)),
                        *(f"{gain.against_zero.p_value:.2g}" if gain.against_zero else "—", f"{gain.n:,}"),
                    )
                    for cell, kind, gain in lines
                ),
                height=0.75 + 0.24 * len(lines),
                vertical_grid=True,
            )
        )
    return FigureSet(lead=_GAIN_LEAD, figures=tuple(figures)) if figures else None


def gain_texts(gain: Cell) -> tuple[str, str, str, str]:
    """The score without the image, with it on the same items, and the gain with its interval, as text."""
    text, baseline, value = gain.column.text, gain.baseline, gain.value
    sighted = None if baseline is None or value is None else baseline + value
    return text(baseline), text(sighted), text(value, sign=True), gain.signed_interval


def plot_intervals(
    names: Sequence[str], lines: Iterable[tuple[float, float, float, str]], *, zero: bool = True
) -> Callable[[Any, Palette], None]:
    """A drawing of numbers and their intervals below each other, with the marker of a verdict, and a line at zero."""

    def plot(axes: Any, palette: Palette) -> None:
        if zero:
            axes.axvline(0, color=palette["ink-soft"], linewidth=1)
        for y, (value, low, high, verdict) in enumerate(lines):
            marker, color = _MARKERS[verdict][0], palette[_MARKERS[verdict][1]]
            if math.isfinite(low):
                axes.hlines(y, low, high, color=color, linewidth=1.4)
            face, size = (palette["sheet"], 4.5) if verdict == "not significant" else (color, 5.5)
            axes.plot(value, y, marker, color=color, markerfacecolor=face, markersize=size)
        axes.set_yticks(range(len(names)), [shorten_name(name, 40 if " − " in name else 28) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)

    return plot


_SWEEP_LEAD = (
    "Vertical strokes and shaded bands are the 95 % intervals of the table above. Dashed: models without this setting. "
    "A slope is the change per doubling of the setting, fitted on its logarithm, with its 95 % interval."
)
_LENGTH_LEAD = (
    "Recall with captions cut to their first words, on the same images; the full captions are on the right. "
    "Vertical strokes are 95 % intervals. A curve that stays flat for longer captions shows a text tower that has "
    "stopped reading: next to each name is the ratio of captions whose last word it does not see. "
    "Dotted: measured under different settings than the first model."
)
_FULL = "whole"


@dataclass(frozen=True, kw_only=True)
class Slope:
    """Change of the score per doubling of the setting, scaled, and its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, column: Column) -> str:
        """``+1.2 (+0.4 to +2.0)``."""
        value, low, high = (column.text(each, sign=True) for each in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.low is not None else value


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


def sweep_panels(source: ReportSource, table: Table) -> list[SweepPanel]:
    """A panel for each configured figure and metric with a number."""
    return [
        panel
        for index, figure in enumerate(source.study.figures if source.study else ())
        for column in table.columns
        if column.key == figure.benchmark
        and (panel := _panel(figure, table, column, name=safe_file_name("setting", str(index), column.metric)))
    ]


def _panel(figure: FigureSpec, table: Table, column: Column, *, name: str) -> SweepPanel | None:
    measured = [
        (row, cell) for row, cell in zip(table.rows, table.cells(column), strict=True) if cell.value is not None
    ]
    swept = [(row, cell) for row, cell in measured if row.sweep_name == figure.encoders]
    if not swept:
        return None
    group = min(cell.group for _, cell in swept)  # a curve has one protocol
    varying = [name for name in ("llm", "llava_variant") if len({getattr(row, name) for row, _ in swept}) > 1]
    points: dict[str, dict[float, Cell]] = {}
    for row, cell in swept:
        if cell.group == group:  # a curve has the other settings, and the fields that vary between curves, as its name
            others = [str(value) for setting, value in row.sweep_settings.items() if setting != figure.x]
            curve = ", ".join([", ".join(others) or row.sweep_name, *(str(getattr(row, each)) for each in varying)])
            points.setdefault(curve, {})[float(row.sweep_settings[figure.x])] = cell
    curves = [
        SweepCurve(name=curve, color=index, points=cells, slope=mean_slope([cells]))
        for index, (curve, cells) in enumerate(points.items())
    ]
    for row, cell in measured:
        if cell.group == group and {row.encoder, row.sweep_name} & set(figure.reference_lines):
            curves.append(SweepCurve(name=row.name, color=len(curves), points={}, level=cell))
    return SweepPanel(
        name=name,
        title=f"{figure.title or figure.encoders}: {column.title}",
        label=figure.label or figure.x,
        column=column,
        values=tuple(sorted({value for cells in points.values() for value in cells})),
        curves=tuple(curves),
        slope=mean_slope([*points.values()]),
    )


def mean_slope(curves: Sequence[Mapping[float, Cell]]) -> Slope | None:
    """The mean slope of curves (value on the x axis → cell); None if one has a single point, or values not above 0."""
    if any(len(points) < 2 or min(points) <= 0 for points in curves):
        return None
    cells, weights = list[Cell](), list[float]()
    for points in curves:
        logs = [math.log2(value) for value in points]
        centered = [log - fmean(logs) for log in logs]
        squares = sum(each**2 for each in centered)
        cells += points.values()
        weights += [each / squares / len(curves) for each in centered]
    value = sum(weight * (cell.value or 0.0) for weight, cell in zip(weights, cells, strict=True))
    scores, noise = [cell.evidence for cell in cells if cell.evidence], cells[0].noise
    if len(scores) < len(cells) or not all(comparable(scores[0], each) for each in scores):
        return Slope(value=value)
    if noise.without_spread and any(each.trained for each in scores):
        return Slope(value=value)
    low, high = (end * cells[0].column.scale for end in contrast_estimate(scores, weights, noise).interval())
    return Slope(value=value) if math.isnan(low) else Slope(value=value, low=low, high=high)


def sweep_figures(source: ReportSource, table: Table) -> FigureSet | None:
    """The panels with at least two values as figures; None without any."""
    figures = tuple(_sweep_figure(panel) for panel in sweep_panels(source, table) if len(panel.values) > 1)
    return FigureSet(lead=_SWEEP_LEAD, figures=figures) if figures else None


def _sweep_figure(panel: SweepPanel) -> Figure:
    ticks, lines = [f"{value:g}" for value in panel.values], []
    for curve in panel.curves:
        if curve.level:
            lines.append((f"{curve.name}, without this setting", *[curve.level.score] * len(ticks), "—"))
        else:
            scores = [curve.points[value].score if value in curve.points else "—" for value in panel.values]
            lines.append((curve.name, *scores, curve.slope.text(panel.column) if curve.slope else "—"))
    lines.append(("all curves", *("" for _ in ticks), panel.slope.text(panel.column) if panel.slope else "—"))

    def plot(axes: Any, palette: Palette) -> None:
        for curve in panel.curves:
            color = palette.series(curve.color)
            if curve.level is None:
                plot_points(axes, sorted(curve.points.items(), key=lambda point: point[0]), color)
                continue
            axes.axhline(curve.level.value, color=color, linewidth=1.4, linestyle="--")
            if curve.level.ci_low is not None:
                axes.axhspan(curve.level.ci_low, curve.level.ci_high, color=color, alpha=0.08, linewidth=0)
        axes.set_xticks(panel.values, ticks)

    return Figure(
        name=panel.name,
        title=panel.title,
        alt=f"Line chart of {panel.title} against {panel.label} with 95 % intervals: {len(panel.curves)} lines.",
        plot=plot,
        x_label=panel.label,
        y_label=panel.column.label,
        legend=tuple(LegendEntry(color=curve.color, label=curve.name) for curve in panel.curves),
        headers=(panel.label, *ticks, "slope"),
        rows=tuple(lines),
    )


@dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """A model's recall against the length of captions.

    Args:
        name: of the model.
        color: index of its color.
        points: number of words, or ``whole`` → cell.
        truncated: ratio of captions that the text tower truncates, as text; empty if unknown.
        protocol_differences: as text, differences from the main protocol.
    """

    name: str
    color: int
    points: Mapping[str, Cell]
    truncated: str
    protocol_differences: tuple[str, ...]


def length_figures(source: ReportSource, details: Table) -> FigureSet | None:
    """A figure for each direction of the benchmarks with captions of several lengths; None without any."""
    figures = []
    for benchmark in source.benchmarks:
        limits = [str(result.protocol.get(WORD_LIMITS, "")) for result in source.results(benchmark).values()]
        words = sorted({int(number) for numbers in limits if numbers for number in numbers.split(", ")})
        for direction, title in DIRECTION_LABELS.items() if words else ():
            metrics = {str(count): f"{direction}_r1{metric_suffix(count)}" for count in words}
            metrics[_FULL] = f"{direction}_r1"
            name = safe_file_name("lengths", source.benchmark_id(benchmark), direction)
            curves = length_curves(details, benchmark, metrics)
            figures.append(_length_figure(curves, [*metrics], name, f"{benchmark}: {title} R@1"))
    return FigureSet(lead=_LENGTH_LEAD, figures=tuple(figures)) if figures else None


def length_curves(table: Table, benchmark: str, metrics: Mapping[str, str]) -> list[LengthCurve]:
    """The models' curves of one direction; ``metrics`` is number of words → metric."""
    columns = {column.metric: column for column in table.columns if column.benchmark == benchmark}
    curves = []
    for index, row in enumerate(table.rows):
        cells = {label: table.cells(columns[metric])[index] for label, metric in metrics.items() if metric in columns}
        points = {label: cell for label, cell in cells.items() if cell.value is not None}
        lost = columns.get("captions_truncated")
        truncated = table.cells(lost)[index].value if lost else None
        if points:
            curves.append(
                LengthCurve(
                    name=row.name,
                    color=index % SERIES_COLORS,
                    points=points,
                    truncated="" if truncated is None else f"{format_number(truncated, 0)} %",
                    protocol_differences=cells[_FULL].protocol_differences,
                )
            )
    return curves


def _length_figure(curves: Sequence[LengthCurve], labels: Sequence[str], name: str, title: str) -> Figure:
    def plot(axes: Any, palette: Palette) -> None:
        for curve in curves:
            color, style = palette.series(curve.color), ":" if curve.protocol_differences else "-"
            plot_points(axes, [(labels.index(label), cell) for label, cell in curve.points.items()], color, style)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylim(bottom=0)

    rows, legend = [], []
    for curve in curves:
        apart = f" ({'; '.join(curve.protocol_differences)})" if curve.protocol_differences else ""
        scores = [curve.points[label].score if label in curve.points else "—" for label in labels]
        rows.append((f"{curve.name}{apart}", *scores, curve.truncated or "—"))
        label = f"{curve.name}: {curve.truncated} truncated" if curve.truncated else curve.name
        legend.append(LegendEntry(color=curve.color, label=label))
    return Figure(
        name=name,
        title=title,
        alt=f"Line chart of {title} against the words of each caption, a line each for {len(curves)} models.",
        plot=plot,
        x_label="words of each caption",
        y_label="R@1",
        legend=tuple(legend),
        headers=("words", *labels, "truncated"),
        rows=tuple(rows),
    )
