"""The parts of galleries: cards with an image, a question, and the models' answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.gallery import thumbnails
from benchmarks.report.gallery.thumbnails import Thumbnail, take_within_budget
from benchmarks.results.results import Result, read_items

MAX_CAPTION_CHARS = 600


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer or search result.

    Args:
        row: name of the model; empty if a heading above several answers states it.
        text: the answer; empty for an image.
        thumbnail: the retrieved image, or the similarity map.
        right: whether it is correct; None if unknown.
        score: its score, rank or similarity as text.
    """

    row: str = ""
    text: str = ""
    thumbnail: Thumbnail | None = None
    right: bool | None = None
    score: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One item with the answers of some models.

    Args:
        thumbnail: the item's image.
        question: a question, a caption or a phrase.
        notes: (label, text) of the input and the expected answer.
        references: reference captions.
        answers: of the models.
    """

    thumbnail: Thumbnail | None
    question: str = ""
    notes: tuple[tuple[str, str], ...] = ()
    references: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()

    def thumbnails(self) -> list[Thumbnail | None]:
        """All images of the card."""
        return [self.thumbnail, *(answer.thumbnail for answer in self.answers)]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The cards of one benchmark.

    Args:
        benchmark: its name.
        cards: the shown ones.
        items: number of items that the cards were selected from.
        left_out: number of cards that are omitted to limit the page size.
    """

    benchmark: str
    cards: tuple[Any, ...]
    items: int
    left_out: int = 0


def item_tables(results: Mapping[str, Result], has: Callable[[Result, pd.DataFrame], bool]) -> dict[str, pd.DataFrame]:
    """Model → its items by name, of the models with items for which ``has`` is true."""
    tables = {row: read_items(result).set_index("item") for row, result in results.items() if result.items}
    return {row: table for row, table in tables.items() if has(results[row], table)}


def first_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The items of the first model; the questions are the same for all."""
    return next(iter(tables.values()))


def limit_galleries(galleries: Iterable[Gallery | None]) -> list[Gallery]:
    """The galleries of one section within ``MAX_SECTION_BYTES``, divided equally."""
    found = [gallery for gallery in galleries if gallery is not None]
    limited = [(each, take_within_budget(each.cards, thumbnails.MAX_SECTION_BYTES // len(found))) for each in found]
    return [dataclasses.replace(each, cards=cards, left_out=left_out) for each, (cards, left_out) in limited]
