"""Recall against the length of captions: what retrieval by long captions measured, from the numbers of the details."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.encoders.long_retrieval import CURVE, suffix
from benchmarks.encoders.retrieval import ARROWS
from benchmarks.report.drawing import SERIES_COLOURS, draw_panel, series_colour
from benchmarks.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from benchmarks.report.model import Report

_WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class LengthCurve:
    """A row's line: words, or ``whole`` → cell; and the share of captions that its text tower does not read to the end.

    ``unlike`` says in words what was measured otherwise than in the first row.
    """

    name: str
    colour: int
    points: Mapping[str, Cell]
    cut_off: Cell | None
    unlike: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LengthPanel:
    """One direction of one benchmark. Matplotlib has escaped all text in ``svg``."""

    title: str
    column: Column
    labels: tuple[str, ...]
    curves: tuple[LengthCurve, ...]
    svg: str


def length_panels(report: Report) -> list[LengthPanel]:
    """A panel for each direction of the benchmarks that have such a curve."""
    panels = []
    for benchmark in report.source.benchmarks:
        listed = [str(result.protocol.get(CURVE, "")) for result in report.source.results(benchmark).values()]
        words = sorted({int(number) for numbers in listed if numbers for number in numbers.split(", ")})
        if words:
            panels += [_panel(report.details, benchmark, direction, words) for direction in ARROWS]
    return panels


def _panel(table: Table, benchmark: str, direction: str, words: Sequence[int]) -> LengthPanel:
    metrics = {str(count): f"{direction}_r1{suffix(count)}" for count in words} | {_WHOLE: f"{direction}_r1"}
    columns = {column.metric: column for column in table.columns if column.benchmark == benchmark}
    curves = []
    for place, row in enumerate(table.rows):
        cells = {label: table.cell(row, columns[metric]) for label, metric in metrics.items() if metric in columns}
        points = {label: cell for label, cell in cells.items() if cell.value is not None}
        if points:
            curves.append(
                LengthCurve(
                    name=row.name,
                    colour=place % SERIES_COLOURS,
                    points=points,
                    cut_off=table.cell(row, columns["captions_cut_off"]) if "captions_cut_off" in columns else None,
                    unlike=cells[_WHOLE].unlike,
                )
            )
    title = f"{benchmark}: {ARROWS[direction]} R@1"
    return LengthPanel(
        title=title,
        column=columns[metrics[_WHOLE]],
        labels=tuple(metrics),
        curves=tuple(curves),
        svg=_draw(curves, tuple(metrics), salt=f"length {title}"),
    )


def _draw(curves: Sequence[LengthCurve], labels: Sequence[str], *, salt: str) -> str:
    places = {label: place for place, label in enumerate(labels)}

    def plot(axes: Any) -> None:
        for curve in curves:
            colour, style = series_colour(curve.colour), ":" if curve.unlike else "-"
            x, y = [places[label] for label in curve.points], [cell.value for cell in curve.points.values()]
            axes.plot(x, y, style, color=colour, linewidth=1.8, marker="o", markersize=3.5)
            ends = [
                (places[label], cell.low, cell.high) for label, cell in curve.points.items() if cell.low is not None
            ]
            if ends:
                axes.vlines(*zip(*ends, strict=True), color=colour, linewidth=1.2, alpha=0.6)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_ylim(bottom=0)

    return draw_panel(plot, x_label="words kept of each caption", y_label="R@1", salt=salt)
