"""WebDataset's tar shards: images next to JSON or text files of the same name.

Captions and classes have the format of CLIP_benchmark's reader and writer (``webdataset_builder.py``): ``test/0.tar``,
``test/1.tar``, …, their number in ``test/nshards.txt``, images next to a ``.txt`` with one caption per line or a
``.cls``; or the format of this suite, with ``captions`` in each JSON.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.data.formats.conversations import (
    CONVERSATION_KEYS,
    EXPECTED_FORMAT,
    parse_messages,
    place_images,
    read_record,
    reject_video,
)
from clips.data.formats.dataset_format import WHOLE, Captioned, Classified, Conversation, Dataset, Location, Turn
from clips.data.images import IMAGE_SUFFIXES
from clips.data.lazy_images import LazyImage, TarImage
from clips.data.remote_files import expand_brace_ranges, is_remote
from clips.data.shard_index import Spans, image_extension, index_shard
from clips.data.tar_index import is_clutter, read_byte_range
from clips.errors import UserError
from clips.text_files import parse_object, safe_json_loads, text_lines

_METADATA_SUFFIXES = {".cls", ".json", ".txt", ".key"}  # that WebDataset's writers add to an image
_OTHER_FORMATS = {".json": "karpathy or coco"} | dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), "table")
_DIGITS = re.compile(r"(\d+)")


def list_shards(path: str) -> list[str]:
    """The shards of ``path``: a directory's .tar files, or a range of local or remote names.

    Raises:
        UserError: there are none.
    """
    location = expand_brace_ranges(path)
    if is_remote(path):
        return location
    if len(location) == 1 and Path(path).is_dir():
        location = list(map(str, _shards(Path(path))))
        if not location:
            raise UserError(f"{path}: expected .tar shards in this directory, found none")
    for shard in location:
        if not Path(shard).exists():
            raise UserError(f"{shard}: no such file or directory")
        if other := _OTHER_FORMATS.get(Path(shard).suffix.lower()):
            raise UserError(f"{shard}: expected tar shards, as format webdataset has them; give format: {other}")
    return location


def is_webdataset(location: Location) -> bool:
    """Shards in the directory, or in directories of splits."""
    folders = [location.path, *(path for path in location.path.glob("*") if path.is_dir())]
    return location.path.is_dir() and any(map(_shards, folders))


def read_captions(location: Location) -> Dataset[Captioned]:
    """The images that have a caption next to them."""
    directory, shards = _shards_of_split(location)
    records = (record for shard in shards for record in _captions(location.path, shard))
    return Dataset(records=records, split=WHOLE if directory == location.path else location.spec.split)


def _captions(root: Path, shard: Path) -> Iterator[Captioned]:
    for key, files, image in _samples(root, shard):
        if image is None:
            continue
        value: Any = None
        if "json" in files:
            value = parse_object(read_byte_range(shard, *files["json"]), f"{shard}/{key}.json").get("captions")
        if value is None and "txt" in files:  # img2dataset writes both, the JSON about the image
            value = text_lines(read_byte_range(shard, *files["txt"]), f"{shard}/{key}.txt")
        yield Captioned([image], value)


def _samples(root: Path, shard: Path) -> Iterator[tuple[str, Spans, TarImage | None]]:
    """Name, files and image of each sample."""
    index = index_shard(shard, allow_cut=False)
    for sample in range(len(index)):
        key, files = index.key(sample), index.files(sample)
        try:
            extension = image_extension(files)
        except UserError as error:
            raise UserError(f"{shard}/{key}: {error}") from None
        yield key, files, TarImage(root, shard, f"{key}.{extension}", *files[extension]) if extension else None


def read_classes(location: Location) -> Dataset[Classified]:
    """Images with their class index in a ``.cls`` file."""
    directory, shards = _shards_of_split(location)
    records, skipped = [], Counter[str]()
    for shard in shards:
        for key, files, image in _samples(directory, shard):
            skipped.update(f".{name}" for name in files if f".{name}" not in {*IMAGE_SUFFIXES, *_METADATA_SUFFIXES})
            if image is None:
                continue
            if "cls" not in files:
                raise UserError(f"{image}: expected {key}.cls next to it, the index of its class")
            content = read_byte_range(shard, *files["cls"]).decode("utf-8", "replace").strip()
            if not content.isdecimal():
                raise UserError(f"{shard}/{key}.cls: expected the index of one class, got {content!r:.40}")
            records.append(Classified(image.name, image, int(content)))
    return Dataset(records=records, split=WHOLE if directory == location.path else location.spec.split, skipped=skipped)


def _shards_of_split(location: Location) -> tuple[Path, list[Path]]:
    """The split's directory, or the dataset's if it has no splits, and its shards."""
    directory = location.path / location.spec.split
    if not _shards(directory):
        if location.spec.split != "test":
            raise UserError(
                f"{location.path}: has no split '{location.spec.split}' (expected .tar shards in {directory})"
            )
        directory = location.path
    shards = _shards(directory)
    if not shards:
        raise UserError(f"{location.path}: expected .tar shards, found none")
    count_file = directory / "nshards.txt"
    if count_file.is_file():  # detects shards that were not copied
        expected = count_file.read_text(encoding="utf-8", errors="replace").strip()
        if expected != str(len(shards)):
            raise UserError(f"{directory}: expected {expected:.20} shards, as nshards.txt says, found {len(shards)}")
    return directory, shards


def _shards(directory: Path) -> list[Path]:
    """Numeric order for numbered files: 10.tar comes after 9.tar."""
    shards = [path for path in directory.glob("*.[tT][aA][rR]") if not is_clutter(path.name)]
    return sorted(shards, key=lambda path: _numeric_key(path.name))


def _numeric_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def read_conversations(location: Location) -> Dataset[Conversation]:
    """``key.json`` has the text, ``key.jpg`` or ``key.0.jpg, key.1.jpg …`` the images in order."""
    shards = list_shards(location.spec.path)
    if is_remote(location.spec.path):
        raise UserError(f"{location.spec.path}: expected local files; download them first")
    return Dataset(records=(record for shard in shards for record in _conversations(Path(shard))))


def _conversations(shard: Path) -> Iterator[Conversation]:
    index = index_shard(shard)
    index.warn_if_cut(shard)
    for sample in range(len(index)):
        key, files = index.key(sample), index.files(sample)
        expected = f"{key}.json: expected an object with {EXPECTED_FORMAT}"
        yield read_record(f"{shard.name}/{key}", expected, _parse_conversation, shard, key, files)


def _parse_conversation(shard: Path, key: str, files: Spans) -> tuple[list[LazyImage], list[Turn]]:
    if "json" not in files:
        raise UserError(f"expected {key}.json with the conversation, found {', '.join(files)}")
    row = safe_json_loads(read_byte_range(shard, *files["json"]))
    reject_video(row)
    turns = parse_messages(row[next(name for name in CONVERSATION_KEYS if name in row)])
    names = sorted((name for name in files if f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES), key=_numeric_key)
    images: list[LazyImage] = [TarImage(shard.parent, shard, f"{key}.{name}", *files[name]) for name in names]
    return images, place_images(turns, len(images))
