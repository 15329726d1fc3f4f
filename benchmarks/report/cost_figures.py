"""What a score cost: samples, FLOPs and hours of training, from what the trainings wrote of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.cell_text import column_head, column_title, score
from benchmarks.report.figure import MAX_POINT_LABELS, Figure, FigureSet, number_points, safe_file_name
from benchmarks.report.load_results import read_metrics
from benchmarks.report.palette import Palette
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import join_with_and
from benchmarks.study.study_record import RowRecord
from clips.core.artifact import STAGES_DIR, read_manifest
from clips.errors import UserError

_LOG_SCALE_FROM = 20
_WORTH_A_FIGURE = 1.05
_THOUSAND = 1000
_LEAD = (
    "What each score's training cost, of the rows that were trained here: what a pretrained model cost before is not "
    "known and not counted. The dashed line is the Pareto front: no row on it is both dearer and worse than another. "
    "It goes by the numbers as they are, not by tests. Of several seeds, the cost is the first one's."
)


@dataclass(frozen=True, kw_only=True)
class TrainingRuns:
    """What was trained for a score: directories in the order of their making, the encoder's first."""

    encoder: Path
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class CostAxis:
    """A kind of cost; a further one is one entry in ``COSTS``.

    Args:
        name: in the figures' names.
        title: in their titles.
        label: of the axis.
        of: what a training cost; None where that was not recorded.
    """

    name: str
    title: str
    label: str
    of: Callable[[TrainingRuns], float | None]


def images_seen(training: TrainingRuns) -> float | None:
    """Pictures that the encoder was shown in all stages of its training, repeated ones counted again."""
    return _in_all(training.encoder, "samples_seen")


def encoder_flops(training: TrainingRuns) -> float | None:
    """FLOPs of the encoder's training, from those of a sample in its log, on whatever device it ran."""
    encoder = training.encoder
    earlier = encoder.with_name(encoder.name + STAGES_DIR)
    stages = [_logged_flops(earlier / str(number)) for number in range(1, len(_stages(encoder)))]
    known = [flops for flops in [*stages, _logged_flops(encoder)] if flops]
    return sum(known) if len(known) == len(stages) + 1 else None


def _logged_flops(directory: Path) -> float:
    processes = _field(directory, "processes") or 1.0
    total, seen = 0.0, 0.0
    for entry in read_metrics(directory):
        each, now = _flops_per_sample(entry, processes), _number(entry.get("samples_seen"))
        if each and now:
            total += each * max(0.0, now - seen)
            seen = max(seen, now)
    return total


def _flops_per_sample(entry: Mapping[str, Any], processes: float) -> float | None:
    """As logged; older logs have the rate of a process alone, where the device's peak was known."""
    rate, speed = _number(entry.get("tflops")), _number(entry.get("samples_per_second"))
    by_rate = rate * 1e12 * processes / speed if rate and speed else None
    return _number(entry.get("flops_per_sample")) or by_rate


def training_hours(training: TrainingRuns) -> float | None:
    """Hours of wall time, all trainings of the row together; as measured, on whatever each of them ran."""
    seconds = [_in_all(training.encoder, "seconds"), *(_field(directory, "seconds") for directory in training.others)]
    return None if None in seconds else sum(each for each in seconds if each is not None) / 3600


COSTS: tuple[CostAxis, ...] = (
    CostAxis("samples", "pictures that the encoder saw", "pictures seen", images_seen),
    CostAxis("flops", "FLOPs of the encoder's training", "FLOPs", encoder_flops),
    CostAxis("hours", "hours of training", "hours", training_hours),
)


def _in_all(encoder: Path, name: str) -> float | None:
    """A field of an encoder's manifest, summed over the stages of its training: the field itself is the last one's."""
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
    """A row's cost and score; ``front`` where no other row that costs no more is as good.

    ``color`` is the row's place in the table.
    """

    cost: float
    cell: Cell
    color: int
    front: bool


