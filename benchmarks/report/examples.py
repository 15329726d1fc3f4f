"""Examples of a benchmark's items with all models' answers, and items on which one model of a pair is better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.cards import MAX_SECTION_BYTES, Answer, Card, Thumbnail, take_within_budget, thumbnails_of
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.protocol import ranking_key
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.evaluation import first_per_image, hash_order

MAX_PER_BENCHMARK = 6
MAX_PER_DIRECTION = 3
_MAX_TEXT_CHARS = 280
_LEFT_IMAGE = "the left image"


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """Two models on the items on which they differ.

    Args:
        first: the baseline, or the first model of the table.
        second: the other model.
        first_better: number of items on which the first model has the higher score.
        second_better: number of items on which the second model has the higher score.
        examples: alternating between items on which the second and the first model is better.
        left_out: number of examples that are omitted to limit the page size.
    """

    first: str
    second: str
    first_better: int
    second_better: int
    examples: tuple[Card, ...]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of one benchmark.

    Args:
        benchmark: its name.
        cards: of the selected items, with the answers of all models.
        items: number of items that the cards were selected from.
        left_out: number of cards, those of the pairs included, that are omitted to limit the page size.
        pairs: pairs of models.
        disagreements: number of items on which the models' scores differ; None for a single model.
        graded: whether items have scores other than right and wrong.
    """

    benchmark: str
    cards: tuple[Card, ...]
    items: int
    left_out: int
    pairs: tuple[RowPair, ...]
    disagreements: int | None
    graded: bool


