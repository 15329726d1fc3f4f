"""A benchmark's items with all models' answers: a few as examples, more behind a click on a cell."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from benchmarks.report.load_results import ReportSource, limit_rows
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import UNREAD, Result, read_items
from benchmarks.tasks.evaluation import first_per_image, hash_order

MAX_SECTION_BYTES = 2_000_000
"""Limit for the images of the section, so that the page stays below 15 MB."""
MAX_PER_BENCHMARK = 6
MAX_BROWSED = 200
"""Items of a benchmark that a click on a cell shows, unless a report has all."""
MAX_BROWSED_BYTES = 10_000_000
"""Limit for their images, shared by the benchmarks; further items have none."""
_OF_QUESTION = ("image", "direction", "question", "target")
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

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return "data:image/jpeg;base64," + base64.b64encode(self.content).decode()


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
            tag = Markup('<image id="{}" href="{}" width="{}" height="{}"/>')
            content = tag.format(image.id, image.uri, image.width, image.height)
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
        unread: whether the scorer did not read it.
    """

    row: str
    text: str = ""
    thumbnail: Thumbnail | None = None
    right: bool | None = None
    score: str = ""
    unread: bool = False


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

    @property
    def thumbnails(self) -> list[Thumbnail]:
        """The images that it shows."""
        return [image for image in (self.thumbnail, *(answer.thumbnail for answer in self.answers)) if image]


