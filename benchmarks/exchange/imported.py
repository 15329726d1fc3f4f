"""Results that others measured: what both readers return, and how it is made from their numbers."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.protocol import Entries, fingerprint
from benchmarks.results.result_types import UNREAD, Metric, Result
from benchmarks.results.results import is_of_name
from benchmarks.results.statistics import Z95
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from clips.core.identity import file_hash
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

NOT_STATED = "not stated"
_MAX_CIDER = 10.0  # by its definition
_PER_CENT = 100.0


class Imported(NamedTuple):
    """One model, and seed, on one benchmark: the result, whose ``measured_elsewhere`` names the tool, and its items."""

    result: Result
    items: pd.DataFrame | None = None


def make_imported(
    file: Path | None,
    *,
    tool: str,
    model: str,
    seed: int | None = None,
    benchmark: str,
    benchmark_type: str,
    metrics: Mapping[str, Metric],
    settings: Entries,
    primary: Iterable[str] = (),
    version: str = NOT_STATED,
    items: pd.DataFrame | None = None,
    contradicted: str = "",
    created: str = "",
) -> Imported:
    """A result of another tool.

    The protocol has the settings that the file states and ``measured_elsewhere``: so the result is never ranked with
    this suite's, only with results of the same version of the same tool under the same stated settings.

    Args:
        file: the file with the numbers; None for a frame.
        tool: the name of the tool.
        model: the model's name in the file.
        seed: of its training, if the file states it.
        benchmark: the column's name.
        benchmark_type: see `Result`.
        metrics: name → metric.
        settings: protocol entries that the file states.
        primary: the metrics of the main table; those without a number are omitted, and without any it is the first.
        version: of the tool.
        items: the items, if the tool stores any.
        contradicted: how its numbers differ from its items.
        created: ISO time of the evaluation, if the file states it.

    Raises:
        UserError: no metrics.
    """
    if not metrics:
        raise UserError(f"{file}: {benchmark}: expected at least one number, got none")
    clustered = items is not None and items["image"].nunique() < len(items)
    own = "its items" if clustered else "its items, each counted as a different image"
    origins = {"printed": "the printed standard error", "stated": "the file", "none": ""}
    named = [metric for name, metric in metrics.items() if name != UNREAD]
    intervals = filter(None, dict.fromkeys(origins.get(each.ci_method, own) for each in named))
    protocol = (
        {"task": benchmark}
        | settings
        | {"benchmark": benchmark, "measured_elsewhere": tool if version == NOT_STATED else f"{tool} {version}"}
    )
    result = Result(
        model_name=safe_name(model) + seed_suffix(seed),
        benchmark=safe_name(benchmark),
        benchmark_type=benchmark_type,
        status="ok",
        model={"path": model} | ({} if seed is None else {"seed": str(seed)}),
        metrics=metrics,
        primary=tuple(dict.fromkeys(name for name in primary if name in metrics)) or tuple(metrics)[:1],
        protocol=protocol,
        fingerprint=fingerprint(protocol),
        versions={} if version == NOT_STATED else {tool: version},
        created=created,
        measured_elsewhere={
            "tool": tool,
            "version": version,
            "file": file.name if file else "a frame",
            "sha256": file_hash(file) if file else "",
            "intervals": ", ".join(intervals) or "none",
            **({"contradicted": contradicted} if contradicted else {}),
        },
    )
    return Imported(result, items)


def seed_suffix(seed: int | str | None) -> str:
    """The end of the name of a result's directory, by which it differs from those of the model's other seeds."""
    return "" if seed is None else f"-s{seed}"


def tool_text(origin: Mapping[str, str]) -> str:
    """``"lmms-eval, version 0.7.3"``, of a result's ``measured_elsewhere``."""
    if origin.get("tool") == NOT_STATED:
        return f"a tool not named in {origin.get('file')}"
    version = origin.get("version")
    return f"{origin.get('tool')}" + (f", version {version}" if version != NOT_STATED else "")


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


def check_scale(
    spec: MetricSpec, value: float, where: str, *, scale: float = 1.0, stated: bool, hint: str = ""
) -> None:
    """Reject a number outside of its metric's range, and one that may be a ratio where the metric is in points.

    Args:
        spec: the metric.
        value: the number in its unit.
        where: file and place, for the message.
        scale: factor from this unit to that of the file.
        stated: whether the scale is certain, so that a small number is just that.
        hint: the end of the message, how to make it certain.

    Raises:
        UserError: naming the range.
    """
    is_cider = spec.aggregation == "mean_of_scores"
    most = spec.most if is_bounded(spec) else _MAX_CIDER if is_cider else math.inf
    if not -1e-9 <= value <= most * (1 + 1e-9):
        raise UserError(f"{where}: expected 0 to {most * scale:g}, got {value * scale:g}")
    points = spec.most >= _PER_CENT or spec.aggregation == "sum_of_group_means"
    unclear = (_MAX_CIDER if is_cider else 1.0) if scale >= _PER_CENT or points else 0.0
    if not stated and 0 < value * scale <= unclear:
        raise UserError(f"{where}: {value * scale:g} may be a ratio or per cent{hint}")


def has_values(items: pd.DataFrame, spec: MetricSpec) -> bool:
    """Whether items have the columns of a metric, and a value in them: of MMBench, lmms-eval writes answers only."""
    return set(spec.columns) <= set(items) and bool(items[[*spec.columns]].notna().any(axis=None))


def is_bounded(spec: MetricSpec) -> bool:
    """Whether a metric is between 0 and the maximum of an item; one without a formula if it is shown in per cent."""
    return AGGREGATIONS[spec.aggregation].bounded if spec.aggregation else spec.scale == 100


def safe_name(name: str) -> str:
    """A name of a model or benchmark as a portable file name; of a path its last two parts. Empty without a letter."""
    parts = [part for part in re.split(r"[/\\]+", unicodedata.normalize("NFC", name)) if part not in {"", ".", ".."}]
    words = "".join(character if is_of_name(character) else " " for character in "-".join(parts[-2:])).split()
    text = "-".join(words).lstrip(".-")
    return text.encode()[:200].decode(errors="ignore") if any(map(str.isalnum, text)) else ""