def cost_figures(report: Report) -> FigureSet | None:
    """A figure for each kind of cost and benchmark in which rows differ; None where there is none."""
    first = {
        column.benchmark: column for column in reversed(report.table.columns) if column.higher_is_better is not None
    }
    columns = [first[name] for name in report.source.benchmarks if name in first]
    drawn = [(cost, column, cost_points(report, column, cost)) for cost in COSTS for column in columns]
    figures = [_figure(*each) for each in drawn if _differ([point.cost for point in each[2]])]
    return FigureSet(lead=_LEAD, figures=tuple(figures)) if figures else None


def _differ(costs: Sequence[float]) -> bool:
    """Whether costs differ by more than a machine's mood."""
    return len(costs) > 1 and max(costs) > _WORTH_A_FIGURE * min(costs)


def cost_points(report: Report, column: Column, cost: CostAxis) -> list[CostPoint]:
    """The rows whose cost is known and that were measured alike, the cheapest first."""
    found = []
    for place, row in enumerate(report.table.rows):
        cell = report.table.cell(row, column)
        training = _training(report.source.directory, row, column, report)
        value = cost.of(training) if training and cell.value is not None and cell.group == 0 else None
        if value is not None:
            found.append((value, cell, place))
    sign = 1 if column.higher_is_better else -1
    found.sort(key=lambda each: (each[0], -sign * (each[1].value or 0.0)))
    points, best = [], float("-inf")
    for value, cell, place in found:
        score = sign * (cell.value or 0.0)
        points.append(CostPoint(cost=value, cell=cell, color=place, front=score > best))
        best = max(best, score)
    return points


def _training(directory: Path, row: RowRecord, column: Column, report: Report) -> TrainingRuns | None:
    encoder = row.artifacts.get("encoder")
    if encoder is None:
        return None
    kinds = {result.benchmark_type for result in report.source.results(column.benchmark).values()}
    others = [row.artifacts[name] for name in ("llm", "llava") if name in row.artifacts] if "mllm" in kinds else []
    return TrainingRuns(encoder=directory / encoder, others=tuple(directory / each for each in others))


def _figure(cost: CostAxis, column: Column, points: Sequence[CostPoint]) -> Figure:
    front = [point.cell.row for point in points if point.front]
    legend, labels = number_points(
        [(point.color, point.cell.row, point.cost, point.cell.value or 0.0) for point in points]
    )
    return Figure(
        name=safe_file_name("cost", cost.name, column.benchmark, column.metric),
        title=f"{column_head(column)} against {cost.title}",
        alt=f"Scatter plot of {column_title(column)} against {cost.title}, {len(points)} rows; on the Pareto front: "
        f"{join_with_and(front)}.",
        plot=lambda axes, inks: _plot(points, axes, inks),
        x_label=cost.label,
        y_label=column.label,
        legend=legend,
        labels=labels,
        heads=("row", cost.label, column_title(column), "on the front"),
        rows=tuple(
            (
                point.cell.row,
                f"{point.cost:.3g}",
                score(point.cell),
                "yes" if point.front else "no",
            )
            for point in points
        ),
    )


def _plot(points: Sequence[CostPoint], axes: Any, inks: Palette) -> None:
    from matplotlib.ticker import EngFormatter

    front = [point for point in points if point.front]
    axes.plot(
        [point.cost for point in front],
        [point.cell.value for point in front],
        color=inks["ink-soft"],
        linewidth=1,
        linestyle="--",
        drawstyle="steps-post",
    )
    for point in points:
        color = inks.series(point.color) if len(points) <= MAX_POINT_LABELS else inks["ink-soft"]
        if point.cell.ci_low is not None:
            axes.vlines(point.cost, point.cell.ci_low, point.cell.ci_high, color=color, linewidth=1.2, alpha=0.6)
        face = color if point.front else inks["sheet"]
        axes.plot(point.cost, point.cell.value, "o", color=color, markerfacecolor=face, markersize=5.5)
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) / min(costs) > _LOG_SCALE_FROM:
        axes.set_xscale("log")
    if max(costs) >= _THOUSAND:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