def take_within_budget(cards: Sequence[Card], max_bytes: int) -> tuple[tuple[Card, ...], int]:
    """The first cards whose distinct images take at most ``max_bytes`` (in base64), and the number of omitted cards."""
    size, seen = 0, set[str]()
    for index, card in enumerate(cards):
        new = {image.id: image for image in card.thumbnails if image.id not in seen}
        size += sum(len(image.content) * 4 // 3 for image in new.values())
        if size > max_bytes:
            return tuple(cards[:index]), len(cards) - index
        seen |= new.keys()
    return tuple(cards), 0


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The items of one benchmark: some as examples, and those that a click on a cell shows.

    Args:
        benchmark: its name.
        rows: the models that have items.
        cards: of the selected items, with the answers of all models.
        browsed: of the items that a click shows, those with a disagreement or an unread answer first.
        items: number of items that the cards were selected from.
        left_out: number of cards that are omitted to limit the page size.
        disagreements: number of items on which the models' scores differ; None for a single model.
    """

    benchmark: str
    rows: tuple[str, ...]
    cards: tuple[Card, ...]
    browsed: tuple[Card, ...]
    items: int
    left_out: int
    disagreements: int | None


def answer_galleries(source: ReportSource, *, every_item: bool = False) -> list[Examples]:
    """The items of each benchmark that has some: of 12 models 200 for a click, or every one of all models."""
    source = source if every_item else limit_rows(source)
    galleries = []
    for benchmark in source.benchmarks:
        items = _Items(source.results(benchmark))
        chosen = select_items(items.scores_with_image, items.images) if items.tables else []
        if chosen:
            browsed = items.disputed_first[: None if every_item else MAX_BROWSED]
            cards = items.cards([*chosen, *browsed])
            budget = MAX_SECTION_BYTES // len(source.benchmarks)
            shown, left_out = take_within_budget([cards[item] for item in chosen], budget)
            gallery = Examples(
                benchmark=benchmark,
                rows=tuple(items.tables),
                cards=shown,
                browsed=tuple(cards[item] for item in browsed),
                items=len(items.scores),
                left_out=left_out,
                disagreements=int(_disagree(items.scores).sum()) if len(items.tables) > 1 else None,
            )
            galleries.append(gallery)
    return galleries


def browser_data(galleries: Sequence[Examples], source: ReportSource, *, every_item: bool = False) -> dict[str, Any]:
    """What a click on a cell shows, for the page's script; the images of the galleries are on the page already."""
    on_page = {image.id for gallery in galleries for card in gallery.cards for image in card.thumbnails}
    images = dict[str, str]()
    room = {gallery.benchmark: MAX_BROWSED_BYTES // len(galleries) for gallery in galleries}

    def image_id(image: Thumbnail | None, benchmark: str) -> str:
        if image is None or image.id in on_page or image.id in images:
            return image.id if image else ""
        room[benchmark] -= len(image.uri)
        if room[benchmark] < 0 and not every_item:
            return ""
        images[image.id] = image.uri
        return image.id

    return {
        "baselines": {row.name: row.baseline for row in source.rows if row.baseline},
        "benchmarks": {
            gallery.benchmark: {
                "rows": gallery.rows,
                "items": gallery.items,
                "cards": [
                    {
                        "image": image_id(card.thumbnail, gallery.benchmark),
                        "question": card.question,
                        "expected": card.expected,
                        "answers": {
                            each.row: [  # of an image its name, for screen readers and if it has no room
                                each.text or (each.thumbnail.alt if each.thumbnail else ""),
                                image_id(each.thumbnail, gallery.benchmark),
                                each.right,
                                each.score,
                                each.unread,
                            ]
                            for each in card.answers
                        },
                    }
                    for card in gallery.browsed
                ],
            }
            for gallery in galleries
        },
        "images": images,
    }


class _Items:
    """The items of one benchmark.

    Attributes:
        tables: model → items, by name.
        images: item → name of its image.
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
        self.images = {item: str(image) for item, image in names}
        self._thumbnails: dict[str, Thumbnail] = {}
        for table in self.tables.values():
            saved = table[table["thumbnail"].notna()]
            for image, content in zip(saved["image"].map(str), saved["thumbnail"], strict=True):
                new = None if image in self._thumbnails else make_thumbnail(content, f"image {image}")
                self._thumbnails |= {image: new} if new else {}
        scores = {row: table["score"] for row, table in self.tables.items()}
        self.scores = pd.DataFrame(scores).dropna(how="all")
        self._shown = pd.Series(self.scores.index.map(self.images).isin(self._thumbnails), self.scores.index)
        self.graded = not self.scores.isin([0.0, 1.0]).where(self.scores.notna(), True).all(axis=None)
        # of the benchmark's first metric, for the display of scores
        first_metrics = (each.metrics[each.primary[0]] for each in results.values() if each.primary)
        metric = next(first_metrics, None)
        self._lower_is_better = metric is not None and metric.higher_is_better is False
        self._scale = metric.scale if metric else 1.0
        # an item's share of 100 %, unlike its CIDEr
        self._unit = " %" if metric and metric.scale == 100 and metric.aggregation != "mean_of_scores" else ""

    @property
    def scores_with_image(self) -> pd.DataFrame:
        """The scores of items with a thumbnail, or of all if there are none."""
        return self.scores[self._shown] if self._shown.any() else self.scores

    @property
    def disputed_first(self) -> list[Any]:
        """All items by the hash of their names, first those on which models disagree or with an unread answer."""
        first = _disagree(self.scores)
        for table in self.tables.values():
            if UNREAD in table:
                first |= self.scores.index.isin(table.index[table[UNREAD] > 0])
        return [*hash_order(self.scores.index[first]), *hash_order(self.scores.index[~first])]

    def cards(self, items: Iterable[Any]) -> dict[Any, Card]:
        """Items with all models' answers."""
        answers: dict[Any, list[Answer]] = {item: [] for item in items}
        questions: dict[Any, Mapping[str, Any]] = {}
        index = None
        for row, table in self.tables.items():
            if table.index is not index:  # mostly one object for all models
                index, places = table.index, np.flatnonzero(table.index.isin(answers))
                new = table.iloc[places[~index[places].isin(questions)]][[*_OF_QUESTION]]
                questions |= dict(zip(new.index, new.to_dict("records"), strict=True))
                names = index[places].tolist()
            texts, scores = (table[name].to_numpy(dtype=object)[places] for name in ("prediction", "score"))
            unread = table[UNREAD].to_numpy()[places] > 0 if UNREAD in table else np.zeros(len(places), bool)
            for item, text, score, is_unread in zip(names, texts, scores, unread.tolist(), strict=True):
                answers[item].append(self._answer(row, text, score, is_unread, questions[item]))
        return {item: self._card(questions[item], of_item) for item, of_item in answers.items()}

    def _card(self, question: Mapping[str, Any], answers: Sequence[Answer]) -> Card:
        target, *others = dict.fromkeys(str(question["target"]).split(" | "))
        more = f" (or {len(others)} others)" if len(others) > 1 else f" (or {others[0]})" if others else ""
        expected = strip_control_chars(target, _MAX_TEXT_CHARS) + strip_control_chars(more, _MAX_TEXT_CHARS)
        return Card(
            thumbnail=self._thumbnails.get(str(question["image"])),
            question=strip_control_chars(str(question["question"]), _MAX_TEXT_CHARS),
            expected="the left image" if question["direction"] == "t2i" else expected,
            answers=tuple(answers),
        )

    def _answer(self, row: str, text: object, score: float | None, unread: bool, question: Mapping[str, Any]) -> Answer:
        score = math.nan if score is None else float(score)
        known = not math.isnan(score)
        image = self._thumbnails.get(str(text)) if question["direction"] == "t2i" else None
        right = (
            bool(score) != self._lower_is_better if score in (0.0, 1.0) and (self._unit or not self.graded) else None
        )
        shown = round(score * self._scale, 1)
        return Answer(
            row=row,
            text="" if image else strip_control_chars(str(text), _MAX_TEXT_CHARS),
            thumbnail=image,
            right=right,
            score=f"{shown:{'.3g' if abs(shown) < 999.5 else '.0f'}}{self._unit}" if known and right is None else "",
            unread=unread,
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
