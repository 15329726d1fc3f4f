"""Where encoders see what a phrase names: the similarity maps that a pointing benchmark kept, row beside row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from benchmarks.lots import by_lot
from benchmarks.report.gallery.pictures import Picture, fitted, picture, pictures_of
from benchmarks.report.source import ReportSource
from benchmarks.results import Result, read_items
from benchmarks.wording import visible

MOST_PER_BENCHMARK = 8
_LONGEST_TEXT = 140


@dataclass(frozen=True, kw_only=True)
class Map:
    """One row's map, and whether its highest point is on the thing; None where that is half so."""

    row: str
    picture: Picture
    hit: bool | None


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One phrase about one picture, and where each row sees it."""

    phrase: str
    picture: Picture | None
    maps: tuple[Map, ...]


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The phrases of one benchmark that are shown, of how many, and how many made the page too large."""

    benchmark: str
    shown: tuple[Looked, ...]
    items: int
    left_out: int = 0


def similarity_maps(source: ReportSource) -> list[Maps]:
    """One for every benchmark whose maps were kept."""
    found = (_maps(name, source.results(name)) for name in source.benchmarks)
    return fitted([each for each in found if each is not None], _pictures_in)


def _maps(benchmark: str, results: Mapping[str, Result]) -> Maps | None:
    tables = {row: read_items(result).set_index("item") for row, result in results.items() if result.items}
    tables = {row: table for row, table in tables.items() if "map" in table}
    if not tables:
        return None
    kept = set.intersection(*(set(table.index[table["map"].notna()]) for table in tables.values()))
    pictures = pictures_of(tables.values())
    shown = tuple(_looked(name, tables, pictures) for name in by_lot(kept)[:MOST_PER_BENCHMARK])
    return Maps(benchmark=benchmark, shown=shown, items=len(next(iter(tables.values()))))


def _pictures_in(card: Looked) -> list[Picture | None]:
    return [card.picture, *(each.picture for each in card.maps)]


def _looked(name: str, tables: Mapping[str, pd.DataFrame], pictures: Mapping[str, Picture]) -> Looked:
    first = next(iter(tables.values())).loc[name]
    phrase = visible(str(first["question"]), _LONGEST_TEXT)
    maps = []
    for row, table in tables.items():
        item = table.loc[name]
        found = picture(item["map"], f"map for {phrase}")
        if found is not None:
            maps.append(Map(row=row, picture=found, hit={1.0: True, 0.0: False}.get(item["score"])))
    return Looked(phrase=phrase, picture=pictures.get(str(first["image"])), maps=tuple(maps))
