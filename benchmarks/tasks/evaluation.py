"""What evaluating one benchmark gives, and how its metrics are computed from its items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from benchmarks.results import statistics
from benchmarks.results.results import Metric, columns_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_TOLERANCE = 1e-6
ChanceLevels = Mapping[str, Mapping[str, "np.ndarray"]]
"""A way to answer without looking (``results.CHANCE``, ``"always yes"``) → item column → (N,) what it would hold."""
MAX_THUMBNAILS = 1000


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """How a metric follows from the items.

    Args:
        label: for a column's head.
        aggregation: a name in ``aggregation.AGGREGATIONS``; None where the scorer alone knows.
        columns: item columns that the formula takes.
        scale: what to multiply the value by to show it.
        higher_is_better: None where neither is better.
        most: the value where all is right, of what is a share.
        rounded: by how much the scorer's own value may differ from the formula's because the scorer rounds.
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
        protocol: all that the numbers depend on besides the model.
        items: one row per item (``results.ITEM_COLUMNS`` and the metrics' columns).
        missing_metrics: metric → why it is missing.
    """

    metrics: Mapping[str, Metric]
    primary: tuple[str, ...]
    protocol: Mapping[str, Any]
    items: pd.DataFrame
    missing_metrics: Mapping[str, str] = field(default_factory=dict)


def compute_metric(
    items: pd.DataFrame, spec: MetricSpec, value: float | None = None, blind: ChanceLevels = MappingProxyType({})
) -> Metric:
    """A metric with its 95 % interval, clustered by picture.

    Args:
        items: the items table.
        spec: how to compute it.
        value: what the benchmark's own scorer says, where there is one; the formula must agree with it,
            otherwise the formula is not used and there is no interval.
        blind: the item columns as they would be, had the answers been made without looking. A column that holds the
            probability of a hit gives the expected score, but for that of a ratio or F1, where it gives the ratio of
            the expected sums.
    """
    names = spec.columns
    present = items[names[0]].notna() if names else items["item"].notna()
    formula = spec.aggregation
    interval = statistics.ConfidenceInterval(low=None, high=None, method="none")
    if formula is not None:
        columns = columns_of(items, names)
        computed = statistics.aggregate(formula, columns, names)
        if value is None:
            value = computed
        if math.isclose(computed, value, rel_tol=_TOLERANCE, abs_tol=max(_TOLERANCE, spec.rounded)):
            interval = statistics.confidence_interval(
                formula, columns, names, items["image"].to_numpy(), most=spec.most
            )
        else:
            formula = None
    if value is None:
        raise ValueError(f"{spec.label}: a metric without a formula needs a value")
    return Metric(
        value=float(value),
        ci_low=None if interval.low is None else min(interval.low, value),  # a skewed metric's may leave the value out
        ci_high=None if interval.high is None else max(interval.high, value),
        n=int(present.sum()),
        clusters=int(items.loc[present, "image"].nunique()),
        higher_is_better=spec.higher_is_better,
        scale=spec.scale,
        label=spec.label,
        ci_method=interval.method,
        aggregation=formula,
        columns=names if formula else (),
        chance_levels=_blind(items, spec, blind) if formula else {},
    )


def _blind(items: pd.DataFrame, spec: MetricSpec, ways: ChanceLevels) -> dict[str, float]:
    """The metric, had the answers been made without looking; left out where none of its columns depends on them."""
    found: dict[str, float] = {}
    for way, columns in ways.items():
        if spec.aggregation and spec.higher_is_better is not None and set(spec.columns) & set(columns):
            answered = columns_of(items, spec.columns)
            answered |= {name: columns[name] for name in spec.columns if name in columns}
            value = statistics.aggregate(spec.aggregation, answered, spec.columns)
            found |= {} if math.isnan(value) else {way: value}
    return found


def thumbnail(image: Any, longest: int = 160) -> bytes:
    """A PIL image as a small JPEG."""
    import io

    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def thumbnails(names: Sequence[str], opener: Callable[[int], Any], most: int = MAX_THUMBNAILS) -> list[bytes | None]:
    """A column of thumbnails: in the first item of a picture, of at most ``most`` pictures, evenly spread.

    Which pictures these are follows from ``names`` alone, so that it is the same for every row.

    Args:
        names: the picture of each item.
        opener: number of an item → its PIL picture.
        most: so many pictures at most.
    """
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    places = sorted(first.values())
    chosen = {places[number * len(places) // most] for number in range(most)} if len(places) > most else set(places)
    return [thumbnail(opener(number)) if number in chosen else None for number in range(len(names))]
