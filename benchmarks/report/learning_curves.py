"""Learning curves, from the metrics.jsonl of every training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.figure import SERIES_COLORS, Figure, FigureSet, LegendEntry, Palette, safe_file_name
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import format_number, join_with_and
from clips.core.metrics_log import read_entries


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One curve: the model's name, the index of its color, and the points."""

    name: str
    color: int
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class PanelSpec:
    """The content of a panel; a new one is one entry in ``PANELS``.

    Args:
        title: above it.
        artifact: the training whose metrics.jsonl is read: ``"encoder"``, ``"llm"`` or ``"llava"``.
        x: the field along the x axis.
        y: the field along the y axis.
        x_label: name of the x axis.
        stage: only entries of this stage; None for all.
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
    """A figure for each panel with a curve of at least two points; None without any."""
    figures = tuple(_figure(panel, curves) for panel in PANELS if (curves := _curves(source, panel)))
    return FigureSet(lead=_LEAD, figures=figures) if figures else None


def _figure(panel: PanelSpec, curves: Sequence[Curve]) -> Figure:
    changes = [
        f"{curve.name} from {format_number(curve.y[0], 2)} to {format_number(curve.y[-1], 2)}" for curve in curves
    ]
    return Figure(
        name=safe_file_name("curves", panel.artifact, panel.stage or panel.y),
        title=panel.title,
        alt=f"Line chart of the loss against {panel.x_label}: {join_with_and(changes)}.",
        plot=lambda axes, palette: draw_curves(curves, axes, palette),
        x_label=panel.x_label,
        y_label="loss",
        legend=tuple(LegendEntry(color=curve.color, label=curve.name) for curve in curves),
        headers=("model", panel.x_label, "first loss", "last loss", "lowest"),
        rows=tuple(
            (
                curve.name,
                format_number(curve.x[-1], 0),
                *(format_number(y, 2) for y in (curve.y[0], curve.y[-1], min(curve.y))),
            )
            for curve in curves
        ),
    )


def _curves(source: ReportSource, panel: PanelSpec) -> list[Curve]:
    curves: list[Curve] = []
    drawn: set[str] = set()
    for index, row in enumerate(source.rows):
        directory = row.artifacts.get(panel.artifact)
        if directory is None or directory in drawn:
            continue
        drawn.add(directory)
        points = _points(read_entries(source.directory / directory / "metrics.jsonl"), panel)
        if len(points) > 1:
            name, color = (row.llm or row.name, len(drawn) - 1) if panel.artifact == "llm" else (row.name, index)
            x, y = zip(*points, strict=True)
            curves.append(Curve(name=name, color=color % SERIES_COLORS, x=x, y=y))
    return curves


def _points(entries: Sequence[dict[str, Any]], panel: PanelSpec) -> list[tuple[float, float]]:
    points = []
    for entry in entries:
        x, y = entry.get(panel.x), entry.get(panel.y)
        in_stage = panel.stage is None or entry.get("stage") == panel.stage
        if in_stage and _is_finite(x) and _is_finite(y):
            points.append((float(x), float(y)))  # type: ignore[arg-type]
    return points


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Moving average over a centered window, shorter at the ends."""
    half = window // 2
    parts = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw_curves(curves: Sequence[Curve], axes: Any, palette: Palette) -> None:
    """Plot each curve as a thin raw and a thick smoothed line."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for curve in curves:
        color = palette.series(curve.color)
        axes.plot(curve.x, curve.y, color=color, linewidth=0.8, alpha=0.3)
        axes.plot(curve.x, smooth(curve.y, max(1, len(curve.y) // 20) | 1), color=color, linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
