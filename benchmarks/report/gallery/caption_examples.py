"""Captions that models wrote, next to those that were expected: of LLaVAs, and of captioners."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from benchmarks.report.gallery.cards import LONGEST_TEXT, Answer, Card, Gallery, first_of, fitted, tables_of
from benchmarks.report.gallery.thumbnails import Thumbnail, thumbnails_of
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import Result
from benchmarks.tasks.item_sampling import first_per_image, hash_order

MOST_PER_BENCHMARK = 6
REFERENCES = 3
MEASURE = "CIDEr"
"""What a metric's label names where a benchmark compares captions."""


def captioned(source: ReportSource) -> list[Gallery]:
    """One for every benchmark that compares captions."""
    return fitted(_gallery(name, source.results(name)) for name in source.benchmarks)


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = tables_of(results, lambda result, _: any(MEASURE in metric.label for metric in result.metrics.values()))
    if not tables:
        return None
    first, pictures = first_of(tables), thumbnails_of(tables.values())
    images = {name: str(image) for name, image in first["image"].items()}
    seen = [name for name in first.index if images[name] in pictures] or list(first.index)
    chosen = first_per_image(hash_order(seen), images, MOST_PER_BENCHMARK)
    cards = tuple(_card(name, tables, pictures) for name in chosen)
    return Gallery(benchmark=benchmark, cards=cards, items=len(first))


def _card(name: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Thumbnail]) -> Card:
    first = first_of(tables).loc[name]
    references = list(dict.fromkeys(str(first["target"]).split(" | ")))
    more = len(references) - REFERENCES
    given = strip_control_chars(str(first["given"]), LONGEST_TEXT) if first.get("given") else ""
    return Card(
        thumbnail=pictures.get(str(first["image"])),
        notes=(
            *([("read", given)] if given else []),
            *([("", f"{more} more {'reference' if more == 1 else 'references'}")] if more > 0 else []),
        ),
        references=tuple(strip_control_chars(text, LONGEST_TEXT) for text in references[:REFERENCES]),
        answers=tuple(
            Answer(
                row=row,
                text=strip_control_chars(str(table.loc[name]["prediction"]), LONGEST_TEXT),
                score=_score(table, name),
            )
            for row, table in tables.items()
            if name in table.index
        ),
    )


def _score(table: pd.DataFrame, name: str) -> str:
    score = table.loc[name]["score"]
    return "" if score is None or math.isnan(score) else f"{100 * score:.0f}"
