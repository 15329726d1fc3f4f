"""From result files to what the noise model takes: a metric of one model with the influence of every image on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.noise import Scores
from benchmarks.results.results import Metric, Result, columns_of, has_items, read_items
from benchmarks.results.statistics import image_scores

if TYPE_CHECKING:
    import pandas as pd


_PER_CENT = 100.0  # scale of a ratio; points of 100 have a smaller one, and OCRBench a larger


class ItemScores:
    """Reads tables of items, each once, and computes metrics of models from them."""

    def __init__(self) -> None:
        self._tables: dict[Path | None, pd.DataFrame | None] = {}

    def items(self, result: Result) -> pd.DataFrame | None:
        """A result's items, ordered by name, without its images; None where it kept none."""
        if result.path not in self._tables:
            found = None if not has_items(result) else read_items(result, numbers_only=True).sort_values("item")
            self._tables[result.path] = found
        return self._tables[result.path]

    def of_model(
        self, results: Sequence[Result], metric: str, *, single_training: bool = False, category: str | None = None
    ) -> Scores | None:
        """A metric of one model; None where it cannot be computed from items, or the seeds do not share their items.

        Args:
            results: of the model on one benchmark, one for each seed. Results of the same files are one: a pretrained
                model is evaluated once, however many seeds its row has.
            metric: its name.
            single_training: whether a single result is of a training, whose noise that of other models can tell.
            category: only the items of this category.
        """
        described = [result.metrics.get(metric) for result in results]
        models = {result.model.get("hash") or str(result.path) for result in results}
        if len(models) == 1 and len({found and found.value for found in described}) == 1:
            results, described = results[:1], described[:1]
        tables = [self.items(result) for result in results]
        kept = [table for table in tables if table is not None]
        if category is not None:
            kept = [table[table["category"] == category] for table in kept]
        spec = described[0] if described else None
        if spec is None or spec.aggregation is None or len(kept) < len(results) or not _share_items(spec, kept):
            return None
        if any(
            other is None or (other.aggregation, other.columns) != (spec.aggregation, spec.columns)
            for other in described
        ):
            return None
        found = image_scores(
            spec.aggregation,
            [columns_of(table, spec.columns) for table in kept],
            spec.columns,
            kept[0]["image"].to_numpy(),
            items=_places(kept[0]).tolist(),
            most=1.0 if spec.scale >= _PER_CENT else _largest(kept, spec.columns),
            trained=len(results) > 1 or single_training,
        )
        return None if math.isnan(found.value) else found


def _largest(tables: Sequence[pd.DataFrame], names: Sequence[str]) -> float:
    """1 for items that are right or wrong, 100 for points."""
    numbers = [table[name].max() for table in tables for name in names if table[name].dtype.kind in "biuf"]
    return 1.0 if max(numbers, default=0.0) <= 1 else _PER_CENT


def _share_items(spec: Metric, tables: Sequence[pd.DataFrame]) -> bool:
    """Whether tables have the columns of a metric and the same items."""
    names, first = set(spec.columns), _places(tables[0])
    return len(first) > 0 and all(names.issubset(table) and np.array_equal(_places(table), first) for table in tables)


def _places(table: pd.DataFrame) -> np.ndarray:
    """(N,) each item with its image."""
    return (table["item"].astype(str) + "\n" + table["image"].astype(str)).to_numpy(dtype=object)


def comparable(first: Scores | None, second: Scores | None) -> bool:
    """Whether two models were evaluated on the same items."""
    return first is not None and second is not None and np.array_equal(first.items, second.items)
