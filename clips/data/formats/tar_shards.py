"""WebDataset's tar shards: images next to JSON or text files of the same name.

Captions and classes have the format of CLIP_benchmark's reader and writer (``webdataset_builder.py``): ``test/0.tar``,
``test/1.tar``, …, their number in ``test/nshards.txt``, images next to a ``.txt`` with one caption per line or a
``.cls``; or the format of this suite, with ``captions`` in each JSON. In some of DataComp's evaluation sets
an image also has an ``.npy`` with numbers, the first of which names its group (a region, a level of income).
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clips.data.formats.conversations import CONVERSATION_KEYS, EXPECTED_FORMAT, parse_messages, place_images
from clips.data.formats.dataset_format import WHOLE, Captioned, Classified, Conversation, Dataset, Location
from clips.data.images import IMAGE_SUFFIXES
from clips.data.lazy_images import TarImage
from clips.data.remote_files import expand_brace_ranges, is_remote
from clips.data.shard_index import index_shard
from clips.data.tar_index import TarIndex, index_tar, read_byte_range
from clips.errors import UserError
from clips.model.loading import library_errors_as_user_errors
from clips.text_files import parse_object, safe_json_loads, text_lines

_METADATA_EXTENSIONS = {"cls", "json", "npy", "txt", "key"}  # that WebDataset's writers add to an image
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
        if other := _OTHER_FORMATS.get(Path(shard).suffix):
            raise UserError(f"{shard}: expected tar shards, as format webdataset has them; give format: {other}")
    return location


def is_webdataset(location: Location) -> bool:
    """Shards in the directory, or in directories of splits."""
    return any(next(location.path.glob(where), None) for where in ("*.tar", "*/*.tar"))


def read_captions(location: Location) -> Dataset[Captioned]:
    """The images that have a caption next to them."""
    directory, shards = _shards_of_split(location)
    records = (record for shard in shards for record in _captions(location.path, shard))
    return Dataset(records=records, split=WHOLE if directory == location.path else location.spec.split)


def _captions(root: Path, shard: Path) -> Iterator[Captioned]:
    index = index_tar(shard)
    for member, stem, _ in _parts(index):
        if member is None:
            continue
        texts: Any = None
        if f"{stem}.json" in index.members:
            texts = parse_object(index.read(f"{stem}.json"), f"{shard}/{stem}.json").get("captions")
        if texts is None and f"{stem}.txt" in index.members:  # img2dataset writes both, the JSON about the image
            lines = text_lines(index.read(f"{stem}.txt"), f"{shard}/{stem}.txt")
            texts = [line for line in lines if line.strip()]
        yield Captioned([TarImage(root, shard, member, *index.members[member])], texts)


def read_classes(location: Location) -> Dataset[Classified]:
    """Images with their class index in a ``.cls`` file."""
    directory, shards = _shards_of_split(location)
    records, skipped = [], Counter[str]()
    for shard in shards:
        index = index_tar(shard)
        for member, stem, suffix in _parts(index):
            if member is None:
                skipped.update([] if suffix in _METADATA_EXTENSIONS else [f".{suffix}".lower()])
                continue
            if f"{stem}.cls" not in index.members:
                raise UserError(f"{shard}/{member}: expected {stem}.cls next to it, the index of its class")
            content = index.read(f"{stem}.cls").decode("utf-8", "replace").strip()
            if not content.isdecimal():
                raise UserError(f"{shard}/{stem}.cls: expected the index of one class, got {content!r:.40}")
            image = TarImage(directory, shard, member, *index.members[member])
            records.append(Classified(image.name, image, int(content), _group(index, shard, stem)))
    return Dataset(records=records, split=WHOLE if directory == location.path else location.spec.split, skipped=skipped)


def _group(index: TarIndex, shard: Path, stem: str) -> str:
    """The first number of an image's ``.npy``; empty without one."""
    if f"{stem}.npy" not in index.members:
        return ""
    with library_errors_as_user_errors(f"{shard}/{stem}.npy: expected a NumPy array of numbers"):
        return str(int(np.load(io.BytesIO(index.read(f"{stem}.npy")), allow_pickle=False).flat[0]))


def _parts(index: TarIndex) -> Iterator[tuple[str | None, str, str]]:
    """(name of an image, None for anything else; name without suffix; suffix) of each member."""
    for member in index.members:
        stem, dot, suffix = member.rpartition(".")
        yield member if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else None, stem, suffix


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
    return sorted(directory.glob("*.tar"), key=lambda path: _numeric_key(path.name))


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
    for sample in range(len(index)):
        key, files = index.key(sample), index.files(sample)
        where = f"{shard}/{key}"
        if "json" not in files:
            raise UserError(f"{where}: expected {key}.json with the conversation, found {', '.join(files)}")
        with library_errors_as_user_errors(f"{where}.json: expected an object with {EXPECTED_FORMAT}"):
            row = safe_json_loads(read_byte_range(shard, *files["json"]))
            turns = parse_messages(row[next(name for name in CONVERSATION_KEYS if name in row)])
        names = sorted((name for name in files if f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES), key=_numeric_key)
        images = [TarImage(shard.parent, shard, f"{key}.{name}", *files[name]) for name in names]
        yield Conversation(f"{shard.name}/{key}", images, place_images(turns, len(images)))
