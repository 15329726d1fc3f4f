"""WebDataset's tar shards of conversations: a JSON file and its pictures are a sample."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from clips.data.images import IMAGE_SUFFIXES
from clips.data.shardindex import index_shard
from clips.data.tars import read_span
from clips.errors import UserError
from clips.jsontext import parse_json
from clips.model.loading import refusing
from llava_bridge.data.files import named_files
from llava_bridge.data.pictures import Picture, SpanPicture
from llava_bridge.data.samples import DataConfig, Sample
from llava_bridge.data.turns import EXPECTED, TALK, read_turns, with_pictures_placed

_DIGITS = re.compile(r"(\d+)")


def webdataset(config: DataConfig) -> Iterator[Sample]:
    """Tar shards: ``key.json`` has what is said, ``key.jpg`` or ``key.0.jpg, key.1.jpg …`` the pictures in order."""
    shards = named_files(config.path)
    if len(shards) == 1 and shards[0].is_dir():
        shards = sorted(shards[0].glob("*.tar"))
        if not shards:
            raise UserError(f"{config.path}: expected .tar shards in this directory, found none")
    for shard in shards:
        yield from _samples(shard)


def _samples(shard: Path) -> Iterator[Sample]:
    index = index_shard(shard)
    for place in range(len(index)):
        key, files = index.key(place), index.files(place)
        where = f"{shard}/{key}"
        if "json" not in files:
            raise UserError(f"{where}: expected {key}.json with what is said, found {', '.join(files)}")
        with refusing(f"{where}.json: expected an object with {EXPECTED}"):
            row = parse_json(read_span(shard, *files["json"]))
            turns = read_turns(row[next(name for name in TALK if name in row)])
        names = sorted((name for name in files if f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES), key=_by_numbers)
        pictures: list[Picture] = [SpanPicture(shard, f"{key}.{name}", *files[name]) for name in names]
        yield Sample(f"{shard.name}/{key}", pictures, with_pictures_placed(turns, len(pictures)))


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """So that ``10.jpg`` comes behind ``9.jpg``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
