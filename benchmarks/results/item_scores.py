"""From items to the input of the noise model: a model's metric and the influence of every image on it.

`measure` is the way from the items of an evaluation, `ItemScores` that from result files. They share their code, so
that an interval in a file is that of its report.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks.results.blind import BLIND_KINDS, BlindPair, gain_scores
from benchmarks.results.noise import Scores, TrainingNoise
from benchmarks.results.result_types import BLOCKER, IMAGE_HASH
from benchmarks.results.results import Metric, Result, columns_of, has_items, read_items
from benchmarks.results.statistics import ConfidenceInterval, image_scores, scores_interval

if TYPE_CHECKING:
    import pandas as pd


_HASH = "[0-9a-f]{16}"  # the name of an image of an MLLM task
_RANK_ONE = {"i2t_r1", "t2i_r1"}
_PER_CENT = 100.0  # the smallest scale of a ratio (OCRBench's is 1,000)


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

    @staticmethod
    def of(frame: pd.DataFrame, benchmark: str, shared: ItemTable | None) -> ItemTable:
        """The table of a benchmark's items; those of models with the same items share the names of ``shared``."""
        frame = frame.sort_values("item")
        image = frame["image"].astype(str)
        keys = (frame["item"].astype(str) + "\n" + image).to_numpy(dtype=object)
        if shared is not None and np.array_equal(keys, shared.keys):
            return ItemTable(frame, shared.keys, shared.clusters, shared.images)
        known = frame[IMAGE_HASH] if IMAGE_HASH in frame else image.where(image.str.fullmatch(_HASH))
        images = np.asarray(known.fillna(f"{benchmark}\n" + image).to_numpy(), dtype=object)  # or a name of its own
        return ItemTable(frame, keys, np.unique(image.to_numpy(dtype=object), return_inverse=True)[1], images)


class Measured(NamedTuple):
    """A metric of one model with the influence of each image, and its interval over images."""

    scores: Scores
    interval: ConfidenceInterval


def measure(items: pd.DataFrame, formula: str, columns: Sequence[str], *, most: float | None) -> Measured:
    """A metric of one table of items; the arguments are those of `image_scores`."""
    image = items["image"].astype(str).to_numpy(dtype=object)
    clusters = np.unique(image, return_inverse=True)[1]
    table = ItemTable(items, items["item"].to_numpy(dtype=object), clusters, image)  # neither sorted nor shared
    found = _scores([table], formula, columns, most=most, trained=False)
    return Measured(found, scores_interval(found, TrainingNoise()))


def most_of(name: str, metric: Metric) -> float | None:
    """The maximum of an item of a metric; None if it is not known.

    Files of earlier versions do not state it. Their ratios of per cent or more end at 1; of their metrics in points,
    those that lmms-eval calls ``gpt_eval_…`` end at 100, and others have no known end.
    """
    if metric.most is not None:
        return metric.most
    return 1.0 if metric.scale >= _PER_CENT else _PER_CENT if name.startswith("gpt_eval_") else None


