"""The evaluation of one benchmark: its metrics, computed from its items, and the items that the report shows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from benchmarks.results import blind, statistics
from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.item_scores import measure
from benchmarks.results.results import Metric, columns_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


ChanceLevels = Mapping[str, Mapping[str, "np.ndarray"]]
"""Trivial baseline (``results.CHANCE``, ``"always yes"``) → item column → (N,) its values for that baseline."""
MAX_THUMBNAILS = 1000


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """The definition of a metric over the items.

    Args:
        label: for a column header.
        aggregation: a name in ``aggregation.AGGREGATIONS``; None if only the scorer can compute it.
        columns: item columns that the aggregation takes.
        scale: factor for display.
        higher_is_better: None if neither direction is better.
        most: the maximum of an item, for metrics that end there; infinite if it is not known.
        rounded: maximum rounding error of the benchmark's own scorer.
    """

    label: str
    aggregation: str | None = "mean"
    columns: tuple[str, ...] = ()
    scale: float = 100.0
    higher_is_better: bool | None = True
    most: float = 1.0
    rounded: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One benchmark, evaluated.

    Args:
        metrics: name → metric.
        primary: the metrics for the main table.
        protocol: all settings that the numbers depend on, except the model.
        items: one row per item (``results.ITEM_COLUMNS`` and the metrics' columns).
        missing_metrics: metric → the reason why it is missing.
    """

    metrics: Mapping[str, Metric]
    primary: tuple[str, ...]
    protocol: Mapping[str, Any]
    items: pd.DataFrame
    missing_metrics: Mapping[str, str] = field(default_factory=dict)


def compute_metric(
    items: pd.DataFrame, spec: MetricSpec, value: float | None = None, baselines: ChanceLevels = MappingProxyType({})
) -> Metric:
    """A metric with its 95 % interval, clustered by image.

    Args:
        items: the items table; with the columns of blind runs the metric also has its scores without the image.
        value: the value of the benchmark's own scorer, if any; if the aggregation gives another value, it is not used
            and there is no interval.
        baselines: the item columns of the trivial baselines. A column that holds the probability of a hit gives the
            expected score, except for a ratio or F1, where it gives the ratio of the expected sums.
    """
    names = spec.columns
    present = items[names[0]].notna() if names else items["item"].notna()
    formula = spec.aggregation
    interval = statistics.ConfidenceInterval(low=None, high=None, method="none")
    most = spec.most if formula and AGGREGATIONS[formula].bounded and math.isfinite(spec.most) else None
    if formula is not None:
        computed = statistics.aggregate(formula, columns_of(items, names), names)
        if value is None:
            value = computed
        if math.isclose(computed, value, rel_tol=1e-6, abs_tol=max(1e-6, spec.rounded)):
            interval = measure(items, formula, names, most=most).interval
        else:
            formula = None
    if value is None:
        raise ValueError(f"{spec.label}: a metric without a formula needs a value")
    chance_levels: dict[str, float] = {}
    for name, columns in baselines.items():
        # there is none if no column depends on the answers
        if formula and spec.higher_is_better is not None and set(names) & set(columns):
            values = columns_of(items, names) | {each: columns[each] for each in names if each in columns}
            level = statistics.aggregate(formula, values, names)
            chance_levels |= {} if math.isnan(level) else {name: level}
    return Metric(
        value=float(value),
        ci_low=interval.low,
        ci_high=interval.high,
        n=int(present.sum()),
        clusters=int(items.loc[present, "image"].nunique()),
        higher_is_better=spec.higher_is_better,
        scale=spec.scale,
        label=spec.label,
        ci_method=interval.method,
        aggregation=formula,
        columns=names if formula else (),
        most=most if formula else None,
        chance_levels=chance_levels,
        blind=blind.blind_scores(items, formula, names, most=most) if formula else {},
    )


def thumbnail(image: Any, longest: int = 160) -> bytes:
    """A PIL image as a small JPEG."""
    import io

    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def thumbnails(names: Sequence[str], opener: Callable[[int], Any], most: int = MAX_THUMBNAILS) -> list[bytes | None]:
    """A column of thumbnails: in the first item of each of at most ``most`` evenly spaced images.

    The selection depends on ``names``, the image of each item, alone, so that it is the same for every model.
    ``opener`` opens the image of an item by its index.
    """
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    starts = sorted(first.values())
    chosen = {starts[number * len(starts) // most] for number in range(most)} if len(starts) > most else set(starts)
    return [thumbnail(opener(number)) if number in chosen else None for number in range(len(names))]


def hash_order(names: Iterable[Any]) -> list[Any]:
    """Names in the order of their SHA-256: pseudo-random and independent of other names."""
    return sorted(names, key=lambda name: hashlib.sha256(str(name).encode()).digest())


def first_per_image(names: Iterable[Any], images: Mapping[Any, str], most: int) -> list[Any]:
    """The first ``most`` names, skipping those whose image is already selected; one without image counts as its own."""
    taken: dict[str, Any] = {}
    for name in names:
        if len(taken) == most:
            break
        taken.setdefault(images.get(name, str(name)), name)
    return list(taken.values())
