"""Where encoders see what a phrase names: the similarity maps that a pointing benchmark kept, row next to row."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from benchmarks.report.gallery.cards import Answer, Card, Gallery, first_of, fitted, tables_of
from benchmarks.report.gallery.thumbnails import Thumbnail, make_thumbnail, thumbnails_of
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import Result
from benchmarks.tasks.item_sampling import hash_order

MOST_PER_BENCHMARK = 8
_LONGEST_PHRASE = 140
_HITS = {1.0: (True, "✓ inside the box"), 0.0: (False, "✗ outside the box")}  # no text for half a hit


def similarity_maps(source: ReportSource) -> list[Gallery]:
    """One for every benchmark whose maps were kept."""
    return fitted(_gallery(name, source.results(name)) for name in source.benchmarks)


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = tables_of(results, lambda _, table: "map" in table)
    if not tables:
        return None
    kept = set.intersection(*(set(table.index[table["map"].notna()]) for table in tables.values()))
    images = thumbnails_of(tables.values())
    cards = tuple(_card(name, tables, images) for name in hash_order(kept)[:MOST_PER_BENCHMARK])
    return Gallery(benchmark=benchmark, cards=cards, items=len(first_of(tables)))


def _card(name: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Thumbnail]) -> Card:
    first = first_of(tables).loc[name]
    phrase = strip_control_chars(str(first["question"]), _LONGEST_PHRASE)
    answers = []
    for row, table in tables.items():
        found = make_thumbnail(table.loc[name]["map"], f"map for {phrase}")
        right, words = _HITS.get(table.loc[name]["score"], (None, ""))
        if found is not None:
            answers.append(Answer(row=row, thumbnail=found, right=right, score=words))
    return Card(thumbnail=pictures.get(str(first["image"])), question=phrase, answers=tuple(answers))