class ItemScores:
    """Reads each table of items once, and computes metrics of models from them."""

    def __init__(self) -> None:
        self._tables: dict[Path | None, ItemTable | None] = {}
        self._categories: dict[tuple[Path | None, str], ItemTable] = {}
        self._latest: dict[str, ItemTable] = {}

    def items(self, result: Result) -> pd.DataFrame | None:
        """A result's items, ordered by name, without gallery columns; None if it has none."""
        table = self._table(result)
        return None if table is None else table.frame

    def _table(self, result: Result, category: str | None = None) -> ItemTable | None:
        if result.path not in self._tables:
            self._tables[result.path] = self._read(result) if has_items(result) else None
        table = self._tables[result.path]
        if table is None or category is None:
            return table
        key = result.path, category
        if key not in self._categories:
            chosen = (table.frame["category"] == category).to_numpy()
            parts = (table.frame[chosen], table.keys[chosen], table.clusters[chosen], table.images[chosen])
            self._categories[key] = ItemTable(*parts)
        return self._categories[key]

    def _read(self, result: Result) -> ItemTable:
        """Read a table; models with the same items share their names, so that these are compared and sorted once."""
        frame, shared = read_items(result, numbers_only=True), self._latest.get(result.benchmark)
        self._latest[result.benchmark] = table = ItemTable.of(frame, result.benchmark, shared)
        return table

    def of_model(
        self, results: Sequence[Result], metric: str, *, single_training: bool = False, category: str | None = None
    ) -> Scores | None:
        """A metric of one model; None if the items do not determine it, or differ between seeds.

        Args:
            results: of the model on one benchmark, one per seed. Results of the same weights count once, because a
                pretrained model has no seeds.
            single_training: whether a single result comes from a training run, with the noise of other models' runs.
        """
        found_items = self._metric_items(results, metric, category)
        if found_items is None:
            return None
        spec, tables = found_items
        trained = len(tables) > 1 or single_training
        found = _scores(tables, str(spec.aggregation), spec.columns, most=most_of(metric, spec), trained=trained)
        return None if math.isnan(found.value) else found

    def why_not(self, results: Sequence[Result], metric: str) -> str:
        """Why `of_model` returns None."""
        metrics = [result.metrics.get(metric) for result in results]
        if any(each is None or each.aggregation is None for each in metrics):
            return "only the scorer's total is known"
        if not all(map(has_items, results)):
            return "items are missing"
        return "the items do not determine it" if len(results) == 1 else "the seeds have scores for different items"

    def gains(self, results: Sequence[Result], metric: str, *, single_training: bool = False) -> dict[str, BlindPair]:
        """Kind of blind run → the metric with and without the image, of one model with one result per seed."""
        found = self._metric_items(results, metric, None) if results else None
        if found is None:
            return {}
        spec, tables = found
        frames = [table.frame for table in tables]
        most, formula = most_of(metric, spec), str(spec.aggregation)
        trained = len(tables) > 1 or single_training
        pairs = {
            kind: gain_scores(frames, formula, spec.columns, kind, most=most, trained=trained) for kind in BLIND_KINDS
        }
        return {kind: pair for kind, pair in pairs.items() if pair is not None}

    def _metric_items(
        self, results: Sequence[Result], metric: str, category: str | None
    ) -> tuple[Metric, list[ItemTable]] | None:
        """A metric and the items of each seed; None if they do not determine it, or differ between seeds."""
        metrics = [result.metrics.get(metric) for result in results]
        models = {result.model.get("hash") or str(result.path) for result in results}
        if len(models) == 1 and len({each and each.value for each in metrics}) == 1:
            results, metrics = results[:1], metrics[:1]
        tables = [table for result in results if (table := self._table(result, category)) is not None]
        spec = metrics[0] if metrics else None
        if spec is None or spec.aggregation is None or len(tables) < len(results) or not _share_items(spec, tables):
            return None
        definition = (spec.aggregation, spec.columns)
        if any(each is None or (each.aggregation, each.columns) != definition for each in metrics):
            return None
        return spec, tables


def _scores(
    tables: Sequence[ItemTable], formula: str, columns: Sequence[str], *, most: float | None, trained: bool
) -> Scores:
    """A metric of one model, of one table of the same items for each seed."""
    first = tables[0]
    found = image_scores(
        formula,
        [columns_of(table.frame, columns) for table in tables],
        columns,
        first.clusters,
        items=first.keys,
        most=most,
        trained=trained,
    )
    missing, places = _missing(formula, columns, first), np.unique(first.clusters, return_index=True)[1]
    found = dataclasses.replace(found, missing=missing, images=first.images[places])
    shares_gallery = set(columns) <= _RANK_ONE and all(BLOCKER in table.frame for table in tables)
    return with_gallery(found, columns, tables) if shares_gallery and not math.isnan(found.value) else found


def _share_items(spec: Metric, tables: Sequence[ItemTable]) -> bool:
    """Whether tables have the columns of a metric and the same items."""
    names, first = set(spec.columns), tables[0]

    def missing(table: ItemTable) -> np.ndarray:
        return _missing(str(spec.aggregation), spec.columns, table)

    return len(first.keys) > 0 and all(
        names.issubset(table.frame)
        and _equal(table.keys, first.keys)
        and (table is first or np.array_equal(missing(table), missing(first)))
        for table in tables
    )


def _missing(formula: str, columns: Sequence[str], table: ItemTable) -> np.ndarray:
    """(N, K) whether an item has no value in a column, so that a metric leaves it out; empty if all items have values.

    F1 counts an item without a value as 0, and leaves out none.
    """
    found = table.frame[[*columns]].isna().to_numpy()
    return found if found.any() and formula != "f1" else np.zeros(0, bool)


def with_gallery(scores: Scores, columns: Sequence[str], tables: Sequence[ItemTable]) -> Scores:
    """The influence of each image as an answer, too: without it, the queries that it blocks would be hits."""
    names = np.unique(tables[0].frame["image"].to_numpy())
    present = tables[0].frame[[*columns]].notna().to_numpy()
    weights = (present / present.sum(axis=0)).sum(axis=1) / len(columns)
    found = [table.frame[BLOCKER] for table in tables]
    blockers = np.stack([np.where(each.notna(), np.searchsorted(names, each.fillna("")), -1) for each in found])
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
