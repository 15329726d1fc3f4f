"""What a query found, rank by rank: images for a caption, captions for an image, of every row."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.gallery.cards import Answer, Gallery, first_of, fitted, tables_of
from benchmarks.report.gallery.thumbnails import Thumbnail, thumbnails_of
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import format_number, strip_control_chars
from benchmarks.results.results import Result
from benchmarks.tasks.item_sampling import hash_order

QUERIES_SHOWN = {"t2i": 5, "i2t": 3}
_LONGEST_TEXT = 280
_LONGEST_CAPTION = 140


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """What one row found: its answers, the most similar first, and where the first right one stands."""

    row: str
    answers: tuple[Answer, ...]
    rank: str


@dataclass(frozen=True, kw_only=True)
class RetrievalQuery:
    """A caption that looks for its image, or an image that looks for its captions.

    Args:
        direction: ``"t2i"`` or ``"i2t"``.
        thumbnail: the caption's own image, or the one that asks.
        text: the caption, or one that is right for the image.
        found: of each row.
    """

    direction: str
    thumbnail: Thumbnail | None
    text: str
    found: tuple[RowResults, ...]

    def thumbnails(self) -> list[Thumbnail | None]:
        """All images of the query and its answers."""
        return [self.thumbnail, *(answer.thumbnail for found in self.found for answer in found.answers)]


def retrieval_galleries(source: ReportSource) -> list[Gallery]:
    """One for every retrieval whose answers were kept; its items are the queries that were drawn."""
    return fitted(_gallery(name, source.results(name)) for name in source.benchmarks)


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = tables_of(results, lambda _, table: "found" in table)
    if not tables:
        return None
    images = thumbnails_of(tables.values())
    drawn = {direction: _drawn(tables.values(), direction) for direction in QUERIES_SHOWN}
    chosen = [
        name
        for direction, names in drawn.items()
        for name in spread_by_difficulty(names, tables, QUERIES_SHOWN[direction])
    ]
    cards = tuple(_query(name, tables, images) for name in chosen)
    return Gallery(benchmark=benchmark, cards=cards, items=sum(map(len, drawn.values())))


def _drawn(tables: Iterable[pd.DataFrame], direction: str) -> list[str]:
    """The queries of one direction that every row kept the answers to."""
    kept = [set(table.index[(table["direction"] == direction) & table["found"].notna()]) for table in tables]
    return hash_order(set.intersection(*kept))


def spread_by_difficulty(names: list[str], tables: Mapping[str, pd.DataFrame], most: int) -> list[str]:
    """Some of the queries, evenly spread from the easiest to the hardest.

    How hard one is, the ranks of its right answer say: their geometric mean over the rows, in which one row that finds
    nothing does not hide what the others find.
    """

    def hardness(name: str) -> float:
        return sum(math.log(_rank(table.loc[name])) for table in tables.values())

    ordered = sorted(names, key=hardness)  # stable: among equals the lot decides
    if len(ordered) <= most:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / max(most - 1, 1))] for place in range(most)]


def _rank(item: pd.Series) -> float:
    return float(item.get(f"{item['direction']}_rank", math.nan))


def _query(name: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Thumbnail]) -> RetrievalQuery:
    first = first_of(tables).loc[name]
    caption = str(first["question"]) if first["direction"] == "t2i" else str(first["target"]).split(" | ")[0]
    return RetrievalQuery(
        direction=str(first["direction"]),
        thumbnail=pictures.get(str(first["image"])),
        text=strip_control_chars(caption, _LONGEST_TEXT),
        found=tuple(
            RowResults(row=row, answers=tuple(_answers(table.loc[name], pictures)), rank=_rank_words(table.loc[name]))
            for row, table in tables.items()
        ),
    )


def _answers(item: pd.Series, pictures: Mapping[str, Thumbnail]) -> Iterable[Answer]:
    for found in _read(item["found"]):
        answer = str(found.get("answer"))
        image = pictures.get(answer) if item["direction"] == "t2i" else None
        yield Answer(
            thumbnail=image,
            text="" if image else strip_control_chars(answer, _LONGEST_CAPTION),
            score=format_number(found["similarity"], 2),
            right=found.get("right") is True,
        )


def _read(text: object) -> list[Mapping[str, Any]]:
    """The answers as they were kept; none where that cannot be read."""
    try:
        return [{**each, "similarity": float(each["similarity"])} for each in json.loads(str(text))]
    except (ValueError, TypeError, KeyError):
        return []


def _rank_words(item: pd.Series) -> str:
    rank = _rank(item)
    return "" if math.isnan(rank) else f"{rank:,.0f}" if rank == round(rank) else f"{rank:,.1f}"
