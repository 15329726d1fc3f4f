"""Which items to show: first those on which the rows disagree, then one that all get wrong, one that all get right."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks.report.source import ReportSource
from benchmarks.report.wording import visible
from benchmarks.results import Result, read_items

MOST_PER_BENCHMARK = 6
_JPEG, _LARGEST_THUMBNAIL = b"\xff\xd8\xff", 100_000
_LONGEST_TEXT = 280
SHOWN = "the left picture"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A thumbnail as a data URI, and the words that stand for it where it cannot be seen."""

    uri: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one row said.

    Args:
        row: the row.
        text: its prediction; empty where it is a picture.
        picture: the picture that it found, in text-to-image retrieval.
        right: whether it is right; None where the score is not all or nothing.
        score: its score, as text, where it is not all or nothing.
    """

    row: str
    text: str
    picture: Picture | None
    right: bool | None
    score: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item with the answers of all rows."""

    picture: Picture | None
    question: str
    target: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The examples of one benchmark and how many of its items the rows disagree on."""

    benchmark: str
    examples: tuple[Example, ...]
    disagreements: int
    items: int


def galleries(source: ReportSource) -> list[Gallery]:
    """A gallery for every benchmark whose items were kept."""
    found = [_gallery(name, source.results(name)) for name in source.benchmarks]
    return [gallery for gallery in found if gallery is not None and gallery.examples]


def _gallery(benchmark: str, results: Mapping[str, Result]) -> Gallery | None:
    tables = {row: read_items(result).set_index("item") for row, result in results.items() if result.items}
    if not tables:
        return None
    scores = pd.DataFrame({row: table["score"] for row, table in tables.items()}).dropna(how="all")
    pictures = _pictures(tables.values())
    images = {name: str(image) for name, image in next(iter(tables.values()))["image"].items()}
    shown = scores[[images.get(item) in pictures for item in scores.index]]  # of many pictures not all are kept
    chosen = choose_items(shown if len(shown) else scores, images)
    graded = not scores.isin([0.0, 1.0]).where(scores.notna(), True).all(axis=None)
    examples = tuple(_example(str(item), tables, pictures, graded=graded) for item in chosen)
    return Gallery(
        benchmark=benchmark, examples=examples, disagreements=int(_disagree(scores).sum()), items=len(scores)
    )


def _disagree(scores: pd.DataFrame) -> pd.Series:
    return scores.max(axis=1) - scores.min(axis=1) > 1e-9


def choose_items(scores: pd.DataFrame, images: Mapping[Any, str], most: int = MOST_PER_BENCHMARK) -> list[Any]:
    """Item names to show: at most ``most``, each of another picture, the same for the same input.

    Disagreements come first, dealt in turn over *who* is right, so that no row's luck fills the page; then an item
    on which all rows are at their worst and one on which all are at their best.

    Args:
        scores: items × rows.
        images: item → picture.
        most: how many.
    """
    apart = _disagree(scores)
    alike = scores[~apart].mean(axis=1)
    worst, best = (list(alike[alike == end].index) for end in (alike.min(), alike.max()))
    disputed = _dealt(scores[apart])
    chosen: list[Any] = []
    ends = min(most, bool(worst) + bool(best))
    for candidates, room in ((disputed, most - ends), (worst, 1), (best, 1), (disputed, most), ([*worst, *best], 4)):
        _choose(candidates, images, chosen, min(most, len(chosen) + room))
    return chosen


def _dealt(scores: pd.DataFrame) -> list[Any]:
    """Items in turn over the sets of rows that are best on them."""
    patterns: dict[tuple[bool, ...], list[Any]] = {}
    for item, row in scores.iterrows():
        patterns.setdefault(tuple(row >= row.max() - 1e-9), []).append(item)
    queues = [patterns[pattern] for pattern in sorted(patterns, reverse=True)]
    turns = range(max(map(len, queues), default=0))
    return [queue[turn] for turn in turns for queue in queues if turn < len(queue)]


def _choose(candidates: Sequence[Any], images: Mapping[Any, str], chosen: list[Any], most: int) -> None:
    """Add candidates whose pictures are not there yet to ``chosen``, until it holds ``most``."""
    seen = {images.get(item, item) for item in chosen}
    for item in candidates:
        if len(chosen) < most and images.get(item, item) not in seen:
            seen.add(images.get(item, item))
            chosen.append(item)


def _pictures(tables: Any) -> dict[str, Picture]:
    found: dict[str, Picture] = {}
    for table in tables:
        for image, thumbnail in zip(table["image"], table["thumbnail"], strict=True):
            if str(image) not in found and isinstance(thumbnail, bytes):
                uri = data_uri(thumbnail)
                if uri:
                    found[str(image)] = Picture(uri=uri, alt=f"picture {visible(str(image), 80)}")
    return found


def data_uri(thumbnail: bytes) -> str:
    """A JPEG as a ``data:`` URI; empty for anything else or anything large."""
    if not thumbnail.startswith(_JPEG) or len(thumbnail) > _LARGEST_THUMBNAIL:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail).decode()


def _example(
    item: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Picture], *, graded: bool
) -> Example:
    first = next(table.loc[item] for table in tables.values() if item in table.index)
    finds_pictures = str(first["direction"]) == "t2i"
    answers = tuple(
        _answer(row, table.loc[item], pictures if finds_pictures else {}, graded=graded)
        for row, table in tables.items()
        if item in table.index
    )
    return Example(
        picture=pictures.get(str(first["image"])),
        question=visible(str(first["question"]), _LONGEST_TEXT),
        target=SHOWN if finds_pictures else _target(str(first["target"])),
        answers=answers,
    )


def _target(text: str) -> str:
    """The first of the expected answers, and how many others there are."""
    first, *others = dict.fromkeys(text.split(" | "))
    more = f" (or {len(others)} others)" if len(others) > 1 else f" (or {others[0]})" if others else ""
    return visible(first, _LONGEST_TEXT) + visible(more, _LONGEST_TEXT)


def _answer(row: str, item: pd.Series, pictures: Mapping[str, Picture], *, graded: bool) -> Answer:
    score = float(item["score"]) if item["score"] is not None else math.nan
    known = not math.isnan(score)
    found = pictures.get(str(item["prediction"]))
    return Answer(
        row=row,
        text="" if found else visible(str(item["prediction"]), _LONGEST_TEXT),
        picture=found,
        right=score > 0 if known and not graded else None,
        score=f"{score:.2f}" if known and graded else "",
    )
