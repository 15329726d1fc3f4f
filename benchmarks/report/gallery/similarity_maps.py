"""Similarity maps of images and phrases, as saved by a pointing benchmark, model next to model."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from benchmarks.report.gallery.cards import (
    Answer,
    Card,
    Gallery,
    Thumbnail,
    first_table,
    item_tables,
    limit_galleries,
    make_thumbnail,
    thumbnails_of,
)
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import Result
from benchmarks.tasks.evaluation import hash_order

_MAX_PER_BENCHMARK = 8
_MAX_PHRASE_CHARS = 140
_HITS = {1.0: (True, "✓ inside the box"), 0.0: (False, "✗ outside the box")}  # no text for half a hit


def similarity_maps(source: ReportSource) -> list[Gallery]:
    """A gallery for each benchmark with saved maps."""
    return limit_galleries(_gallery(name, source.results(name)) for name in source.benchmarks)


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = item_tables(results, lambda _, columns: "map" in columns)
    if not tables:
        return None
    names = set.intersection(*(set(table.index[table["map"].notna()]) for table in tables.values()))
    thumbnails = thumbnails_of(tables.values())
    cards = tuple(_card(name, tables, thumbnails) for name in hash_order(names)[:_MAX_PER_BENCHMARK])
    return Gallery(benchmark=benchmark, cards=cards, items=len(first_table(tables)))


def _card(name: str, tables: Mapping[str, pd.DataFrame], thumbnails: Mapping[str, Thumbnail]) -> Card:
    first = first_table(tables).loc[name]
    phrase = strip_control_chars(str(first["question"]), _MAX_PHRASE_CHARS)
    answers = []
    for row, table in tables.items():
        similarity_map = make_thumbnail(table.loc[name]["map"], f"map for {phrase}")
        right, text = _HITS.get(table.loc[name]["score"], (None, ""))
        if similarity_map is not None:
            answers.append(Answer(row=row, thumbnail=similarity_map, right=right, score=text))
    return Card(thumbnail=thumbnails.get(str(first["image"])), question=phrase, answers=tuple(answers))
