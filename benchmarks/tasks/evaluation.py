"""The evaluation of one benchmark: its metrics, computed from its items, and the items that the report shows."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.baselines import BLIND_KINDS, IN_BLIND_RUN, SIGHTED, baseline_name, blind_columns, gain_name
from benchmarks.results.measure import measure, value_of
from benchmarks.results.results import Metric
from benchmarks.results.statistics import ConfidenceInterval

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
        minus: of a gain, the item columns of the baseline.
        baseline_of: the metric of which this is a baseline; likewise ``gain_of`` (see `results.baselines`).
        gain_of: the metric of which this is a gain.
        condition: of a baseline or gain.
    """

    label: str
    aggregation: str | None = "mean"
    columns: tuple[str, ...] = ()
    scale: float = 100.0
    higher_is_better: bool | None = True
    most: float = 1.0
    rounded: float = 0.0
    minus: tuple[str, ...] = ()
    baseline_of: str = ""
    gain_of: str = ""
    condition: str = ""


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
        items: the items table.
        spec: the metric.
        value: the value of the benchmark's own scorer, if any; if the aggregation gives another value, it is not used
            and there is no interval.
        baselines: the item columns of the trivial baselines. A column that holds the probability of a hit gives the
            expected score, except for a ratio or F1, where it gives the ratio of the expected sums.
    """
    formula = spec.aggregation
    computed = value if formula is None else value_of(items, spec)
    if value is None:
        value = computed
    if value is None:
        raise ValueError(f"{spec.label}: a metric without a formula needs a value")
    if computed is None or not math.isclose(computed, value, rel_tol=1e-6, abs_tol=max(1e-6, spec.rounded)):
        formula = None
    if formula is None:
        present = items[spec.columns[0]].notna() if spec.columns else items["item"].notna()
        n, clusters = int(present.sum()), int(items.loc[present, "image"].nunique())
        interval, most = ConfidenceInterval(low=None, high=None, method="none"), None
    else:
        most = spec.most if AGGREGATIONS[formula].bounded and math.isfinite(spec.most) else None
        score = measure(items, spec, most=most)
        n, clusters, interval = score.n, score.clusters, score.interval
    chance_levels: dict[str, float] = {}
    for name, columns in baselines.items():
        # there is none if no column depends on the answers
        if formula and spec.higher_is_better is not None and set(spec.columns) & set(columns):
            known = {each: columns[each] for each in spec.columns if each in columns}
            level = value_of(items[[*spec.columns]].assign(**known), spec)
            chance_levels |= {} if math.isnan(level) else {name: level}
    return Metric(
        value=float(value),
        ci_low=interval.low,
        ci_high=interval.high,
        n=n,
        clusters=clusters,
        higher_is_better=spec.higher_is_better,
        scale=spec.scale,
        label=spec.label,
        ci_method=interval.method,
        aggregation=formula,
        columns=spec.columns if formula else (),
        most=most,
        chance_levels=chance_levels,
        minus=spec.minus if formula else (),
        baseline_of=spec.baseline_of,
        gain_of=spec.gain_of,
        condition=spec.condition,
    )


def blind_metrics(items: pd.DataFrame, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The baselines and gains of metrics, on the items of the blind runs; empty without such runs."""
    added: dict[str, Metric] = {}
    for name, metric in metrics.items() if IN_BLIND_RUN in items else ():
        for kind in BLIND_KINDS if metric.aggregation else ():
            sighted, blind = (blind_columns(items, metric.columns, each) for each in (SIGHTED, kind))
            if sighted is None or blind is None:
                continue
            spec = MetricSpec(
                label=f"{metric.label}, {kind} image",
                aggregation=metric.aggregation,
                columns=blind,
                scale=metric.scale,
                higher_is_better=None,
                most=math.inf if metric.most is None else metric.most,
                baseline_of=name,
                condition=kind,
            )
            gain = dataclasses.replace(
                spec,
                label=f"{metric.label} above that with a {kind} image",
                columns=sighted,
                minus=blind,
                higher_is_better=metric.higher_is_better,
                baseline_of="",
                gain_of=name,
            )
            both = {
                baseline_name(name, kind): compute_metric(items, spec),
                gain_name(name, kind): compute_metric(items, gain),
            }
            if all(math.isfinite(each.value) for each in both.values()):
                added |= both
    return added


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
