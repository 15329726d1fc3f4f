"""What a result file holds, and the columns of its table of items."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clips.core.artifact import library_versions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA = 4
CHANCE = "chance"
ITEM_COLUMNS: dict[str, str] = {
    "item": "unique within the benchmark; pairs the same item of two rows",
    "image": "the picture's reference; items with the same one form a cluster",
    "direction": "retrieval: 'i2t' or 't2i'; otherwise empty",
    "category": "the benchmark's own kind of item, or empty",
    "question": "what the model was asked (retrieval: the query caption, or empty for a query picture)",
    "prediction": "what it answered (retrieval: the first caption found, or the reference of the first picture)",
    "target": "the expected answer (several: joined by ' | ')",
    "score": "this item's part in the first primary metric, higher is better; NaN where there is none",
    "thumbnail": "JPEG bytes, longest side 160, in the first item of each picture; null elsewhere",
}
SHOWN_COLUMNS: dict[str, str] = {
    "found": "retrieval: what a query found, as JSON (`encoders.found`); null where it was not drawn",
    "map": "pointing: JPEG bytes, how similar each place of the picture is to the phrase (`encoders.pointing`)",
}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number with its interval. To be shown: ``value * scale``, likewise ``low`` and ``high``.

    Args:
        value: what the formula, or lmms-eval's own aggregation, gives.
        ci_low: lower end of the 95 % interval, in the unit of ``value``; None where none can be given.
        ci_high: upper end.
        n: items that enter it.
        clusters: different pictures among them.
        higher_is_better: None where neither is better (POPE's share of yes).
        scale: 100 where ``value`` is a fraction that is shown in per cent, or as papers print CIDEr.
        label: for a column's head, ``"T→I R@1"``.
        ci_method: ``"wilson"``, ``"student"`` or ``"none"``, over images.
        aggregation: a name in ``aggregation.AGGREGATIONS``; None where the value cannot be computed from the items.
        columns: the item columns that the formula takes.
        chance_levels: what answers give that are made without looking, in the unit of ``value``: ``"chance"`` (each
            option is drawn as often as any other), ``"always yes"``, ``"majority class"``; empty where nothing can be
            guessed.
    """

    value: float
    ci_low: float | None
    ci_high: float | None
    n: int
    clusters: int
    higher_is_better: bool | None
    scale: float
    label: str
    ci_method: str
    aggregation: str | None = None
    columns: tuple[str, ...] = ()
    chance_levels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is known about one model on one benchmark.

    Args:
        model_name: the model's name in the table.
        benchmark: the column's name.
        benchmark_type: ``"retrieval"``, ``"classification"``, ``"captions"``, ``"pointing"``, ``"choice"`` or
            ``"mllm"``.
        status: ``"ok"`` or ``"failed"``.
        failure_reason: one line, why it failed.
        model: ``{"path": …, "hash": …}``.
        metrics: name → metric; empty where it failed.
        primary: the metrics to show in the main table, in order.
        missing_metrics: metrics that this benchmark usually has → why not here.
        trivial_baseline_note: what a model gets that does not look at the picture, as a sentence.
        protocol: everything that the numbers depend on besides the model, name → value.
        fingerprint: SHA-256 of ``protocol``; numbers are ranked together only where it is equal.
        items: file name of the items table beside the JSON; None where there is none.
        seconds: wall time of this benchmark, model loading left out.
        versions: of the libraries.
        created: ISO time.
        git: commit of the suite and whether it had uncommitted changes; empty outside of a checkout.
        command: the command line that made it.
        key: what ``clips-bench run`` compares to know that this is done already.
        schema: version of this layout.
        path: the JSON file, when read from one (not stored).
    """

    model_name: str
    benchmark: str
    benchmark_type: str
    status: Literal["ok", "failed"]
    failure_reason: str | None = None
    model: Mapping[str, str]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    primary: Sequence[str] = ()
    missing_metrics: Mapping[str, str] = field(default_factory=dict)
    trivial_baseline_note: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    items: str | None = None
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=library_versions)
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    git: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    key: str = ""
    schema: int = SCHEMA
    path: Path | None = None


def columns_of(items: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that a formula takes, as ``statistics`` wants them."""
    return {name: items[name].to_numpy() for name in names}
