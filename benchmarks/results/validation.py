"""Validation of result files on reading: fields and items must agree, so that no wrong number enters a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results.baselines import CONDITIONS, IN_BLIND_RUN
from benchmarks.results.protocol import fingerprint
from benchmarks.results.result_types import ITEM_COLUMNS, Metric, Result
from clips.core.identity import file_hash
from clips.errors import UserError, error_reason

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow

_RATIOS = {"mean", "mean_of_group_means", "f1", "ratio", "bleu"}  # "mean_of_scores" and sums have no upper end
_PER_CENT = 100.0  # the smallest scale of a ratio; ratios of points (LLaVA-Bench) have scale 1
GROUPS = {("sum_of_group_means", 1), ("mean_of_group_means", 1), ("f1", 2)}
"""Aggregations and the place of the column that names groups."""
_ROUNDING = 1e-6
_WIDTH_TOLERANCE = 0.02  # of an interval: a value that its scorer rounds may be outside by this ratio
_SCORERS_ROUNDING = 1e-5  # MMMU's scorer rounds its ratios
_POINTS_ROUNDING = 0.1  # LLaVA-Bench's scorer rounds its ratios of points
_LARGEST = 1e100  # the comparison also rejects NaN


def check_fields(result: Result, file: Path) -> None:
    """Reject a result whose own fields contradict each other; its items are not read.

    Raises:
        UserError: naming the file, the field, and what was expected.
    """
    _raise_first(file, _wrong_fields(result))


def check_items(result: Result, table: Path) -> None:
    """Reject a result that its table of items contradicts.

    Raises:
        UserError: naming the result's file, the field, and what was expected; or the table cannot be read.
    """
    _raise_first(result.path, _wrong_items(result, table))


def _raise_first(file: Path | None, faults: Iterator[str]) -> None:
    if fault := next(faults, None):
        raise UserError(f"{file}: {fault}")


def _wrong_fields(result: Result) -> Iterator[str]:
    if result.items is not None and Path(result.items).name in {"", ".."}:
        yield f"items: expected the name of a file, got '{result.items:.60}'"
    numbers = {"seconds": result.seconds, "schema": result.schema}
    for name, metric in result.metrics.items():
        fields = {**vars(metric), **{f"chance_levels.{kind}": value for kind, value in metric.chance_levels.items()}}
        numbers |= {f"metrics.{name}.{field}": value for field, value in fields.items() if type(value) in {int, float}}
    for name, number in numbers.items():
        if not abs(number) < _LARGEST:
            yield f"{name}: expected a finite number, got {number!r:.60}"
    if not re.fullmatch(r"-?\d{1,18}", seed := result.model.get("seed", "0")):
        yield f"model.seed: expected an integer, got '{seed:.60}'"
    for name, value in result.protocol.items():
        if not isinstance(value, str | int | float | bool | None):
            yield f"protocol.{name}: expected a plain value, got {json.dumps(value):.60}"
    if result.status == "ok":
        expected = fingerprint(result.protocol)
        if result.fingerprint != expected:
            yield f"fingerprint: expected the protocol's, {expected[:12]}…, got '{result.fingerprint[:12]}'"
    for name, metric in result.metrics.items():
        yield from (f"metrics.{name}.{fault}" for fault in _wrong_metric(metric))


def _wrong_metric(metric: Metric) -> Iterator[str]:
    from benchmarks.results.aggregation import AGGREGATIONS

    if metric.aggregation is not None:
        if metric.aggregation not in AGGREGATIONS:
            yield f"aggregation: expected one of {', '.join(AGGREGATIONS)}, got '{metric.aggregation:.40}'"
        if not metric.columns:
            yield f"columns: expected those that the aggregation '{metric.aggregation}' takes, got none"
    if metric.n < 0 or not 0 <= metric.clusters <= metric.n:
        yield f"n: expected at least as many items as clusters, got {metric.n} and {metric.clusters}"
    if metric.ci_low is not None and metric.ci_high is not None:
        slack = _WIDTH_TOLERANCE * (metric.ci_high - metric.ci_low) + _ROUNDING * max(1.0, abs(metric.value))
        if not metric.ci_low - slack <= metric.value <= metric.ci_high + slack:
            yield f"value: expected it in its interval, {metric.ci_low:g} to {metric.ci_high:g}, got {metric.value:g}"
    if metric.condition and metric.condition not in CONDITIONS:
        yield f"condition: expected one of {', '.join(CONDITIONS)}, got '{metric.condition:.40}'"
    if not 0 < metric.scale < math.inf:
        yield f"scale: expected a number above 0, got {metric.scale:g}"
    if metric.aggregation in _RATIOS | {None} and metric.scale >= _PER_CENT:
        ends = {"value": metric.value, "ci_low": metric.ci_low, "ci_high": metric.ci_high, **metric.chance_levels}
        least = -1 if metric.gain_of else 0
        for name, value in ends.items():
            if value is not None and not least - _ROUNDING <= value <= 1 + _ROUNDING:
                yield f"{name}: expected a ratio from {least} to 1, got {value:g}"


def _wrong_items(result: Result, table: Path) -> Iterator[str]:
    """Faults, in the order in which the checks depend on each other."""
    import numpy as np
    import pandas as pd
    import pyarrow.parquet

    # values of other items may have the same mean, and change every interval and test
    if result.items_hash and (items_hash := file_hash(table)) != result.items_hash:
        yield f"items_hash: expected that of {table.name}, {items_hash[:12]}…, got '{result.items_hash[:12]}…'"
    try:
        with pyarrow.parquet.ParquetFile(table) as file:
            names = file.schema_arrow.names
            yield from _wrong_schema(result, file.schema_arrow, table.name)
            columns = {"item", "image"}
            columns |= {name for each in result.metrics.values() for name in (*each.columns, *each.minus)}
            columns |= {IN_BLIND_RUN} & {*names}
            items = file.read(columns=sorted(columns), use_threads=False).to_pandas(use_threads=False)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{table}: not a readable parquet file ({error_reason(error)})") from None
    for name in ("item", "image"):
        if items[name].isna().any():
            yield f"{table.name}: {name}: expected a name in each row, got none in {int(items[name].isna().sum())}"
    for name in items["item"][items["item"].duplicated()]:
        yield f"{table.name}: item: expected different names, got '{name}' twice"
    images = pd.factorize(items["image"])[0]
    with np.errstate(all="ignore"):
        for name, metric in result.metrics.items():
            yield from (f"metrics.{name}.{fault}" for fault in _wrong_value(metric, items, images))


def _wrong_schema(result: Result, schema: pyarrow.Schema, table: str) -> Iterator[str]:
    for name in ITEM_COLUMNS:
        if name not in schema.names:
            yield f"{table}: expected a column '{name}'"
        elif not _can_hold(schema.field(name).type, {"score": "numbers", "thumbnail": "bytes"}.get(name, "strings")):
            yield f"{table}: {name}: unexpected type {schema.field(name).type}"
    for metric_name, metric in result.metrics.items():
        for index, name in [*enumerate(metric.columns), *enumerate(metric.minus)]:
            where = f"metrics.{metric_name}.columns"
            if name not in schema.names:
                yield f"{where}: expected one of {table}, got '{name:.60}'"
                continue
            kind = schema.field(name).type
            if (metric.aggregation, index) not in GROUPS and not _can_hold(kind, "numbers"):
                yield f"{where}: expected numbers in '{name}' of {table}, got {kind}"


def _can_hold(kind: pyarrow.DataType, what: str) -> bool:
    """Whether a column type fits the expected values; a column without values always does."""
    from pyarrow import types

    tests = {
        "numbers": (types.is_floating, types.is_integer, types.is_boolean),
        "strings": (types.is_string, types.is_large_string, types.is_string_view),
        "bytes": (types.is_binary, types.is_large_binary),
    }[what]
    return types.is_null(kind) or any(test(kind) for test in tests)


def _wrong_value(metric: Metric, items: pd.DataFrame, images: np.ndarray) -> Iterator[str]:
    """Faults of a metric; ``images`` (N,) has the number of each item's image."""
    import numpy as np

    from benchmarks.results.measure import value_of

    if metric.aggregation is None:
        if metric.n > len(items):
            yield f"n: expected at most the {len(items)} items, got {metric.n}"
        return
    present = items[metric.columns[0]].notna().to_numpy()
    counts = [("n", int(present.sum())), ("clusters", len(np.unique(images[present & (images >= 0)])))]
    for field, expected in counts if metric.clusters or not metric.condition else counts[:1]:  # see `upgrade`
        if getattr(metric, field) != expected:
            yield f"{field}: expected {expected}, as its items have, got {getattr(metric, field)}"
    try:
        value = value_of(items, metric)
    except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        yield f"columns: expected those of the aggregation '{metric.aggregation}', got others ({error_reason(error)})"
        return
    rounded = _POINTS_ROUNDING if metric.aggregation == "ratio" and metric.scale < _PER_CENT else _SCORERS_ROUNDING
    if not math.isclose(metric.value, value, rel_tol=_SCORERS_ROUNDING, abs_tol=rounded):
        yield f"value: expected {value:g}, as its items give, got {metric.value:g}"
