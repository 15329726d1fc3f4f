"""Scores against training cost: images, FLOPs and hours, from the trainings' manifests and logs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.cell_text import column_header, column_title, score
from benchmarks.report.figure import MAX_POINT_LABELS, Figure, FigureSet, Palette, number_points, safe_file_name
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import join_with_and
from benchmarks.study.rows import RowRecord
from clips.core.artifact import STAGES_DIR, read_manifest
from clips.core.metrics_log import read_entries
from clips.errors import UserError

_LOG_SCALE_RATIO = 20
_MIN_COST_RATIO = 1.05  # smaller ratios of run times are noise
_MIN_COSTS = 3
_LEAD = (
    "The training cost of each score, for models trained in this study; the earlier cost of pretrained models "
    "is unknown and not included. The dashed line is the Pareto front: no model on it is both more expensive and worse "
    "than another. It uses the numbers, not tests. For several seeds the cost is the first one's. Omitted: benchmarks "
    "without three models of different cost or without a significant difference, and costs in proportion to another."
)


@dataclass(frozen=True, kw_only=True)
class TrainingRuns:
    """The output directories of a model's trainings: the encoder's, and the others in order."""

    encoder: Path
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class CostAxis:
    """A type of cost; a new one is one entry in ``COSTS``.

    Args:
        name: in the figures' names.
        title: in their titles.
        label: of the axis.
        of: trainings → cost; None if it was not recorded.
    """

    name: str
    title: str
    label: str
    of: Callable[[TrainingRuns], float | None]


def images_seen(training: TrainingRuns) -> float | None:
    """Images that the encoder was trained on in all stages, with repetitions."""
    return _stage_sum(training.encoder, "samples_seen")


def encoder_flops(training: TrainingRuns) -> float | None:
    """FLOPs of the encoder's training, from the FLOPs per sample in its log."""
    encoder = training.encoder
    earlier = encoder.with_name(encoder.name + STAGES_DIR)
    directories = [*(earlier / str(number) for number in range(1, len(_stages(encoder)))), encoder]
    flops = [_logged_flops(directory) for directory in directories]
    return sum(flops) if all(flops) else None


def _logged_flops(directory: Path) -> float:
    processes = _field(directory, "processes") or 1.0
    total, seen = 0.0, 0.0
    for entry in read_entries(directory / "metrics.jsonl"):
        flops, samples = _flops_per_sample(entry, processes), _number(entry.get("samples_seen"))
        if flops and samples:
            total += flops * max(0.0, samples - seen)
            seen = max(seen, samples)
    return total


def _flops_per_sample(entry: Mapping[str, Any], processes: float) -> float | None:
    """As logged; logs without it may have the TFLOPS of a process."""
    rate, speed = _number(entry.get("tflops")), _number(entry.get("samples_per_second"))
    by_rate = rate * 1e12 * processes / speed if rate and speed else None
    return _number(entry.get("flops_per_sample")) or by_rate


def training_hours(training: TrainingRuns) -> float | None:
    """Hours of wall time of all trainings of the model, on their own devices."""
    seconds = [_stage_sum(training.encoder, "seconds"), *(_field(path, "seconds") for path in training.others)]
    return None if None in seconds else sum(each for each in seconds if each is not None) / 3600


COSTS: tuple[CostAxis, ...] = (
    CostAxis("samples", "images seen by the encoder", "images seen", images_seen),
    CostAxis("flops", "FLOPs of the encoder's training", "FLOPs", encoder_flops),
    CostAxis("hours", "hours of training", "hours", training_hours),
)


def _stage_sum(encoder: Path, name: str) -> float | None:
    """A field of an encoder's manifest, summed over its training stages; the top-level field is the last stage's."""
    stages = [_number(stage.get(name)) for stage in _stages(encoder)]
    if not stages:
        return _field(encoder, name)
    return None if None in stages else sum(each for each in stages if each is not None)


def _stages(encoder: Path) -> list[Mapping[str, Any]]:
    stages = _manifest(encoder).get("stages")
    return [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list) else []


def _field(directory: Path, name: str) -> float | None:
    return _number(_manifest(directory).get(name))


