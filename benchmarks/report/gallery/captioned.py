"""Captions that models wrote, beside those that were expected: of LLaVAs, and of captioners."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from benchmarks.lots import by_lot, of_different_pictures
from benchmarks.report.gallery.pictures import Picture, fitted, pictures_of
from benchmarks.report.source import ReportSource
from benchmarks.results import Result, read_items
from benchmarks.wording import visible

MOST_PER_BENCHMARK = 6
REFERENCES = 3
MEASURE = "CIDEr"
"""What a metric's label names where a benchmark compares captions."""

_LONGEST_TEXT = 600


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one row wrote, and its score as text, empty where it has none."""

    row: str
    text: str
    score: str


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """One picture.

    Args:
        picture: its thumbnail.
        given: what the model read beside it: a web caption.
        references: some of those that were expected.
        more: how many others there are.
        written: of each row.
    """

    picture: Picture | None
    given: str
    references: tuple[str, ...]
    more: int
    written: tuple[Written, ...]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The pictures of one benchmark that are shown, of how many, and how many made the page too large."""

    benchmark: str
    shown: tuple[Captioned, ...]
    items: int
    left_out: int = 0


def captioned(source: ReportSource) -> list[Captions]:
    """One for every benchmark that compares captions."""
    found = (_captions(name, source.results(name)) for name in source.benchmarks)
    return fitted([each for each in found if each is not None], lambda card: [card.picture])


def _captions(benchmark: str, results: Mapping[str, Result]) -> Captions | None:
    tables = {
        row: read_items(result).set_index("item")
        for row, result in results.items()
        if result.items and any(MEASURE in metric.label for metric in result.metrics.values())
    }
    if not tables:
        return None
    first = next(iter(tables.values()))
    pictures = pictures_of(tables.values())
    images = {name: str(image) for name, image in first["image"].items()}
    seen = [name for name in first.index if images[name] in pictures] or list(first.index)
    chosen = of_different_pictures(by_lot(seen), images, MOST_PER_BENCHMARK)
    shown = tuple(_captioned(name, tables, pictures) for name in chosen)
    return Captions(benchmark=benchmark, shown=shown, items=len(first))


def _captioned(name: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Picture]) -> Captioned:
    first = next(iter(tables.values())).loc[name]
    references = list(dict.fromkeys(str(first["target"]).split(" | ")))
    return Captioned(
        picture=pictures.get(str(first["image"])),
        given=visible(str(first["given"]), _LONGEST_TEXT) if first.get("given") else "",
        references=tuple(visible(text, _LONGEST_TEXT) for text in references[:REFERENCES]),
        more=max(0, len(references) - REFERENCES),
        written=tuple(
            Written(row=row, text=visible(str(table.loc[name]["prediction"]), _LONGEST_TEXT), score=_score(table, name))
            for row, table in tables.items()
            if name in table.index
        ),
    )


def _score(table: pd.DataFrame, name: str) -> str:
    score = table.loc[name]["score"]
    return "" if score is None or math.isnan(score) else f"{100 * score:.0f}"
