"""WebDataset shards: ours with ``captions`` in each JSON, and CLIP_benchmark's, one folder a split, one caption a line.

CLIP_benchmark's own reader and writer (``webdataset_builder.py``) are where the second is described: ``test/0.tar``,
``test/1.tar`` and so on, their number in ``test/nshards.txt``, pictures beside a ``.txt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.data.json_files import parse_object
from benchmarks.data.source import WHOLE, Files, Found, OnDisk, Row
from benchmarks.data.text_files import text_lines
from clips.data.images import IMAGE_SUFFIXES
from clips.errors import UserError


def is_shards(found: OnDisk) -> bool:
    """Shards in the directory, or in folders of splits."""
    return any(next(found.path.glob(where), None) for where in ("*.tar", "*/*.tar"))


def read_shards(found: OnDisk) -> Found:
    """The pictures that have a caption beside them."""
    parted = bool(_shards(found.path / found.asked.split))
    return Found(Files(found.path), _rows(found), found.asked.split if parted else WHOLE)


def _rows(found: OnDisk) -> Iterator[Row]:
    from clips.data.tars import index_tar

    root = found.path
    for shard in _shards_of_split(found):
        index = index_tar(shard)
        for member in index.members:
            stem, dot, suffix = member.rpartition(".")
            if f"{dot}{suffix}".lower() not in IMAGE_SUFFIXES:
                continue
            texts: Any = None
            if f"{stem}.json" in index.members:
                texts = parse_object(index.read(f"{stem}.json"), f"{shard}/{stem}.json").get("captions")
            if texts is None and f"{stem}.txt" in index.members:  # img2dataset writes both, the JSON about the picture
                lines = text_lines(index.read(f"{stem}.txt"), f"{shard}/{stem}.txt")
                texts = [line for line in lines if line.strip()]
            yield [f"{shard.relative_to(root).as_posix()}/{member}"], texts


def _shards_of_split(found: OnDisk) -> list[Path]:
    folder = found.path / found.asked.split
    if not _shards(folder):
        if found.asked.split != "test":
            raise UserError(f"{found.path}: has no split '{found.asked.split}' (expected .tar shards in {folder})")
        folder = found.path
    shards = _shards(folder)
    if not shards:
        raise UserError(f"{found.path}: expected .tar shards, found none")
    counted = folder / "nshards.txt"
    if counted.is_file():
        stated = counted.read_text(encoding="utf-8", errors="replace").strip()
        if stated != str(len(shards)):
            raise UserError(f"{folder}: expected {stated} shards, as nshards.txt says, found {len(shards)}")
    return shards


def _shards(folder: Path) -> list[Path]:
    """By number where they are numbered: 10.tar comes after 9.tar."""
    parts = re.compile(r"(\d+)")
    return sorted(
        folder.glob("*.tar"),
        key=lambda path: [(int(part), "") if part.isdigit() else (-1, part) for part in parts.split(path.name)],
    )
