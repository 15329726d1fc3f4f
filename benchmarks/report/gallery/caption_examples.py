"""Generated captions of LLaVAs and captioners, next to the references."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from benchmarks.report.gallery.cards import (
    MAX_CAPTION_CHARS,
    Answer,
    Card,
    Gallery,
    Thumbnail,
    first_table,
    item_tables,
    limit_galleries,
    thumbnails_of,
)
from benchmarks.report.load_results import ReportSource
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import Result
from benchmarks.tasks.evaluation import first_per_image, hash_order

_MAX_PER_BENCHMARK = 6
_MAX_REFERENCES = 3
_CAPTION_METRIC = "CIDEr"  # in the metric labels of captioning benchmarks


def caption_galleries(source: ReportSource) -> list[Gallery]:
    """A gallery for each captioning benchmark."""
    return limit_galleries(_gallery(name, source.results(name)) for name in source.benchmarks)


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = item_tables(
        results, lambda result, _: any(_CAPTION_METRIC in metric.label for metric in result.metrics.values())
    )
    if not tables:
        return None
    first, thumbnails = first_table(tables), thumbnails_of(tables.values())
    images = {name: str(image) for name, image in first["image"].items()}
    candidates = [name for name in first.index if images[name] in thumbnails] or list(first.index)
    selected = first_per_image(hash_order(candidates), images, _MAX_PER_BENCHMARK)
    cards = tuple(_card(name, tables, thumbnails) for name in selected)
    return Gallery(benchmark=benchmark, cards=cards, items=len(first))


def _card(name: str, tables: Mapping[str, pd.DataFrame], thumbnails: Mapping[str, Thumbnail]) -> Card:
    first = first_table(tables).loc[name]
    references = list(dict.fromkeys(str(first["target"]).split(" | ")))
    more = len(references) - _MAX_REFERENCES
    prompt = strip_control_chars(str(first["given"]), MAX_CAPTION_CHARS) if first.get("given") else ""
    return Card(
        thumbnail=thumbnails.get(str(first["image"])),
        notes=(
            *([("read", prompt)] if prompt else []),
            *([("", f"{more} more {'reference' if more == 1 else 'references'}")] if more > 0 else []),
        ),
        references=tuple(strip_control_chars(text, MAX_CAPTION_CHARS) for text in references[:_MAX_REFERENCES]),
        answers=tuple(
            Answer(
                row=row,
                text=strip_control_chars(str(table.loc[name]["prediction"]), MAX_CAPTION_CHARS),
                score=_score(table, name),
            )
            for row, table in tables.items()
            if name in table.index
        ),
    )


def _score(table: pd.DataFrame, name: str) -> str:
    score = table.loc[name]["score"]
    return "" if score is None or math.isnan(score) else f"{100 * score:.0f}"
