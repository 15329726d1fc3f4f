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
_LONGEST_ANSWER = 400
SHOWN = "the picture on the left"


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
    chosen = choose_items(scores, {name: str(image) for name, image in next(iter(tables.values()))["image"].items()})
    examples = tuple(_example(str(item), tables, pictures) for item in chosen)
    return Gallery(
        benchmark=benchmark, examples=examples, disagreements=int(_disagree(scores).sum()), items=len(scores)
    )


def _disagree(scores: pd.DataFrame) -> pd.Series:
    return scores.max(axis=1) - scores.min(axis=1) > 1e-9


def choose_items(scores: pd.DataFrame, images: Mapping[Any, str], most: int = MOST_PER_BENCHMARK) -> list[Any]:
    """Item names to show: at most ``most``, each of another picture, the same for the same input.

    Disagreements come first, dealt in turn over *who* is right, so that no row's luck fills the page; then one item
    that all rows get wrong and one that all get right.

    Args:
        scores: items × rows.
        images: item → picture.
        most: how many.
    """
    apart = _disagree(scores)
    patterns: dict[tuple[bool, ...], list[Any]] = {}
    for item, row in scores[apart].iterrows():
        patterns.setdefault(tuple(row >= row.max() - 1e-9), []).append(item)
    ordered: list[Any] = []
    queues = [patterns[pattern] for pattern in sorted(patterns, reverse=True)]
    for turn in range(max(map(len, queues), default=0)):
        ordered += [queue[turn] for queue in queues if turn < len(queue)]
    alike = scores[~apart]
    means = alike.mean(axis=1)
    ends = [*means[means == means.min()].index[:1], *means[means == means.max()].index[:1]] if len(alike) else []
    room = max(most - len(ends), 0)
    first = _of_unlike_pictures(ordered, images, room)
    return _of_unlike_pictures([*first, *ends, *ordered], images, most)


def _of_unlike_pictures(items: Sequence[Any], images: Mapping[Any, str], most: int) -> list[Any]:
    seen: set[str] = set()
    chosen: list[Any] = []
    for item in items:
        picture = images.get(item, str(item))
        if picture not in seen and len(chosen) < most:
            seen.add(picture)
            chosen.append(item)
    return chosen


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


def _example(item: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Picture]) -> Example:
    first = next(table.loc[item] for table in tables.values() if item in table.index)
    finds_pictures = str(first["direction"]) == "t2i"
    answers = tuple(
        _answer(row, table.loc[item], pictures if finds_pictures else {})
        for row, table in tables.items()
        if item in table.index
    )
    question = visible(str(first["question"]), _LONGEST_ANSWER)
    return Example(
        picture=pictures.get(str(first["image"])),
        question=question,
        target=SHOWN if finds_pictures else visible(str(first["target"]), _LONGEST_ANSWER),
        answers=answers,
    )


def _answer(row: str, item: pd.Series, pictures: Mapping[str, Picture]) -> Answer:
    score = float(item["score"]) if item["score"] is not None else math.nan
    all_or_nothing = score in {0.0, 1.0}
    found = pictures.get(str(item["prediction"]))
    return Answer(
        row=row,
        text="" if found else visible(str(item["prediction"]), _LONGEST_ANSWER),
        picture=found,
        right=bool(score) if all_or_nothing else None,
        score="" if all_or_nothing or math.isnan(score) else f"{score:.2f}",
    )
