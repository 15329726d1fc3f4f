"""Published numbers from a CSV, one a line: ``model,benchmark,metric,value,source``, and other fields of `Row`."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.exchange.imported import Imported, check_scale, make_imported, measured_metric
from benchmarks.results.result_types import Metric
from benchmarks.tasks.evaluation import MetricSpec
from benchmarks.tasks.registry import all_benchmarks
from clips.errors import UserError, error_reason, unknown_name_error
from clips.typed_data import from_plain

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TEXTS = ("model", "benchmark", "metric", "source")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One number.

    Args:
        model: name of the model.
        benchmark: name of the column.
        metric: this suite's name, or any other with ``scale`` and ``higher_is_better``.
        value: as printed; per cent for this suite's ratios if there is no ``scale``.
        source: where the number is from.
        ci_low: lower end of the 95 % interval, as printed.
        ci_high: upper end.
        n: number of items.
        scale: 100 if the value is in per cent, 1 if it is a ratio or in points.
        higher_is_better: for other metrics; ignored for this suite's.
    """

    model: str
    benchmark: str
    metric: str
    value: float
    source: str
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    scale: float | None = None
    higher_is_better: bool | None = None


def read(file: Path) -> list[Imported]:
    """One result for each model and benchmark.

    Raises:
        UserError: naming the line and the column that is missing, unknown or not a number.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restkey="", restval="", strict=True)
            columns = [*(reader.fieldnames or ())]
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a readable csv file ({error_reason(error)})") from None
    known = {field.name: field for field in dataclasses.fields(Row)}
    for number, name in enumerate(columns):
        if name in columns[:number]:
            raise UserError(f"{file} line 1: expected different columns, got '{name:.80}' twice")
        if name not in known:
            raise unknown_name_error(name, known, f"column of {file}")
    groups: dict[tuple[str, str], tuple[Row, dict[str, Metric]]] = {}
    for number, line in enumerate(lines, 2):
        where = f"{file} line {number}"
        if "" in line:
            raise UserError(f"{where}: expected {len(line) - 1} named columns, got more")
        cells = {name: _plain(name, text.strip()) for name, text in line.items() if text.strip()}
        row = from_plain(Row, cells, what=where)
        first, metrics = groups.setdefault((row.model, row.benchmark), (row, {}))
        if row.metric in metrics:
            raise UserError(f"{where}: expected one value of {row.metric} of {row.model} on {row.benchmark}")
        if first.source != row.source:
            raise UserError(f"{where}: source: expected the same one in all lines of a model and benchmark")
        metrics[row.metric] = _metric(row, where)
    return [
        make_imported(
            file,
            tool=row.source,
            model=row.model,
            benchmark=row.benchmark,
            benchmark_type=_benchmark_type(row.benchmark, metrics),
            metrics=metrics,
            primary=metrics,
            settings={"source": row.source},
        )
        for row, metrics in groups.values()
    ]


def _benchmark_type(benchmark: str, metrics: Collection[str]) -> str:
    """The type of a benchmark; by its metrics of a dataset, which is no benchmark's name (coco)."""
    from benchmarks.tasks.encoders import classification, retrieval

    if (known := all_benchmarks().get(benchmark)) is not None:
        return known.benchmark_type
    of_encoders = {"retrieval": retrieval.METRICS, "classification": classification.METRICS}
    return next((kind for kind, names in of_encoders.items() if names.keys() >= {*metrics}), "mllm")


def _plain(name: str, text: str) -> Any:
    """The value of a cell; text that is not of its type, which is an error of the row."""
    if name in _TEXTS:
        return text
    if not _NUMBER.fullmatch(text):  # Python's float also takes 8_5.9
        return {"true": True, "false": False}.get(text.lower(), text)
    return int(text) if name == "n" and text.isdecimal() else float(text)


def _metric(row: Row, where: str) -> Metric:
    spec = _spec(row, where)
    scale = row.scale or spec.scale
    if scale <= 0:
        raise UserError(f"{where}: scale: expected a number above 0, got {scale:g}")
    if row.scale == spec.most == 100:  # per cent of a metric in points of 100
        scale = spec.scale
    value = row.value / scale
    hint = ": state the scale, 1 or 100"
    check_scale(spec, value, f"{where}: value", scale=scale, stated=row.scale is not None, hint=hint)
    metric = measured_metric(spec, value, n=row.n)
    if row.ci_low is None and row.ci_high is None:
        return metric
    if row.ci_low is None or row.ci_high is None:
        raise UserError(f"{where}: expected both ends of an interval, ci_low and ci_high, or none")
    if not row.ci_low <= row.value <= row.ci_high:
        raise UserError(f"{where}: value: expected it in its interval, {row.ci_low:g} to {row.ci_high:g}")
    return dataclasses.replace(metric, ci_low=row.ci_low / scale, ci_high=row.ci_high / scale, ci_method="stated")


def _spec(row: Row, where: str) -> MetricSpec:
    """This suite's metric of a benchmark, by name, else the one that the row describes."""
    from benchmarks.tasks.encoders import classification, retrieval
    from benchmarks.tasks.mllm.task_metrics import TASK_METRICS

    task = TASK_METRICS.get(row.benchmark)
    known = {**retrieval.METRICS, **classification.METRICS, **({**task.metrics, **task.extra} if task else {})}
    if row.metric in known:
        return known[row.metric]
    if row.scale is None or row.higher_is_better is None:
        raise UserError(f"{where}: '{row.metric}' is no metric of this suite: expected its scale and higher_is_better")
    label = row.metric.replace("_", " ")
    return MetricSpec(label=label, aggregation=None, scale=row.scale, higher_is_better=row.higher_is_better)
