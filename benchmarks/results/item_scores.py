"""From result files to the input of the noise model: a model's metric and the influence of every image on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.blind import BLIND_KINDS, gain_scores
from benchmarks.results.noise import Scores
from benchmarks.results.results import Metric, Result, columns_of, has_items, read_items
from benchmarks.results.statistics import image_scores

if TYPE_CHECKING:
    import pandas as pd


_PER_CENT = 100.0  # scale of a ratio; points of 100 have a smaller one, and OCRBench a larger


class ItemScores:
    """Reads each table of items once, and computes metrics of models from them."""

    def __init__(self) -> None:
        self._tables: dict[Path | None, pd.DataFrame | None] = {}

    def items(self, result: Result) -> pd.DataFrame | None:
        """A result's items, ordered by name, without gallery columns; None if it has none."""
        if result.path not in self._tables:
            table = read_items(result, numbers_only=True).sort_values("item") if has_items(result) else None
            self._tables[result.path] = table
        return self._tables[result.path]

    def of_model(
        self, results: Sequence[Result], metric: str, *, single_training: bool = False, category: str | None = None
    ) -> Scores | None:
        """A metric of one model; None if the items do not determine it, or differ between seeds.

        Args:
            results: of the model on one benchmark, one per seed. Results of the same weights count once, because a
                pretrained model has no seeds.
            metric: its name.
            single_training: whether a single result comes from a training run, with the noise of other models' runs.
            category: use only the items of this category.
        """
        found_items = self._metric_items(results, metric, category)
        if found_items is None:
            return None
        spec, tables = found_items
        found = image_scores(
            str(spec.aggregation),
            [columns_of(table, spec.columns) for table in tables],
            spec.columns,
            tables[0]["image"].to_numpy(),
            items=_item_keys(tables[0]).tolist(),
            most=_most(spec, tables),
            trained=len(tables) > 1 or single_training,
        )
        return None if math.isnan(found.value) else found

    def gains(self, results: Sequence[Result], metric: str) -> dict[str, tuple[Scores, Scores]]:
        """Kind of blind run → the metric with and without the image, of one model with one result per seed."""
        found = self._metric_items(results, metric, None) if results else None
        if found is None:
            return {}
        spec, tables = found
        most, trained, formula = _most(spec, tables), len(tables) > 1, str(spec.aggregation)
        pairs = {
            kind: gain_scores(tables, formula, spec.columns, kind, most=most, trained=trained) for kind in BLIND_KINDS
        }
        return {kind: pair for kind, pair in pairs.items() if pair is not None}

    def _metric_items(
        self, results: Sequence[Result], metric: str, category: str | None
    ) -> tuple[Metric, list[pd.DataFrame]] | None:
        """A metric and the items of each seed; None if they do not determine it, or differ between seeds."""
        metrics = [result.metrics.get(metric) for result in results]
        models = {result.model.get("hash") or str(result.path) for result in results}
        if len(models) == 1 and len({each and each.value for each in metrics}) == 1:
            results, metrics = results[:1], metrics[:1]
        tables = [table for result in results if (table := self.items(result)) is not None]
        if category is not None:
            tables = [table[table["category"] == category] for table in tables]
        spec = metrics[0] if metrics else None
        if spec is None or spec.aggregation is None or len(tables) < len(results) or not _share_items(spec, tables):
            return None
        definition = (spec.aggregation, spec.columns)
        if any(each is None or (each.aggregation, each.columns) != definition for each in metrics):
            return None
        return spec, tables


def _most(spec: Metric, tables: Sequence[pd.DataFrame]) -> float:
    return 1.0 if spec.scale >= _PER_CENT else _largest(tables, spec.columns)


def _largest(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> float:
    """1 for items that are right or wrong, 100 for points."""
    numbers = [table[name].max() for table in tables for name in names if table[name].dtype.kind in "biuf"]
    return 1.0 if max(numbers, default=0.0) <= 1 else _PER_CENT


def _share_items(spec: Metric, tables: Sequence[pd.DataFrame]) -> bool:
    """Whether tables have the columns of a metric and the same items."""
    names, first = set(spec.columns), _item_keys(tables[0])
    return len(first) > 0 and all(
        names.issubset(table) and np.array_equal(_item_keys(table), first) for table in tables
    )


def _item_keys(table: pd.DataFrame) -> np.ndarray:
    """(N,) each item with its image."""
    return (table["item"].astype(str) + "\n" + table["image"].astype(str)).to_numpy(dtype=object)


def comparable(first: Scores | None, second: Scores | None) -> bool:
    """Whether two models were evaluated on the same items."""
    return first is not None and second is not None and np.array_equal(first.items, second.items)
