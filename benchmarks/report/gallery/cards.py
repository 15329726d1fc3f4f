"""What galleries consist of: cards with an image, what was asked, and what the rows answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.gallery import thumbnails
from benchmarks.report.gallery.thumbnails import Thumbnail, take_within_budget
from benchmarks.results.results import Result, read_items

LONGEST_TEXT = 600  # characters of a caption or a reference; other texts are cut sooner


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one row said or found.

    Args:
        row: the row; empty where its name is above several answers.
        text: its words; empty where it is an image.
        thumbnail: the image that it found, or its map.
        right: whether it is right; None where that cannot be said.
        score: its score, rank or similarity as text.
    """

    row: str = ""
    text: str = ""
    thumbnail: Thumbnail | None = None
    right: bool | None = None
    score: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One item with the answers of some rows.

    Args:
        thumbnail: the item's.
        question: what was asked: a question, a caption, a phrase.
        notes: (label, text) of what was given and expected.
        references: captions that others wrote.
        answers: of the rows.
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
    """The cards of one benchmark that are shown, of so many items, and how many made the page too large."""

    benchmark: str
    cards: tuple[Any, ...]
    items: int
    left_out: int = 0


def tables_of(results: Mapping[str, Result], has: Callable[[Result, pd.DataFrame], bool]) -> dict[str, pd.DataFrame]:
    """Row → its items by name, of the rows whose items were kept and ``has`` what a gallery shows."""
    tables = {row: read_items(result).set_index("item") for row, result in results.items() if result.items}
    return {row: table for row, table in tables.items() if has(results[row], table)}


def first_of(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The items of the first row, which say what all were asked."""
    return next(iter(tables.values()))


def fitted(galleries: Iterable[Gallery | None]) -> list[Gallery]:
    """Galleries of one section that together keep to ``SECTION_BYTES``, equal shares for all."""
    found: Sequence[Gallery] = [gallery for gallery in galleries if gallery is not None]
    fitting = [(each, take_within_budget(each.cards, thumbnails.MAX_SECTION_BYTES // len(found))) for each in found]
    return [dataclasses.replace(each, cards=cards, left_out=left_out) for each, (cards, left_out) in fitting]