def answer_galleries(source: ReportSource) -> list[Examples]:
    """A gallery for each benchmark with saved items."""
    galleries = (_gallery(source, name, MAX_SECTION_BYTES // len(source.benchmarks)) for name in source.benchmarks)
    return [gallery for gallery in galleries if gallery is not None and gallery.cards]


@dataclass(frozen=True)
class _Items:
    """The items of one benchmark.

    Args:
        tables: model → items, by name.
        scores: items × models.
        images: item → image.
        thumbnails: image → thumbnail.
        shown: item → whether it has a thumbnail.
        graded: whether there are scores other than right and wrong.
        scale: display factor of the scores, from the benchmark's first metric.
    """

    tables: Mapping[str, pd.DataFrame]
    scores: pd.DataFrame
    images: Mapping[Any, str]
    thumbnails: Mapping[str, Thumbnail]
    shown: pd.Series
    graded: bool
    scale: float

    @staticmethod
    def of(results: Mapping[str, Result]) -> _Items | None:
        tables = _item_tables(results)
        if not tables:
            return None
        scores = pd.DataFrame({row: table["score"] for row, table in tables.items()}).dropna(how="all")
        image = _first_table(tables)["image"]
        images = dict(zip(image.index.to_numpy(dtype=object), map(str, image.to_numpy(dtype=object)), strict=True))
        graded = not scores.isin([0.0, 1.0]).where(scores.notna(), True).all(axis=None)
        scale = next((each.metrics[each.primary[0]].scale for each in results.values() if each.primary), 1.0)
        thumbnails = thumbnails_of(tables.values())
        shown = scores.index.map(images).isin(thumbnails)
        return _Items(tables, scores, images, thumbnails, pd.Series(shown, scores.index), bool(graded), scale)

    def with_thumbnails(self, chosen: pd.Series) -> list[Any]:
        """The items that are true and have a saved thumbnail; all that are true if none has one."""
        return [*chosen.index[chosen & self.shown]] or [*chosen.index[chosen]]

    def example(self, item: Any, rows: Sequence[str]) -> Card:
        entries = {row: self.tables[row].loc[item] for row in rows if item in self.tables[row].index}
        first = next(iter(entries.values()))
        retrieves_images = str(first["direction"]) == "t2i"
        return Card(
            thumbnail=self.thumbnails.get(str(first["image"])),
            question=strip_control_chars(str(first["question"]), _MAX_TEXT_CHARS),
            expected=_LEFT_IMAGE if retrieves_images else _target(str(first["target"])),
            answers=tuple(
                _answer(row, entry, self.thumbnails if retrieves_images else {}, self.scale if self.graded else None)
                for row, entry in entries.items()
            ),
        )


def _item_tables(results: Mapping[str, Result]) -> dict[str, pd.DataFrame]:
    """Model → its items by name, of the models with items.

    The names are one index object where they are equal: pandas then hashes and aligns them once and not for each model.
    """
    tables: dict[str, pd.DataFrame] = {}
    for row, result in results.items():
        if result.items:
            tables[row] = table = read_items(result).set_index("item")
            if table.index.equals(_first_table(tables).index):
                table.index = _first_table(tables).index
    return tables


def _first_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The items of the first model; the questions are the same for all."""
    return next(iter(tables.values()))


def _gallery(source: ReportSource, benchmark: str, budget: int) -> Examples | None:
    results = source.results(benchmark)
    items = _Items.of(results)
    if items is None:
        return None
    selected = select_items(items.scores[items.shown] if items.shown.any() else items.scores, items.images)
    examples, left_out = take_within_budget([items.example(item, list(items.tables)) for item in selected], budget // 2)
    names = [pair for pair in _pairs(source, results) if set(pair) <= items.tables.keys()]
    pairs = [_pair(items, first, second, budget // 2 // len(names)) for first, second in names]
    return Examples(
        benchmark=benchmark,
        cards=examples,
        pairs=tuple(pairs),
        disagreements=int(_disagree(items.scores).sum()) if len(items.tables) > 1 else None,
        items=len(items.scores),
        graded=items.graded,
        left_out=left_out + sum(pair.left_out for pair in pairs),
    )


def _pairs(source: ReportSource, results: Mapping[str, Result]) -> Iterator[tuple[str, str]]:
    """Each model with its baseline, or the first model if the report has no baseline; pairs of equal protocol only."""
    measured = [row for row in source.rows if row.name in results]
    default = None if any(row.baseline for row in source.rows) or not measured else measured[0].name
    for row in measured:
        other = row.baseline or default
        if other is not None and other in results and other != row.name:
            first, second = (ranking_key(results[name].protocol) for name in (other, row.name))
            if first == second:
                yield other, row.name


def _pair(items: _Items, first: str, second: str, budget: int) -> RowPair:
    """Examples in both directions, in hash order; the same number of each unless a direction has none."""
    difference = items.scores[second] - items.scores[first]
    better = {second: difference > 1e-9, first: difference < -1e-9}
    sampled = [
        first_per_image(hash_order(items.with_thumbnails(chosen)), items.images, MAX_PER_DIRECTION)
        for chosen in better.values()
    ]
    num_each = min(map(len, sampled)) or MAX_PER_DIRECTION
    selected = [names[index] for index in range(num_each) for names in sampled if index < len(names)]
    examples, left_out = take_within_budget([items.example(item, (second, first)) for item in selected], budget)
    return RowPair(
        first=first,
        second=second,
        first_better=int(better[first].sum()),
        second_better=int(better[second].sum()),
        examples=examples,
        left_out=left_out,
    )


def _disagree(scores: pd.DataFrame) -> pd.Series:
    return scores.max(axis=1) - scores.min(axis=1) > 1e-9


def select_items(scores: pd.DataFrame, images: Mapping[Any, str], max_items: int = MAX_PER_BENCHMARK) -> list[Any]:
    """Select items of different images; the result is deterministic.

    Disagreements come first, alternating over the set of best models; then one item on which all models are at their
    worst and one on which all are at their best. Otherwise the order is that of the hashes.

    Args:
        scores: items × models.
        images: item → image.
        max_items: maximum number of items.
    """
    scores = scores.loc[hash_order(scores.index)]
    disagree = _disagree(scores)
    agreed = scores[~disagree].mean(axis=1)
    worst, best = (list(agreed[agreed == extreme].index) for extreme in (agreed.min(), agreed.max()))
    disputed = _alternate_over_best(scores[disagree])
    selected: list[Any] = []
    num_agreed = min(max_items, bool(worst) + bool(best))
    steps = (
        *((disputed, max_items - num_agreed), (worst, 1), (best, 1)),
        *((disputed, max_items), ([*worst, *best], 4)),  # fill up
    )
    for candidates, room in steps:
        selected = first_per_image([*selected, *candidates], images, min(max_items, len(selected) + room))
    return selected


def _alternate_over_best(scores: pd.DataFrame) -> list[Any]:
    """The items, alternating over the sets of models with the best score."""
    by_best: dict[tuple[bool, ...], list[Any]] = {}
    best = scores.ge(scores.max(axis=1) - 1e-9, axis=0)
    for item, models in zip(scores.index, best.to_numpy().tolist(), strict=True):
        by_best.setdefault(tuple(models), []).append(item)
    rounds = itertools.zip_longest(*(by_best[models] for models in sorted(by_best, reverse=True)))
    return [item for items in rounds for item in items if item is not None]


def _target(text: str) -> str:
    """The first expected answer, and the other one or their number."""
    first, *others = dict.fromkeys(text.split(" | "))
    more = f" (or {len(others)} others)" if len(others) > 1 else f" (or {others[0]})" if others else ""
    return strip_control_chars(first, _MAX_TEXT_CHARS) + strip_control_chars(more, _MAX_TEXT_CHARS)


def _answer(row: str, item: pd.Series, thumbnails: Mapping[str, Thumbnail], scale: float | None) -> Answer:
    score = float(item["score"]) if item["score"] is not None else math.nan
    known = not math.isnan(score)
    image = thumbnails.get(str(item["prediction"]))
    return Answer(
        row=row,
        text="" if image else strip_control_chars(str(item["prediction"]), _MAX_TEXT_CHARS),
        thumbnail=image,
        right=score > 0 if known and scale is None else None,
        score=f"{round(score * scale, 1):.3g}" if known and scale is not None else "",
    )
