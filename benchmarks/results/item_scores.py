"""Metrics of models from their result files: each table of items is read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results.measure import ItemTable, scores_of, share_items
from benchmarks.results.noise import Scores
from benchmarks.results.results import Metric, Result, has_items, read_items

if TYPE_CHECKING:
    import pandas as pd

_PER_CENT = 100.0  # the smallest scale of a ratio (OCRBench's is 1,000)


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
            self._categories[key] = table.part((table.frame["category"] == category).to_numpy())
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
        scores = scores_of(tables, spec, most=most_of(metric, spec), trained=trained)
        return None if math.isnan(scores.value) else scores

    def why_not(self, results: Sequence[Result], metric: str) -> str:
        """Why `of_model` returns None."""
        metrics = [result.metrics.get(metric) for result in results]
        if any(each is None or each.aggregation is None for each in metrics):
            return "only the scorer's total is known"
        if not all(map(has_items, results)):
            return "items are missing"
        return "the items do not determine it" if len(results) == 1 else "the seeds have scores for different items"

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
        if spec is None or spec.aggregation is None or len(tables) < len(results):
            return None
        if not all({*spec.columns, *spec.minus} <= {*table.frame} for table in tables):
            return None
        tables = [table.of_metric(spec) for table in tables]
        definition = (spec.aggregation, spec.columns, spec.minus)
        if any(each is None or (each.aggregation, each.columns, each.minus) != definition for each in metrics):
            return None
        return (spec, tables) if share_items(spec, tables) else None
