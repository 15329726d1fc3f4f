"""Results that other tools measured: what every reader returns, and how it is made from a tool's numbers."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.protocol import Entries, fingerprint
from benchmarks.results.result_types import Metric, Result
from benchmarks.results.statistics import Z95
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from clips.core.content import file_hash
from clips.errors import UserError
from clips.typed_data import from_plain

if TYPE_CHECKING:
    import pandas as pd

NOT_STATED = "not stated"
Record = TypeVar("Record")


class Imported(NamedTuple):
    """One model on one benchmark: the result, whose ``measured_elsewhere`` names the tool, and its items, if any."""

    result: Result
    items: pd.DataFrame | None = None


def make_imported(
    file: Path,
    *,
    tool: str,
    model: str,
    benchmark: str,
    benchmark_type: str,
    metrics: Mapping[str, Metric],
    settings: Entries,
    primary: Iterable[str] = (),
    version: str = NOT_STATED,
    items: pd.DataFrame | None = None,
    created: str = "",
) -> Imported:
    """A result of another tool.

    The protocol has the settings that the file states and ``measured_elsewhere``: so the result is never ranked with
    this suite's, only with results of the same version of the same tool under the same stated settings.

    Args:
        file: the file with the numbers.
        tool: the name of the tool.
        model: the model's name in the file.
        benchmark: the column's name.
        benchmark_type: see `Result`.
        metrics: name → metric.
        settings: protocol entries that the file states.
        primary: the metrics of the main table; those without a number are omitted, and without any it is the first.
        version: of the tool.
        items: the items, if the tool stores any.
        created: ISO time of the evaluation, if the file states it.

    Raises:
        UserError: no metrics.
    """
    if not metrics:
        raise UserError(f"{file}: {benchmark}: expected at least one number, got none")
    protocol = {"task": benchmark} | settings | {"benchmark": benchmark, "measured_elsewhere": f"{tool} {version}"}
    result = Result(
        model_name=safe_name(model),
        benchmark=safe_name(benchmark),
        benchmark_type=benchmark_type,
        status="ok",
        model={"path": model},
        metrics=metrics,
        primary=tuple(dict.fromkeys(name for name in primary if name in metrics)) or tuple(metrics)[:1],
        protocol=protocol,
        fingerprint=fingerprint(protocol),
        versions={} if version == NOT_STATED else {tool: version},
        created=created,
        measured_elsewhere=origin(file, tool, version, _interval_origin(metrics.values(), items)),
    )
    return Imported(result, items)


def origin(file: Path, tool: str, version: str, intervals: str) -> dict[str, str]:
    """The field ``measured_elsewhere``; ``intervals`` states what they are from."""
    return {"tool": tool, "version": version, "file": file.name, "sha256": file_hash(file), "intervals": intervals}


def _interval_origin(metrics: Iterable[Metric], items: pd.DataFrame | None) -> str:
    named = items is not None and items["image"].nunique() < len(items)
    own = "its items" if named else "its items, each counted as a different image"
    names = {"printed": "the printed standard error", "stated": "the file", "none": ""}
    return ", ".join(filter(None, dict.fromkeys(names.get(each.ci_method, own) for each in metrics))) or "none"


def measured_metric(
    spec: MetricSpec,
    value: float | None,
    *,
    items: pd.DataFrame | None = None,
    n: int = 0,
    standard_error: float | None = None,
) -> Metric:
    """A metric with the interval of its items, or of its printed standard error, or none.

    Args:
        spec: the metric.
        value: the tool's number, in the unit of ``spec``; None to compute it from the items.
        items: if they do not give ``value``, they give no interval either.
        n: number of items, if only the file states it.
        standard_error: as the tool prints it, in the unit of ``value``; the interval of the normal distribution is cut
            off where the metric ends.
    """
    if items is not None and (value is None or has_values(items, spec)):
        metric = compute_metric(items, spec, value)
    elif value is None:
        raise ValueError(f"{spec.label}: a metric without items needs a value")
    else:
        metric = Metric(
            value=value,
            ci_low=None,
            ci_high=None,
            n=n or (0 if items is None else len(items)),
            clusters=n if items is None else items["image"].nunique(),
            higher_is_better=spec.higher_is_better,
            scale=spec.scale,
            label=spec.label,
            ci_method="none",
            aggregation=spec.aggregation if spec.columns and items is None else None,
            columns=spec.columns if items is None else (),
        )
    if metric.ci_low is not None or not standard_error:
        return metric
    low, high = metric.value - Z95 * standard_error, metric.value + Z95 * standard_error
    if is_bounded(spec):
        low, high = max(low, 0.0), max(min(high, spec.most), metric.value)
    return dataclasses.replace(metric, ci_low=low, ci_high=high, ci_method="printed")


def has_values(items: pd.DataFrame, spec: MetricSpec) -> bool:
    """Whether items have the columns of a metric, and a value in them: of MMBench, lmms-eval writes answers only."""
    return set(spec.columns) <= set(items) and bool(items[[*spec.columns]].notna().any(axis=None))


def is_bounded(spec: MetricSpec) -> bool:
    """Whether a metric is between 0 and the maximum of an item; one without a formula if it is shown in per cent."""
    return AGGREGATIONS[spec.aggregation].bounded if spec.aggregation else spec.scale == 100


@functools.cache
def encoder_metrics() -> Mapping[str, MetricSpec]:
    """This suite's metrics of retrieval and classification, by name."""
    from benchmarks.tasks.encoders import classification, retrieval

    return {**retrieval.METRICS, **classification.METRICS}


def unknown_metric(file: Path, tool: str, name: str, known: Iterable[str]) -> UserError:
    """The error of a metric that is not in a reader's table."""
    return UserError(f"{file}: {tool}: unknown metric '{name:.60}' (expected one of {', '.join(sorted(known))})")


def is_number(value: Any) -> bool:
    """Whether a value of a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def safe_name(name: str) -> str:
    """A name of a model or benchmark as a portable file name; of a path its last two parts."""
    parts = [part for part in re.split(r"[/\\]+", name) if part not in {"", ".", ".."}]
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts[-2:])).lstrip("._-")
    return text[:200] or "unnamed"


def has_fields(kind: type, content: Any) -> bool:
    """Whether a JSON value is an object with the required fields of a dataclass (see `parse`)."""
    missing = dataclasses.MISSING
    required = {
        each.name for each in dataclasses.fields(kind) if each.default is missing and each.default_factory is missing
    }
    return isinstance(content, Mapping) and required <= {key.replace("-", "_") for key in content}


def parse(kind: type[Record], content: Any, file: Path) -> Record:
    """A dataclass from a JSON object, which may have further keys; ``n_samples`` is also the key ``n-samples``.

    Raises:
        UserError: naming the file and the field.
    """
    if isinstance(content, Mapping):
        names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        content = {name: each for key, each in content.items() if (name := key.replace("-", "_")) in names}
    return from_plain(kind, content, what=str(file))


def restore(plain: Mapping[str, Any], file: Path, version: str) -> Result:
    """A result from what an export stored of it, marked as read from there."""
    measured = plain.get("measured_elsewhere") or origin(file, "clips-bench", version, "the file")
    what = f"{file}: the details of `clips-bench export`"
    return from_plain(Result, {"model": {}, "versions": {}, **plain, "measured_elsewhere": measured}, what=what)
