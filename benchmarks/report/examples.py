"""Examples of a benchmark's items with all models' answers, and items on which one model of a pair is better."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.protocol import ranking_keys
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.evaluation import first_per_image, hash_order

MAX_SECTION_BYTES = 2_000_000
"""Limit for the images of the section, so that the page stays below 15 MB."""
MAX_PER_BENCHMARK = 6
MAX_PER_DIRECTION = 3
_JPEG_MAGIC = b"\xff\xd8\xff"
_MAX_THUMBNAIL_BYTES = 100_000
_MAX_SIDE = 1000
_MAX_ALT_CHARS = 80
_MAX_TEXT_CHARS = 280


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A JPEG: its bytes, width and height in pixels, and its alternative text."""

    content: bytes
    width: int
    height: int
    alt: str

    @functools.cached_property
    def id(self) -> str:
        """Its anchor on the page, derived from the content."""
        return "image-" + hashlib.sha256(self.content).hexdigest()[:16]


def make_thumbnail(content: object, alt: str) -> Thumbnail | None:
    """A saved thumbnail; None for anything but a small JPEG."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(content, bytes) or not content.startswith(_JPEG_MAGIC) or len(content) > _MAX_THUMBNAIL_BYTES:
        return None
    try:
        width, height = Image.open(io.BytesIO(content), formats=["JPEG"]).size  # reads only the header
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    if max(width, height) > _MAX_SIDE:
        return None
    return Thumbnail(content=content, width=width, height=height, alt=strip_control_chars(alt, _MAX_ALT_CHARS))


class ImageDeduplicator:
    """Embeds images into one page; further occurrences of an image refer to the first one."""

    def __init__(self) -> None:
        self._embedded: set[str] = set()

    def tag(self, image: Thumbnail, prefix: str = "") -> Markup:
        """The image as SVG, which allows references; ``prefix`` precedes its alternative text."""
        content = Markup('<use href="#{}"/>').format(image.id)
        if image.id not in self._embedded:
            self._embedded.add(image.id)
            uri = "data:image/jpeg;base64," + base64.b64encode(image.content).decode()
            tag = Markup('<image id="{}" href="{}" width="{}" height="{}"/>')
            content = tag.format(image.id, uri, image.width, image.height)
        return Markup('<svg class="image" role="img" aria-label="{}{}" viewBox="0 0 {} {}">{}</svg>').format(
            prefix, image.alt, image.width, image.height, content
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer.

    Args:
        row: name of the model.
        text: the answer; empty for an image.
        thumbnail: the retrieved image.
        right: whether it is correct; None if unknown.
        score: its score as text.
    """

    row: str
    text: str = ""
    thumbnail: Thumbnail | None = None
    right: bool | None = None
    score: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One item with the answers of some models.

    Args:
        thumbnail: the item's image.
        question: a question or a caption.
        expected: the expected answer.
        answers: of the models.
    """

    thumbnail: Thumbnail | None
    question: str = ""
    expected: str = ""
    answers: tuple[Answer, ...] = ()


def take_within_budget(cards: Sequence[Card], max_bytes: int) -> tuple[tuple[Card, ...], int]:
    """The first cards whose distinct images take at most ``max_bytes`` (in base64), and the number of omitted cards."""
    size, seen = 0, set[str]()
    for index, card in enumerate(cards):
        images = [card.thumbnail, *(answer.thumbnail for answer in card.answers)]
        new = {image.id: image for image in images if image is not None and image.id not in seen}
        size += sum(len(image.content) * 4 // 3 for image in new.values())
        if size > max_bytes:
            return tuple(cards[:index]), len(cards) - index
        seen |= new.keys()
    return tuple(cards), 0


@dataclass(frozen=True, kw_only=True)
class RowPair:
    """Two models on the items on which they differ.

    Args:
        first: the baseline, or the first model of the table.
        second: the other model.
        first_better: number of items on which the first model has the better score.
        second_better: number of items on which the second model has the better score.
        examples: alternating between items on which one and the other is better, the more frequent case first.
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
    found = []
    for benchmark in source.benchmarks:
        items = _Items(source.results(benchmark))
        budget = MAX_SECTION_BYTES // len(source.benchmarks) // 2  # half for the cards, half for the pairs
        if items.tables and (cards := items.cards()):
            shown, left_out = take_within_budget(cards, budget)
            results = source.results(benchmark)
            keys = ranking_keys([result.protocol for result in results.values()])
            protocols = dict(zip(results, keys, strict=True))
            names = [
                (row, other)
                for row, other in source.pairs(benchmark)
                if {row, other} <= items.tables.keys() and protocols[row] == protocols[other]
            ]
            pairs = [items.pair(other, row, budget // len(names)) for row, other in names]
            gallery = Examples(
                benchmark=benchmark,
                cards=shown,
                items=len(items.scores),
                left_out=left_out + sum(pair.left_out for pair in pairs),
                pairs=tuple(pairs),
                disagreements=int(_disagree(items.scores).sum()) if len(items.tables) > 1 else None,
                graded=items.graded,
            )
            found += [gallery] if shown else []
    return found


class _Items:
    """The items of one benchmark.

    Attributes:
        tables: model → items, by name.
        scores: items × models.
        graded: whether there are scores other than right and wrong.
    """

    def __init__(self, results: Mapping[str, Result]) -> None:
        self.tables: dict[str, pd.DataFrame] = {}
        for row, result in results.items():
            if result.items:
                self.tables[row] = table = read_items(result).set_index("item")
                # where the names are equal, one index object: pandas then hashes and aligns them once
                first = next(iter(self.tables.values()))
                table.index = first.index if table.index.equals(first.index) else table.index
        if not self.tables:
            return
        first = next(iter(self.tables.values()))
        names = zip(first.index.to_numpy(dtype=object), first["image"].to_numpy(dtype=object), strict=True)
        self._images = {item: str(image) for item, image in names}
        self._thumbnails: dict[str, Thumbnail] = {}
        for table in self.tables.values():
            saved = table[table["thumbnail"].notna()]
            for image, content in zip(saved["image"].map(str), saved["thumbnail"], strict=True):
                new = None if image in self._thumbnails else make_thumbnail(content, f"image {image}")
                self._thumbnails |= {image: new} if new else {}
        scores = {row: table["score"] for row, table in self.tables.items()}
        self.scores = pd.DataFrame(scores).dropna(how="all")
        self._shown = pd.Series(self.scores.index.map(self._images).isin(self._thumbnails), self.scores.index)
        self.graded = not self.scores.isin([0.0, 1.0]).where(self.scores.notna(), True).all(axis=None)
        # of the benchmark's first metric, for the display of scores
        first_metrics = (each.metrics[each.primary[0]] for each in results.values() if each.primary)
        metric = next(first_metrics, None)
        self._lower_is_better = metric is not None and metric.higher_is_better is False
        self._scale = metric.scale if metric else 1.0
        # an item's share of 100 %, unlike its CIDEr
        self._unit = " %" if metric and metric.scale == 100 and metric.aggregation != "mean_of_scores" else ""

    def cards(self) -> list[Card]:
        """The selected items with all models' answers, only items with a thumbnail if there are any."""
        scores = self.scores[self._shown] if self._shown.any() else self.scores
        return [self._card(item, [*self.tables]) for item in select_items(scores, self._images)]

    def pair(self, first: str, second: str, budget: int) -> RowPair:
        """Two models: items of different images on which one and the other is better.

        They are equally many of both unless one kind is empty. Those of the more frequent case come first.
        """
        gap = (self.scores[second] - self.scores[first]) * (-1 if self._lower_is_better else 1)
        better = {second: gap > 1e-9, first: gap < -1e-9}
        sampled = []
        for chosen in sorted(better.values(), key=lambda items: -items.sum()):
            items = [*chosen.index[chosen & self._shown]] or [*chosen.index[chosen]]
            sampled.append(first_per_image(hash_order(items), self._images, MAX_PER_DIRECTION))
        num_each = min(map(len, sampled)) or MAX_PER_DIRECTION
        selected = [items[place] for place in range(num_each) for items in sampled if place < len(items)]
        examples, left_out = take_within_budget([self._card(item, (second, first)) for item in selected], budget)
        return RowPair(
            first=first,
            second=second,
            first_better=int(better[first].sum()),
            second_better=int(better[second].sum()),
            examples=examples,
            left_out=left_out,
        )

    def _card(self, item: Any, rows: Sequence[str]) -> Card:
        entries = {row: self.tables[row].loc[item] for row in rows if item in self.tables[row].index}
        first = next(iter(entries.values()))
        retrieves_images = str(first["direction"]) == "t2i"
        target, *others = dict.fromkeys(str(first["target"]).split(" | "))
        more = f" (or {len(others)} others)" if len(others) > 1 else f" (or {others[0]})" if others else ""
        expected = strip_control_chars(target, _MAX_TEXT_CHARS) + strip_control_chars(more, _MAX_TEXT_CHARS)
        return Card(
            thumbnail=self._thumbnails.get(str(first["image"])),
            question=strip_control_chars(str(first["question"]), _MAX_TEXT_CHARS),
            expected="the left image" if retrieves_images else expected,
            answers=tuple(self._answer(row, entry, retrieves_images) for row, entry in entries.items()),
        )

    def _answer(self, row: str, item: pd.Series, retrieves_images: bool) -> Answer:
        score = float(item["score"]) if item["score"] is not None else math.nan
        known = not math.isnan(score)
        image = self._thumbnails.get(str(item["prediction"])) if retrieves_images else None
        right = (
            bool(score) != self._lower_is_better if score in (0.0, 1.0) and (self._unit or not self.graded) else None
        )
        shown = round(score * self._scale, 1)
        return Answer(
            row=row,
            text="" if image else strip_control_chars(str(item["prediction"]), _MAX_TEXT_CHARS),
            thumbnail=image,
            right=right,
            score=f"{shown:{'.3g' if abs(shown) < 999.5 else '.0f'}}{self._unit}" if known and right is None else "",
        )


def _disagree(scores: pd.DataFrame) -> pd.Series:
    return scores.max(axis=1) - scores.min(axis=1) > 1e-9


def select_items(scores: pd.DataFrame, images: Mapping[Any, str], max_items: int = MAX_PER_BENCHMARK) -> list[Any]:
    """Select items of different images; the result is deterministic.

    Disagreements come first; then, if there are any, one item of the lowest and one of the highest score that all
    models share. Otherwise the order is that of the hashes, so that frequent cases are shown often.

    Args:
        scores: items × models.
        images: item → image.
        max_items: maximum number of items.
    """
    scores = scores.loc[hash_order(scores.index)]
    disagree = _disagree(scores)
    agreed = scores[~disagree].mean(axis=1)
    worst, best = (list(agreed[agreed == extreme].index) for extreme in (agreed.min(), agreed.max()))
    best = best if agreed.max() > agreed.min() else []
    disputed = list(scores.index[disagree])
    selected: list[Any] = []
    num_agreed = min(max_items, bool(worst) + bool(best))
    steps = (
        *((disputed, max_items - num_agreed), (worst, 1), (best, 1)),
        *((disputed, max_items), ([*worst, *best], 4)),  # fill up
    )
    for candidates, room in steps:
        selected = first_per_image([*selected, *candidates], images, min(max_items, len(selected) + room))
    return selected
