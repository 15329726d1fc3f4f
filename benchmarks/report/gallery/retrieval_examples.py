"""Retrieval examples: the ranked results of a query, images for a caption or captions for an image, of each model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.gallery.cards import (
    Answer,
    Gallery,
    Thumbnail,
    first_table,
    item_tables,
    limit_galleries,
    thumbnails_of,
)
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import format_number, strip_control_chars
from benchmarks.results.results import Result
from benchmarks.tasks.evaluation import hash_order

QUERIES_SHOWN = {"t2i": 5, "i2t": 3}
_MAX_QUERY_CHARS = 280
_MAX_RESULT_CHARS = 140


@dataclass(frozen=True, kw_only=True)
class RowResults:
    """The results of one model, the most similar first, and the rank of the first correct one."""

    row: str
    answers: tuple[Answer, ...]
    rank: str


@dataclass(frozen=True, kw_only=True)
class RetrievalQuery:
    """A caption that retrieves images, or an image that retrieves captions.

    Args:
        direction: ``"t2i"`` or ``"i2t"``.
        thumbnail: the image of the pair.
        text: the caption of the pair.
        found: the results of each model.
    """

    direction: str
    thumbnail: Thumbnail | None
    text: str
    found: tuple[RowResults, ...]

    def thumbnails(self) -> list[Thumbnail | None]:
        """All images of the query and its answers."""
        return [self.thumbnail, *(answer.thumbnail for found in self.found for answer in found.answers)]


def retrieval_galleries(source: ReportSource) -> list[Gallery]:
    """A gallery for each retrieval benchmark with saved results; its items are the sampled queries."""
    return limit_galleries(_gallery(name, source.results(name)) for name in source.benchmarks)


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = item_tables(results, lambda _, columns: "found" in columns)
    if not tables:
        return None
    thumbnails = thumbnails_of(tables.values())
    sampled = {direction: _sampled_queries(tables.values(), direction) for direction in QUERIES_SHOWN}
    selected = [
        name
        for direction, names in sampled.items()
        for name in spread_by_difficulty(names, tables, QUERIES_SHOWN[direction])
    ]
    cards = tuple(_query(name, tables, thumbnails) for name in selected)
    return Gallery(benchmark=benchmark, cards=cards, items=sum(map(len, sampled.values())))


def _sampled_queries(tables: Iterable[pd.DataFrame], direction: str) -> list[str]:
    """The queries of one direction with saved results of every model, in hash order."""
    names = [set(table.index[(table["direction"] == direction) & table["found"].notna()]) for table in tables]
    return hash_order(set.intersection(*names))


def spread_by_difficulty(names: list[str], tables: Mapping[str, pd.DataFrame], max_queries: int) -> list[str]:
    """Select queries, evenly spaced from the easiest to the hardest.

    The difficulty is the geometric mean of the correct result's rank over the models, which a single model that fails
    does not dominate. Equally difficult queries stay in their order.
    """

    def difficulty(name: str) -> float:
        return sum(math.log(_rank(table.loc[name])) for table in tables.values())

    ordered = sorted(names, key=difficulty)
    if len(ordered) <= max_queries:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / max(max_queries - 1, 1))] for index in range(max_queries)]


def _rank(item: pd.Series) -> float:
    return float(item.get(f"{item['direction']}_rank", math.nan))


def _query(name: str, tables: Mapping[str, pd.DataFrame], thumbnails: Mapping[str, Thumbnail]) -> RetrievalQuery:
    first = first_table(tables).loc[name]
    caption = str(first["question"]) if first["direction"] == "t2i" else str(first["target"]).split(" | ")[0]
    return RetrievalQuery(
        direction=str(first["direction"]),
        thumbnail=thumbnails.get(str(first["image"])),
        text=strip_control_chars(caption, _MAX_QUERY_CHARS),
        found=tuple(
            RowResults(row=row, answers=tuple(_answers(table.loc[name], thumbnails)), rank=_rank_text(table.loc[name]))
            for row, table in tables.items()
        ),
    )


def _answers(item: pd.Series, thumbnails: Mapping[str, Thumbnail]) -> Iterable[Answer]:
    for result in _parse_results(item["found"]):
        answer = str(result.get("answer"))
        image = thumbnails.get(answer) if item["direction"] == "t2i" else None
        yield Answer(
            thumbnail=image,
            text="" if image else strip_control_chars(answer, _MAX_RESULT_CHARS),
            score=format_number(result["similarity"], 2),
            right=result.get("right") is True,
        )


def _parse_results(text: object) -> list[Mapping[str, Any]]:
    """The saved results of a query; empty if invalid."""
    try:
        return [{**each, "similarity": float(each["similarity"])} for each in json.loads(str(text))]
    except (ValueError, TypeError, KeyError):
        return []


def _rank_text(item: pd.Series) -> str:
    rank = _rank(item)
    return "" if math.isnan(rank) else f"{rank:,.0f}" if rank == round(rank) else f"{rank:,.1f}"