def _manifest(directory: Path) -> Mapping[str, Any]:
    try:
        return read_manifest(directory)
    except UserError:
        return {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value >= 0 else None


@dataclass(frozen=True, kw_only=True)
class CostPoint:
    """A model's cost and score.

    Args:
        cost: of its training.
        cell: its score.
        color: its index in the table.
        front: whether it is on the Pareto front.
    """

    cost: float
    cell: Cell
    color: int
    front: bool


def cost_figures(report: Report) -> FigureSet | None:
    """A figure for each type of cost and benchmark that relates them; None without any.

    It needs three models of different cost, and a significant difference between models: a line through two points,
    or through equal scores, says nothing about cost. A type of cost in proportion to an earlier one is omitted.
    """
    ranked = [column for column in report.table.columns if column.ranked]
    first = {column.benchmark: column for column in reversed(ranked)}
    columns = [first[name] for name in report.source.benchmarks if name in first]
    figures = []
    for column in columns:
        drawn: list[dict[str, float]] = []
        if not any(cell.mark for cell in report.table.column_cells(column)):
            continue
        for cost in COSTS:
            points = cost_points(report, column, cost)
            costs = {point.cell.row: point.cost for point in points}
            if _num_different(costs.values()) >= _MIN_COSTS and not any(_proportional(costs, each) for each in drawn):
                drawn.append(costs)
                figures.append(_figure(cost, column, points))
    return FigureSet(lead=_LEAD, figures=tuple(figures)) if figures else None


def _num_different(costs: Iterable[float]) -> int:
    """The number of different costs; run times are compared with a tolerance."""
    different: list[float] = []
    for cost in sorted(costs):
        if not different or cost > _MIN_COST_RATIO * different[-1]:
            different.append(cost)
    return len(different)


def _proportional(costs: Mapping[str, float], others: Mapping[str, float]) -> bool:
    """Whether two types of cost of the same models differ by one factor, so that their figures look the same."""
    if costs.keys() != others.keys() or any((costs[row] == 0) != (others[row] == 0) for row in costs):
        return False
    factors = [costs[row] / others[row] for row in costs if others[row]]
    return max(factors) <= _MIN_COST_RATIO * min(factors)


def cost_points(report: Report, column: Column, cost: CostAxis) -> list[CostPoint]:
    """The models of the main protocol with a known cost, by cost."""
    models = []
    for index, row in enumerate(report.table.rows):
        cell, training = report.table.cell(row, column), _training_runs(report, row, column)
        value = cost.of(training) if training and cell.value is not None and cell.group == 0 else None
        if value is not None:
            models.append((value, cell, index))
    sign = 1 if column.higher_is_better else -1
    models.sort(key=lambda each: (each[0], -sign * (each[1].value or 0.0)))
    points, best = [], float("-inf")
    for value, cell, index in models:
        signed_score = sign * (cell.value or 0.0)
        points.append(CostPoint(cost=value, cell=cell, color=index, front=signed_score > best))
        best = max(best, signed_score)
    return points


def _training_runs(report: Report, row: RowRecord, column: Column) -> TrainingRuns | None:
    if "encoder" not in row.artifacts:
        return None
    types = {result.benchmark_type for result in report.source.results(column.benchmark).values()}
    names = [name for name in ("llm", "llava") if name in row.artifacts and "mllm" in types]
    encoder, *others = (report.source.directory / row.artifacts[name] for name in ("encoder", *names))
    return TrainingRuns(encoder=encoder, others=tuple(others))


def _figure(cost: CostAxis, column: Column, points: Sequence[CostPoint]) -> Figure:
    front = [point.cell.row for point in points if point.front]
    legend, labels = number_points(
        [(point.color, point.cell.row, point.cost, point.cell.value or 0.0) for point in points]
    )
    return Figure(
        name=safe_file_name("cost", cost.name, column.key, column.metric),
        title=f"{column_header(column)} against {cost.title}",
        alt=f"Scatter plot of {column_title(column)} against {cost.title}, {len(points)} models; on the Pareto front: "
        f"{join_with_and(front)}.",
        plot=lambda axes, palette: _plot(points, axes, palette),
        x_label=cost.label,
        y_label=column.label,
        legend=legend,
        labels=labels,
        headers=("model", cost.label, column_title(column), "on the front"),
        rows=tuple(
            (point.cell.row, f"{point.cost:.3g}", score(point.cell), "yes" if point.front else "no") for point in points
        ),
    )


def _plot(points: Sequence[CostPoint], axes: Any, palette: Palette) -> None:
    from matplotlib.ticker import EngFormatter

    front = [point for point in points if point.front]
    axes.plot(
        [point.cost for point in front],
        [point.cell.value for point in front],
        color=palette["ink-soft"],
        linewidth=1,
        linestyle="--",
        drawstyle="steps-post",
    )
    for point in points:
        color = palette.series(point.color) if len(points) <= MAX_POINT_LABELS else palette["ink-soft"]
        if point.cell.ci_low is not None:
            axes.vlines(point.cost, point.cell.ci_low, point.cell.ci_high, color=color, linewidth=1.2, alpha=0.6)
        face = color if point.front else palette["sheet"]
        axes.plot(point.cost, point.cell.value, "o", color=color, markerfacecolor=face, markersize=5.5)
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) / min(costs) > _LOG_SCALE_RATIO:
        axes.set_xscale("log")
    if max(costs) >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
