"""Recall against the length of captions: what retrieval by long captions measured, from the numbers of the details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.cell_text import score
from benchmarks.report.figure import Figure, FigureSet, LegendEntry, plot_points, safe_file_name
from benchmarks.report.palette import SERIES_COLORS, Palette
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import format_number
from benchmarks.tasks.encoders.long_retrieval import WORD_LIMITS, metric_suffix
from benchmarks.tasks.encoders.retrieval import DIRECTION_LABELS

_WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """A row's line: words, or ``whole`` → cell; and the share of captions that its text tower does not read to the end.

    ``unlike`` says in words what was measured otherwise than in the first row.
    """

    name: str
    color: int
    points: Mapping[str, Cell]
    cut_off: Cell | None
    protocol_differences: tuple[str, ...]


_LEAD = (
    "Recall with captions cut to their first words, on the same images; the full captions are on the right. "
    "Vertical strokes are 95 % intervals. A curve that stays flat for longer captions shows a text tower that has "
    "stopped reading: next to each name is the ratio of captions whose last word it does not see. "
    "Dotted: measured under different settings than the first model."
)


def length_figures(report: Report) -> FigureSet | None:
    """A figure for each direction of the benchmarks that have such a curve; None where none has."""
    figures: list[Figure] = []
    for benchmark in report.source.benchmarks:
        listed = [str(result.protocol.get(WORD_LIMITS, "")) for result in report.source.results(benchmark).values()]
        words = sorted({int(number) for numbers in listed if numbers for number in numbers.split(", ")})
        if words:
            figures += [_figure(report.details, benchmark, direction, words) for direction in DIRECTION_LABELS]
    return FigureSet(lead=_LEAD, figures=tuple(figures)) if figures else None


def _figure(table: Table, benchmark: str, direction: str, words: Sequence[int]) -> Figure:
    metrics = {str(count): f"{direction}_r1{metric_suffix(count)}" for count in words} | {_WHOLE: f"{direction}_r1"}
    curves = length_curves(table, benchmark, metrics)
    title = f"{benchmark}: {DIRECTION_LABELS[direction]} R@1"
    return Figure(
        name=safe_file_name("lengths", benchmark, direction),
        title=title,
        alt=f"Line chart of {title} against the words of each caption, a line each for {len(curves)} models.",
        plot=lambda axes, inks: _plot(curves, tuple(metrics), axes, inks),
        x_label="words of each caption",
        y_label="R@1",
        legend=tuple(LegendEntry(color=curve.color, label=_with_cut(curve)) for curve in curves),
        heads=("words", *metrics, "truncated"),
        rows=tuple(_line(curve, tuple(metrics)) for curve in curves),
    )


def _with_cut(curve: LengthCurve) -> str:
    return f"{curve.name}: {_cut(curve)} truncated" if _cut(curve) != "—" else curve.name


def _cut(curve: LengthCurve) -> str:
    return f"{format_number(curve.cut_off.value, 0)} %" if curve.cut_off and curve.cut_off.value is not None else "—"


def _line(curve: LengthCurve, labels: Sequence[str]) -> tuple[str, ...]:
    name = f"{curve.name} ({'; '.join(curve.protocol_differences)})" if curve.protocol_differences else curve.name
    cells = [curve.points.get(label) for label in labels]
    said = [score(cell) if cell else "—" for cell in cells]
    return (name, *said, _cut(curve))


def length_curves(table: Table, benchmark: str, metrics: Mapping[str, str]) -> list[LengthCurve]:
    """The lines of one direction: words → metric gives each its points."""
    columns = {column.metric: column for column in table.columns if column.benchmark == benchmark}
    curves = []
    for place, row in enumerate(table.rows):
        cells = {label: table.cell(row, columns[metric]) for label, metric in metrics.items() if metric in columns}
        points = {label: cell for label, cell in cells.items() if cell.value is not None}
        if points:
            curves.append(
                LengthCurve(
                    name=row.name,
                    color=place % SERIES_COLORS,
                    points=points,
                    cut_off=table.cell(row, columns["captions_truncated"]) if "captions_truncated" in columns else None,
                    protocol_differences=cells[_WHOLE].protocol_differences,
                )
            )
    return curves


def _plot(curves: Sequence[LengthCurve], labels: Sequence[str], axes: Any, inks: Palette) -> None:
    places = {label: place for place, label in enumerate(labels)}
    for curve in curves:
        color, style = inks.series(curve.color), ":" if curve.protocol_differences else "-"
        plot_points(axes, [(places[label], cell) for label, cell in curve.points.items()], color, style)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(bottom=0)
