"""The fields of a result file, and the columns of its table of items."""

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

SCHEMA = 7
WITH_ALL_NUMBERS = {6, SCHEMA}
"""Schemas whose results are not measured again."""
CHANCE = "chance"
UNREAD = "unread"
"""The metric, and its item column, of answers that were not read (see `benchmarks.tasks.mllm.unread`)."""
UNREAD_WRONG = "unread_wrong"
"""The condition of a metric in which these count as wrong answers."""
MAX_UNREAD = 0.02
"""The share of answers not read above which it is printed and noted."""
ITEM_COLUMNS: dict[str, str] = {
    "item": "unique within the benchmark; pairs the same item of two models",
    "image": "the image's reference; items of one image form a cluster",
    "direction": "retrieval: 'i2t' or 't2i'; otherwise empty",
    "category": "the benchmark's own category of the item, or empty",
    "question": "the prompt (retrieval: the query caption, or empty for a query image)",
    "prediction": "the answer (retrieval: the first caption found, or the reference of the first image)",
    "target": "the expected answer (several: joined by ' | ')",
    "score": "the item's contribution to the first primary metric, higher is better; NaN if none",
    "thumbnail": "JPEG bytes, longest side 160, in the first item of each image; null elsewhere",
}
RAW_ANSWER = "raw_answer"  # of LLaVAs, if a task's filter or white space made ``prediction`` another text
IMAGE_HASH = "image_hash"  # of encoders' benchmarks: hash of the image's file, by which benchmarks share images
BLOCKER = "blocker"  # of retrieval: the image without which a missed query would be a hit at rank 1; null if none is


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number with its interval; outputs show ``value * scale``, likewise ``ci_low`` and ``ci_high``.

    Args:
        value: of the aggregation, or of lmms-eval's own.
        ci_low: lower end of the 95 % interval, in the unit of ``value``; None if undefined.
        ci_high: upper end.
        n: number of items that enter it; 0 if an imported file does not state it.
        clusters: number of distinct images among them.
        higher_is_better: None if neither direction is better (POPE's yes ratio).
        scale: 100 for a fraction that is shown in percent, and for CIDEr, as in papers.
        label: for a column header, ``"T→I R@1"``.
        ci_method: ``"wilson"``, ``"student"`` or ``"none"``, over images; of an imported metric also
            ``"printed"``, from the standard error that its tool prints, or ``"stated"``.
        aggregation: a name in ``aggregation.AGGREGATIONS``; None if the items do not determine the value.
        columns: the item columns that the aggregation takes.
        most: the maximum of an item, where a bounded aggregation ends; None if it is not known, and in files of earlier
            versions (`item_scores.most_of` has theirs).
        chance_levels: values of the trivial baselines, in the unit of ``value``: ``"chance"`` (uniform over the
            options), ``"always yes"``, ``"majority class"``; empty for free-form answers.
        minus: of a gain, the item columns of the baseline: the value is that of ``columns`` minus that of these.
        baseline_of: the metric of which this is the value in another ``condition`` (see `results.baselines`).
        gain_of: the metric of which this is the gain over its value in that condition.
        condition: one of ``baselines.CONDITIONS``; empty for other metrics.
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
    most: float | None = None
    chance_levels: Mapping[str, float] = field(default_factory=dict)
    minus: tuple[str, ...] = ()
    baseline_of: str = ""
    gain_of: str = ""
    condition: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model on one benchmark.

    Args:
        model_name: the model's name in the table.
        benchmark: the column's name.
        benchmark_type: ``"retrieval"``, ``"classification"``, ``"captions"``, ``"choice"`` or ``"mllm"``.
        status: ``"ok"`` or ``"failed"``.
        failure_reason: the error in one line.
        model: ``{"path": …, "hash": …}``; of a table that states the seeds of trainings, the ``seed``, too.
        metrics: name → metric; empty if it failed.
        primary: the metrics of the main table, in order.
        missing_metrics: usual metrics of this benchmark that are absent → reason.
        trivial_baseline_note: the score of a model that ignores the image, as a sentence.
        protocol: all settings that the numbers depend on besides the model, name → value.
        fingerprint: SHA-256 of ``protocol``.
        items: file name of the items table next to the JSON, or of that in memory; None without one.
        items_hash: SHA-256 of that file; empty without one, and in files of earlier versions.
        seconds: wall time of this benchmark without model loading.
        versions: of the libraries.
        created: ISO time.
        git: the suite's commit and whether it had uncommitted changes; empty outside a checkout.
        command: the command line.
        execution: what the last digits depend on, as ``batch_size`` and ``device``; empty in files of earlier versions.
        key: hash of the inputs; ``clips-bench run`` skips a benchmark whose key is unchanged.
        measured_elsewhere: of a result that `clips-bench import` read: ``tool``, ``version``, ``file``, ``sha256`` and
            ``intervals`` (what they are from); empty for results of this suite.
        schema: version of this format.
        path: the JSON file that it was read from (not stored); of a result in memory, what would be its file.
        frame: the items, of a result in memory (not stored).
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
    items_hash: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=library_versions)
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    git: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    execution: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    measured_elsewhere: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    path: Path | None = None
    frame: Any = field(default=None, compare=False, repr=False)


def columns_of(items: pd.DataFrame, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Column name → (N,) array, the input of ``statistics``."""
    return {name: items[name].to_numpy() for name in names}
