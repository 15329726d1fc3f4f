"""Examples of a benchmark's items: what all rows answered, and where one row is right and the one next to it wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.gallery.cards import Answer, Card, Gallery, first_of, tables_of
from benchmarks.report.gallery.thumbnails import MAX_SECTION_BYTES, Thumbnail, take_within_budget, thumbnails_of
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.protocol import ranking_key
from benchmarks.results.results import Result
from benchmarks.tasks.item_sampling import first_per_image, hash_order

MAX_PER_BENCHMARK = 6
MAX_PER_DIRECTION = 3
_LONGEST_TEXT = 280
LEFT_IMAGE = "the left image"


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """Two rows on the items on which they differ.

    Args:
        first: the row that the other is compared with, or the first of the table.
        second: the other row.
        first_better: on how many items the first is right and the second wrong, or the first better.
        second_better: the other way round.
        examples: by turns of the second being better and of the first.
        left_out: examples that would make the page too large.
    """

    first: str
    second: str
    first_better: int
    second_better: int
    examples: tuple[Card, ...]
    left_out: int


@dataclass(frozen=True, kw_only=True)
class Examples(Gallery):
    """The examples of one benchmark; ``left_out`` counts those of pairs as well.

    Args:
        pairs: rows two by two.
        disagreements: on how many items some row is better than another; None of a single row.
        graded: whether items have scores rather than right and wrong.
    """

    pairs: tuple[RowPair, ...]
    disagreements: int | None
    graded: bool


def answer_galleries(source: ReportSource) -> list[Examples]:
    """A gallery for every benchmark whose items were kept."""
    found = (_gallery(source, name, MAX_SECTION_BYTES // len(source.benchmarks)) for name in source.benchmarks)
    return [gallery for gallery in found if gallery is not None and gallery.cards]


@dataclass(frozen=True)
class _Items:
    """The items of one benchmark.

    Args:
        tables: row → items, by name.
        scores: items × rows.
        images: item → image.
        pictures: image → thumbnail.
        graded: whether there are scores other than right and wrong.
        scale: what scores are multiplied by to be shown, as the benchmark's first metric is.
    """

    tables: Mapping[str, pd.DataFrame]
    scores: pd.DataFrame
    images: Mapping[Any, str]
    pictures: Mapping[str, Thumbnail]
    graded: bool
    scale: float

    @staticmethod
    def of(results: Mapping[str, Result]) -> _Items | None:
        tables = tables_of(results, lambda _, table: True)
        if not tables:
            return None
        scores = pd.DataFrame({row: table["score"] for row, table in tables.items()}).dropna(how="all")
        images = {name: str(image) for name, image in first_of(tables)["image"].items()}
        graded = not scores.isin([0.0, 1.0]).where(scores.notna(), True).all(axis=None)
        scale = next((each.metrics[each.primary[0]].scale for each in results.values() if each.primary), 1.0)
        return _Items(tables, scores, images, thumbnails_of(tables.values()), bool(graded), scale)

    def seen(self, names: Sequence[Any]) -> list[Any]:
        """Those of some items whose images can be shown, of many images not all being kept; else all of them."""
        return [name for name in names if self.images.get(name) in self.pictures] or list(names)

    def example(self, item: Any, rows: Sequence[str]) -> Card:
        there = {row: self.tables[row].loc[item] for row in rows if item in self.tables[row].index}
        first = next(iter(there.values()))
        finds_images = str(first["direction"]) == "t2i"
        return Card(
            thumbnail=self.pictures.get(str(first["image"])),
            question=strip_control_chars(str(first["question"]), _LONGEST_TEXT),
            notes=(("expected", LEFT_IMAGE if finds_images else _target(str(first["target"]))),),
            answers=tuple(
                _answer(row, entry, self.pictures if finds_images else {}, self.scale if self.graded else None)
                for row, entry in there.items()
            ),
        )


def _gallery(source: ReportSource, benchmark: str, budget: int) -> Examples | None:
    results = source.results(benchmark)
    items = _Items.of(results)
    if items is None:
        return None
    chosen = select_items(items.scores.loc[items.seen(items.scores.index)], items.images)
    examples, left_out = take_within_budget([items.example(item, list(items.tables)) for item in chosen], budget // 2)
    named = [pair for pair in _pairs(source, results) if set(pair) <= items.tables.keys()]
    pairs = [_pair(items, first, second, budget // 2 // len(named)) for first, second in named]
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
    """Each row with its baseline, or the first row where the page has none; rows that were measured alike only."""
    measured = [row for row in source.rows if row.name in results]
    for row in measured:
        other = row.baseline or (None if any(each.baseline for each in source.rows) else measured[0].name)
        if other is not None and other in results and other != row.name:
            alike = {ranking_key(results[name].protocol) for name in (other, row.name)}
            if len(alike) == 1:
                yield other, row.name


def _pair(items: _Items, first: str, second: str, budget: int) -> RowPair:
    """Examples both ways, drawn by lot, as many of each where there are any of each."""
    apart = items.scores[second] - items.scores[first]
    better = {second: apart.index[apart > 1e-9], first: apart.index[apart < -1e-9]}
    drawn = [
        first_per_image(hash_order(items.seen(names)), items.images, MAX_PER_DIRECTION) for names in better.values()
    ]
    most = min(map(len, drawn)) or MAX_PER_DIRECTION
    turns = [names[turn] for turn in range(most) for names in drawn if turn < len(names)]
    examples, left_out = take_within_budget([items.example(item, (second, first)) for item in turns], budget)
    return RowPair(
        first=first,
        second=second,
        first_better=len(better[first]),
        second_better=len(better[second]),
        examples=examples,
        left_out=left_out,
    )


def _disagree(scores: pd.DataFrame) -> pd.Series:
    return scores.max(axis=1) - scores.min(axis=1) > 1e-9


def select_items(scores: pd.DataFrame, images: Mapping[Any, str], most: int = MAX_PER_BENCHMARK) -> list[Any]:
    """Item names to show: at most ``most``, each of another image, the same for the same input.

    Disagreements come first, dealt in turn over *who* is right, so that no row's luck fills the page; then an item on
    which all rows are at their worst and one on which all are at their best. Among equals the lot decides.

    Args:
        scores: items × rows.
        images: item → image.
        most: how many.
    """
    scores = scores.loc[hash_order(scores.index)]
    apart = _disagree(scores)
    alike = scores[~apart].mean(axis=1)
    worst, best = (list(alike[alike == end].index) for end in (alike.min(), alike.max()))
    disputed = _dealt(scores[apart])
    chosen: list[Any] = []
    ends = min(most, bool(worst) + bool(best))
    for candidates, room in ((disputed, most - ends), (worst, 1), (best, 1), (disputed, most), ([*worst, *best], 4)):
        chosen = first_per_image([*chosen, *candidates], images, min(most, len(chosen) + room))
    return chosen


def _dealt(scores: pd.DataFrame) -> list[Any]:
    """Items in turn over the sets of rows that are best on them."""
    patterns: dict[tuple[bool, ...], list[Any]] = {}
    for item, row in scores.iterrows():
        patterns.setdefault(tuple(row >= row.max() - 1e-9), []).append(item)
    queues = [patterns[pattern] for pattern in sorted(patterns, reverse=True)]
    turns = range(max(map(len, queues), default=0))
    return [queue[turn] for turn in turns for queue in queues if turn < len(queue)]


def _target(text: str) -> str:
    """The first of the expected answers, and how many others there are."""
    first, *others = dict.fromkeys(text.split(" | "))
    more = f" (or {len(others)} others)" if len(others) > 1 else f" (or {others[0]})" if others else ""
    return strip_control_chars(first, _LONGEST_TEXT) + strip_control_chars(more, _LONGEST_TEXT)


def _answer(row: str, item: pd.Series, pictures: Mapping[str, Thumbnail], scale: float | None) -> Answer:
    score = float(item["score"]) if item["score"] is not None else math.nan
    known = not math.isnan(score)
    found = pictures.get(str(item["prediction"]))
    return Answer(
        row=row,
        text="" if found else strip_control_chars(str(item["prediction"]), _LONGEST_TEXT),
        thumbnail=found,
        right=score > 0 if known and scale is None else None,
        score=f"{round(score * scale, 1):.3g}" if known and scale is not None else "",
    )
