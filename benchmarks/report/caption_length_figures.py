"""Recall against the length of captions, from the metrics of long-caption retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.cell_text import score
from benchmarks.report.figure import SERIES_COLORS, Figure, FigureSet, LegendEntry, Palette, plot_points, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import format_number
from benchmarks.tasks.encoders.long_retrieval import WORD_LIMITS, metric_suffix
from benchmarks.tasks.encoders.retrieval import DIRECTION_LABELS

_FULL = "whole"


@dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """A model's curve.

    Args:
        name: of the model.
        color: index of its color.
        points: number of words, or ``whole`` → cell.
        truncated: ratio of captions that the text tower truncates.
        protocol_differences: as text, differences from the main protocol.
    """

    name: str
    color: int
    points: Mapping[str, Cell]
    truncated: Cell | None
    protocol_differences: tuple[str, ...]


_LEAD = (
    "Recall with captions cut to their first words, on the same images; the full captions are on the right. "
    "Vertical strokes are 95 % intervals. A curve that stays flat for longer captions shows a text tower that has "
    "stopped reading: next to each name is the ratio of captions whose last word it does not see. "
    "Dotted: measured under different settings than the first model."
)


def length_figures(report: Report) -> FigureSet | None:
    """A figure for each direction of the benchmarks with captions of several lengths; None without any."""
    figures: list[Figure] = []
    for benchmark in report.source.benchmarks:
        results = report.source.results(benchmark).values()
        limits = [str(result.protocol.get(WORD_LIMITS, "")) for result in results]
        words = sorted({int(number) for numbers in limits if numbers for number in numbers.split(", ")})
        if words:
            figures += [_figure(report, benchmark, direction, words) for direction in DIRECTION_LABELS]
    return FigureSet(lead=_LEAD, figures=tuple(figures)) if figures else None


def _figure(report: Report, benchmark: str, direction: str, words: Sequence[int]) -> Figure:
    metrics = {str(count): f"{direction}_r1{metric_suffix(count)}" for count in words} | {_FULL: f"{direction}_r1"}
    curves = length_curves(report.details, benchmark, metrics)
    title = f"{benchmark}: {DIRECTION_LABELS[direction]} R@1"
    return Figure(
        name=safe_file_name("lengths", report.source.benchmark_id(benchmark), direction),
        title=title,
        alt=f"Line chart of {title} against the words of each caption, a line each for {len(curves)} models.",
        plot=lambda axes, palette: _plot(curves, tuple(metrics), axes, palette),
        x_label="words of each caption",
        y_label="R@1",
        legend=tuple(
            LegendEntry(color=curve.color, label=f"{curve.name}: {ratio} truncated" if ratio else curve.name)
            for curve in curves
            for ratio in [_truncated_ratio(curve)]
        ),
        headers=("words", *metrics, "truncated"),
        rows=tuple(_line(curve, tuple(metrics)) for curve in curves),
    )


def _truncated_ratio(curve: LengthCurve) -> str:
    known = curve.truncated is not None and curve.truncated.value is not None
    return f"{format_number(curve.truncated.value, 0)} %" if curve.truncated and known else ""


def _line(curve: LengthCurve, labels: Sequence[str]) -> tuple[str, ...]:
    name = f"{curve.name} ({'; '.join(curve.protocol_differences)})" if curve.protocol_differences else curve.name
    scores = [score(curve.points[label]) if label in curve.points else "—" for label in labels]
    return (name, *scores, _truncated_ratio(curve) or "—")


def length_curves(table: Table, benchmark: str, metrics: Mapping[str, str]) -> list[LengthCurve]:
    """The models' curves of one direction; ``metrics`` is number of words → metric."""
    columns = {column.metric: column for column in table.columns if column.benchmark == benchmark}
    truncated = columns.get("captions_truncated")
    curves = []
    for index, row in enumerate(table.rows):
        cells = {label: table.cell(row, columns[metric]) for label, metric in metrics.items() if metric in columns}
        points = {label: cell for label, cell in cells.items() if cell.value is not None}
        if points:
            curves.append(
                LengthCurve(
                    name=row.name,
                    color=index % SERIES_COLORS,
                    points=points,
                    truncated=table.cell(row, truncated) if truncated else None,
                    protocol_differences=cells[_FULL].protocol_differences,
                )
            )
    return curves


def _plot(curves: Sequence[LengthCurve], labels: Sequence[str], axes: Any, palette: Palette) -> None:
    for curve in curves:
        color, style = palette.series(curve.color), ":" if curve.protocol_differences else "-"
        plot_points(axes, [(labels.index(label), cell) for label, cell in curve.points.items()], color, style)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(bottom=0)
