"""From items to a score: the only way to a metric's value, its interval, and what comparisons need.

A *spec* is what defines a metric on its items: a `Metric` of a result file, or a `MetricSpec` of a benchmark. `measure`
computes a score at once, as an evaluation does. A report gets the influence of the images first (`scores_of`), pools
the training noise of all models, and then computes the intervals.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.baselines import gain_scores, rows_of
from benchmarks.results.noise import Scores, TrainingNoise
from benchmarks.results.result_types import BLOCKER, IMAGE_HASH, columns_of
from benchmarks.results.statistics import ConfidenceInterval, image_scores, scores_interval

if TYPE_CHECKING:
    import pandas as pd


_HASH = "[0-9a-f]{16}"  # the name of an image of an MLLM task
_RANK_ONE = {"i2t_r1", "t2i_r1"}


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The items of one result, ordered by name.

    Args:
        frame: without gallery columns.
        keys: (N,) each item with its image.
        clusters: (N,) number of each item's image, in the order of the images' names.
        images: (N,) name of each item's image that other benchmarks share, its hash if that is known.
    """

    frame: pd.DataFrame
    keys: np.ndarray
    clusters: np.ndarray
    images: np.ndarray

    def part(self, rows: np.ndarray) -> ItemTable:
        """Some of the items, by (N,) bool."""
        return ItemTable(self.frame[rows], self.keys[rows], self.clusters[rows], self.images[rows])

    def of_metric(self, spec: Spec) -> ItemTable:
        """The items of a metric: those of the blind runs, if it is about them."""
        rows = rows_of(self.frame, spec.columns)
        return self if rows is None else self.part(rows)

    @staticmethod
    def of(frame: pd.DataFrame, benchmark: str, shared: ItemTable | None) -> ItemTable:
        """The table of a benchmark's items; those of models with the same items share the names of ``shared``."""
        frame = frame.sort_values("item")
        if shared is not None and all(frame[name].array.equals(shared.frame[name].array) for name in ("item", "image")):
            return ItemTable(frame, shared.keys, shared.clusters, shared.images)
        image = frame["image"].astype(str)
        keys = (frame["item"].astype(str) + "\n" + image).to_numpy(dtype=object)
        known = frame[IMAGE_HASH] if IMAGE_HASH in frame else image.where(image.str.fullmatch(_HASH))
        images = np.asarray(known.fillna(f"{benchmark}\n" + image).to_numpy(), dtype=object)  # or a name of its own
        return ItemTable(frame, keys, np.unique(image.to_numpy(dtype=object), return_inverse=True)[1], images)


class Spec(Protocol):
    """The definition of a metric on its items; see `Metric`."""

    @property
    def aggregation(self) -> str | None:
        """A name in ``AGGREGATIONS``."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The item columns that it takes."""

    @property
    def minus(self) -> tuple[str, ...]:
        """Of a gain, those of the baseline; empty if ``columns`` are differences already."""

    @property
    def gain_of(self) -> str:
        """Of a gain, the metric."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """A metric of one table of items.

    Args:
        value: in the metric's own unit.
        interval: over images.
        n: number of items that enter it.
        clusters: number of their images.
        evidence: the influence of each image.
    """

    value: float
    interval: ConfidenceInterval
    n: int
    clusters: int
    evidence: Scores


def measure(items: pd.DataFrame, spec: Spec, *, most: float | None) -> Score:
    """A metric of one table of items, over images; ``most`` is that of `image_scores`."""
    image = items["image"].astype(str).to_numpy(dtype=object)
    clusters = np.unique(image, return_inverse=True)[1]
    table = ItemTable(items, items["item"].to_numpy(dtype=object), clusters, image)  # neither sorted nor shared
    table = table.of_metric(spec)
    evidence = scores_of([table], spec, most=most, trained=False)
    present = table.frame[spec.columns[0]].notna().to_numpy()
    return Score(
        value=evidence.value,
        interval=scores_interval(evidence, TrainingNoise()),
        n=int(present.sum()),
        clusters=len(np.unique(table.clusters[present])),
        evidence=evidence,
    )


def value_of(items: pd.DataFrame, spec: Spec) -> float:
    """The value alone; NaN if no item has one."""
    rows, formula = rows_of(items, spec.columns), AGGREGATIONS[str(spec.aggregation)]
    frame = items if rows is None else items[rows]
    value = formula.value(columns_of(frame, spec.columns), spec.columns)
    return value - formula.value(columns_of(frame, spec.minus), spec.minus) if spec.minus else value


def scores_of(tables: Sequence[ItemTable], spec: Spec, *, most: float | None, trained: bool) -> Scores:
    """A metric of one model, of one table of the same items for each seed."""
    first, formula = tables[0], str(spec.aggregation)

    def of_columns(columns: Sequence[str]) -> Scores:
        return image_scores(
            formula,
            [columns_of(table.frame, columns) for table in tables],
            columns,
            first.clusters,
            items=first.keys,
            most=most,
            trained=trained,
        )

    scores = of_columns(spec.columns)
    if spec.gain_of:
        scores = (
            gain_scores(scores, of_columns(spec.minus)) if spec.minus else dataclasses.replace(scores, is_gain=True)
        )
    missing, places = _missing(spec, first), np.unique(first.clusters, return_index=True)[1]
    scores = dataclasses.replace(scores, missing=missing, images=first.images[places])
    shares_gallery = set(spec.columns) <= _RANK_ONE and all(BLOCKER in table.frame for table in tables)
    return with_gallery(scores, spec.columns, tables) if shares_gallery and not math.isnan(scores.value) else scores


def share_items(spec: Spec, tables: Sequence[ItemTable]) -> bool:
    """Whether tables have the same items with values."""
    first = tables[0]
    return len(first.keys) > 0 and all(
        _equal(table.keys, first.keys)
        and (table is first or np.array_equal(_missing(spec, table), _missing(spec, first)))
        for table in tables
    )


def _missing(spec: Spec, table: ItemTable) -> np.ndarray:
    """(N, K) whether an item has no value in a column, so that a metric leaves it out; empty if all items have values.

    F1 counts an item without a value as 0, and leaves out none.
    """
    lacking = table.frame[[*spec.columns, *spec.minus]].isna().to_numpy()
    return lacking if lacking.any() and spec.aggregation != "f1" else np.zeros(0, bool)


def with_gallery(scores: Scores, columns: Sequence[str], tables: Sequence[ItemTable]) -> Scores:
    """The influence of each image as an answer, too: without it, the queries that it blocks would be hits."""
    names = np.unique(tables[0].frame["image"].to_numpy())
    present = tables[0].frame[[*columns]].notna().to_numpy()
    weights = (present / present.sum(axis=0)).sum(axis=1) / len(columns)
    names_of_blockers = [table.frame[BLOCKER] for table in tables]
    blockers = np.stack(
        [np.where(each.notna(), np.searchsorted(names, each.fillna("")), -1) for each in names_of_blockers]
    )
    blockers[:, weights == 0] = -1
    gallery = np.stack([np.bincount(row[row >= 0], weights[row >= 0], len(names)) for row in blockers])
    return dataclasses.replace(scores, influence=scores.influence - gallery, blockers=blockers, item_weights=weights)


def _equal(keys: np.ndarray, others: np.ndarray) -> bool:
    return keys is others or np.array_equal(keys, others)


def comparable(first: Scores | None, second: Scores | None) -> bool:
    """Whether two models have scores for the same items."""
    if first is None or second is None:
        return False
    return _equal(first.items, second.items) and np.array_equal(first.missing, second.missing)
