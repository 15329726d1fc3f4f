"""Learning curves: what every training wrote to metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.figure import Figure, FigureSet, LegendEntry, safe_file_name
from benchmarks.report.load_results import ReportSource, read_metrics
from benchmarks.report.palette import SERIES_COLORS, Palette
from benchmarks.results.formatting import format_number, join_with_and


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: a row's name, its place among the colors, and the points."""

    name: str
    color: int
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class PanelSpec:
    """What a panel shows; a further one is one entry in ``PANELS``.

    Args:
        title: above it.
        artifact: whose metrics.jsonl is read: ``"encoder"``, ``"llm"`` or ``"llava"``.
        x: the field along the x axis.
        y: the field along the y axis.
        x_label: name of the x axis.
        stage: only entries of this stage; all where None.
    """

    title: str
    artifact: str
    x: str
    y: str
    x_label: str
    stage: str | None = None


PANELS: tuple[PanelSpec, ...] = (
    PanelSpec("Encoder: contrastive loss", "encoder", x="samples_seen", y="contrastive_loss", x_label="images seen"),
    PanelSpec("Encoder: caption loss", "encoder", x="samples_seen", y="caption_loss", x_label="images seen"),
    PanelSpec("LLM: text loss", "llm", x="step", y="loss", x_label="step"),
    PanelSpec("LLaVA, projector only: loss", "llava", x="step", y="loss", x_label="step", stage="align"),
    PanelSpec("LLaVA, projector and LLM: loss", "llava", x="step", y="loss", x_label="step", stage="instruct"),
)


_LEAD = "The logged losses of every training: thin lines raw, thick lines smoothed."


def learning_curves(source: ReportSource) -> FigureSet | None:
    """A figure for every kind that has at least one line of two points; None where none has."""
    figures = tuple(_figure(kind, curves) for kind in PANELS if (curves := _curves(source, kind)))
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def _figure(kind: PanelSpec, curves: Sequence[Curve]) -> Figure:
    return Figure(
        name=safe_file_name("curves", kind.artifact, kind.stage or kind.y),
        title=kind.title,
        alt=f"Line chart of the loss against {kind.x_label}: {join_with_and([_in_words(curve) for curve in curves])}.",
        plot=lambda axes, inks: draw_curves(curves, axes, inks),
        x_label=kind.x_label,
        y_label="loss",
        legend=tuple(LegendEntry(color=curve.color, label=curve.name) for curve in curves),
        heads=("model", kind.x_label, "first loss", "last loss", "lowest"),
        rows=tuple(
            (
                curve.name,
                format_number(curve.x[-1], 0),
                *(format_number(y, 2) for y in (curve.y[0], curve.y[-1], min(curve.y))),
            )
            for curve in curves
        ),
    )


def _in_words(curve: Curve) -> str:
    return f"{curve.name} from {format_number(curve.y[0], 2)} to {format_number(curve.y[-1], 2)}"


def _curves(source: ReportSource, kind: PanelSpec) -> list[Curve]:
    curves: list[Curve] = []
    drawn: set[str] = set()
    for place, row in enumerate(source.rows):
        folder = row.artifacts.get(kind.artifact)
        if folder is None or folder in drawn:
            continue
        drawn.add(folder)
        points = _points(read_metrics(source.directory / folder), kind)
        if len(points) > 1:
            name, color = (row.llm or row.name, len(drawn) - 1) if kind.artifact == "llm" else (row.name, place)
            x, y = zip(*points, strict=True)
            curves.append(Curve(name=name, color=color % SERIES_COLORS, x=x, y=y))
    return curves


def _points(entries: Sequence[dict[str, Any]], kind: PanelSpec) -> list[tuple[float, float]]:
    points = []
    for entry in entries:
        x, y = entry.get(kind.x), entry.get(kind.y)
        right_stage = kind.stage is None or entry.get("stage") == kind.stage
        if right_stage and _is_finite(x) and _is_finite(y):
            points.append((float(x), float(y)))  # type: ignore[arg-type]
    return points


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Mean over the ``window`` points around each, fewer at the ends."""
    half = window // 2
    parts = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw_curves(curves: Sequence[Curve], axes: Any, inks: Palette) -> None:
    """The curves, each thin as it is and thick as it runs smoothed."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for curve in curves:
        color = inks.series(curve.color)
        axes.plot(curve.x, curve.y, color=color, linewidth=0.8, alpha=0.3)
        axes.plot(curve.x, smooth(curve.y, max(1, len(curve.y) // 20) | 1), color=color, linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
