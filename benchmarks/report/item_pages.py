"""A page for each benchmark with all of its items and every model's answer, next to the report's page.

    items/<benchmark>.html           the page: filters, search, 20 items at a time
    items/<benchmark>/scores.js      the models' scores on all items
    items/<benchmark>/0.js, 1.js, …  the texts and images of 200 items each, loaded when they are shown

The data are scripts with one call of JSON, since browsers load no other files from a local directory. The page inserts
all text as text, never as markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.report.figure import safe_file_name
from benchmarks.report.gallery.cards import by_name, first_table, make_thumbnail
from benchmarks.report.load_results import ReportSource, limit_rows
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.results import Result, read_items
from benchmarks.tasks.evaluation import hash_order

ITEMS_PER_FILE = 200
MAX_IMAGE_BYTES = 4_000_000
"""Limit for the images of one benchmark, in base64."""
_MAX_TEXT_CHARS = 1000
_CHUNK = 100  # texts
_TEXTS = ["item", "image", "direction", "category", "question", "prediction", "target", "score"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkItems:
    """The items of one benchmark.

    Args:
        page: path of its page, relative to the report's directory.
        questions: items by name, those of one image one after the other.
        tables: model → its answers, in the same order.
        graded: whether there are scores other than right and wrong.
        scale: display factor of the scores.
        thumbnails: image → JPEG.
    """

    page: str
    questions: pd.DataFrame
    tables: Mapping[str, pd.DataFrame]
    graded: bool
    scale: float
    thumbnails: Mapping[str, bytes]


def item_page_paths(source: ReportSource) -> dict[str, str]:
    """Benchmark → path of its page, of the benchmarks with items."""
    return {name: _page(source, name) for name in source.benchmarks if _with_items(source, name)}


def _page(source: ReportSource, benchmark: str) -> str:
    return f"items/{safe_file_name(source.benchmark_id(benchmark))}.html"


def all_items(source: ReportSource) -> Iterator[tuple[str, BenchmarkItems]]:
    """The items of each benchmark, of at most a dozen models."""
    source = limit_rows(source)
    for benchmark in source.benchmarks:
        if results := _with_items(source, benchmark):
            yield benchmark, _read(_page(source, benchmark), results)


def _with_items(source: ReportSource, benchmark: str) -> dict[str, Result]:
    return {row: result for row, result in limit_rows(source).results(benchmark).items() if result.items}


def _read(page: str, results: Mapping[str, Result]) -> BenchmarkItems:
    first = next(iter(results.values()))
    tables = by_name({row: read_items(result, columns=_TEXTS) for row, result in results.items()})
    questions = first_table(tables)
    if not all(table.index is questions.index for table in tables.values()):
        questions = pd.concat([*tables.values()])
        questions = questions[~questions.index.duplicated()]
        tables = {row: table.reindex(questions.index) for row, table in tables.items()}
    order = np.argsort(pd.factorize(questions["image"])[0], kind="stable")
    questions, tables = questions.iloc[order], {row: table.iloc[order] for row, table in tables.items()}
    scores = pd.concat([table["score"] for table in tables.values()]).dropna()
    primary = first.metrics.get(first.primary[0]) if first.primary else None
    return BenchmarkItems(
        page=page,
        questions=questions,
        tables=tables,
        graded=not bool(scores.isin([0.0, 1.0]).all()),
        scale=primary.scale if primary else 1.0,
        thumbnails=_thumbnails(first),
    )


def item_files(items: BenchmarkItems) -> dict[str, str]:
    """Path → content of a benchmark's data."""
    questions, folder = items.questions, items.page.removesuffix(".html")
    category, names = pd.factorize(questions["category"].fillna("").astype(str))
    head = {
        "models": [*map(strip_control_chars, items.tables)],
        "perFile": ITEMS_PER_FILE,
        "graded": items.graded,
        "categories": _texts(names),
        "category": category.tolist(),
        "scores": [_numbers(table["score"], items.scale if items.graded else 1.0) for table in items.tables.values()],
    }
    files = {f"{folder}/scores.js": f"scores({json.dumps(head)})\n"}
    images = [*map(str, questions["image"].tolist())]
    answers = zip(*(_texts(table["prediction"]) for table in items.tables.values()), strict=True)
    columns = [_texts(questions[name]) for name in ("direction", "question", "target")]
    lines = [*zip(_texts(questions.index), _texts(images), *columns, answers, strict=True)]
    for number, start in enumerate(range(0, len(lines), ITEMS_PER_FILE)):
        part = slice(start, start + ITEMS_PER_FILE)
        shown = {_texts([image])[0]: items.thumbnails[image] for image in {*images[part]} & items.thumbnails.keys()}
        encoded = {name: base64.b64encode(shown[name]).decode() for name in sorted(shown)}
        files[f"{folder}/{number}.js"] = f"items({number}, {json.dumps({'items': lines[part], 'images': encoded})})\n"
    return files


def _numbers(scores: pd.Series, scale: float) -> list[float | None]:
    rounded = np.round(scores.to_numpy(dtype=float) * scale, 3)
    return [None if number != number else number for number in rounded.tolist()]


def _texts(values: Iterable[Any]) -> list[str]:
    """Values as safe, short text; empty where missing."""
    given = values.to_numpy(dtype=object).tolist() if isinstance(values, pd.Series | pd.Index) else [*values]
    chunks = (given[start : start + _CHUNK] for start in range(0, len(given), _CHUNK))
    return [text for chunk in chunks for text in (chunk if _are_plain(chunk) else map(_text, chunk))]


def _are_plain(values: Sequence[Any]) -> bool:
    """Whether all are texts that `_text` would not change; faster than one by one, as millions are."""
    try:
        joined = "".join(values)
    except TypeError:  # a number, or missing
        return False
    return joined.isprintable() and max(map(len, values)) <= _MAX_TEXT_CHARS


def _text(value: Any) -> str:
    return "" if value is None or value != value else strip_control_chars(str(value), _MAX_TEXT_CHARS)


def _thumbnails(result: Result) -> dict[str, bytes]:
    """Image → JPEG, in hash order up to `MAX_IMAGE_BYTES`."""
    table = read_items(result, columns=["image", "thumbnail"]).dropna()
    saved = dict(zip(table["image"].map(str), table["thumbnail"], strict=True))
    chosen, size = dict[str, bytes](), 0
    for image in hash_order(saved):
        size += len(saved[image]) * 4 // 3
        if size > MAX_IMAGE_BYTES:
            break
        if make_thumbnail(saved[image], image) is not None:
            chosen[image] = saved[image]
    return chosen
