"""WebDataset's tar shards: images next to JSON or text files of the same name.

Captions and classes are as CLIP_benchmark's reader and writer (``webdataset_builder.py``) have them: ``test/0.tar``,
``test/1.tar`` and so on, their number in ``test/nshards.txt``, images next to a ``.txt`` with a caption a line or a
``.cls``; or as the suite writes them, with ``captions`` in each JSON.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips.data.formats.dataset_format import WHOLE, Captioned, Classified, Conversation, Dataset, Location
from clips.data.formats.turns import CONVERSATION_KEYS, EXPECTED_FORMAT, parse_messages, place_images
from clips.data.images import IMAGE_SUFFIXES
from clips.data.lazy_images import TarImage
from clips.data.remote_files import expand_brace_ranges, is_remote
from clips.data.shard_index import index_shard
from clips.data.tar_index import TarIndex, index_tar, read_byte_range
from clips.data.text_files import parse_object, text_lines
from clips.errors import UserError
from clips.jsontext import safe_json_loads
from clips.model.loading import library_errors_as_user_errors

_BESIDE = {"cls", "json", "txt", "key"}  # metadata that WebDataset's writers add to an image
_OTHER_FORMATS = {".json": "karpathy or coco"} | dict.fromkeys((".csv", ".tsv", ".jsonl", ".parquet"), "table")
_DIGITS = re.compile(r"(\d+)")


def list_shards(path: str) -> list[str]:
    """The shards that ``path`` names: a directory's .tar files, or those of a range of names, here or remote.

    Raises:
        UserError: there are none.
    """
    found = expand_brace_ranges(path)
    if is_remote(path):
        return found
    if len(found) == 1 and Path(path).is_dir():
        found = list(map(str, _shards(Path(path))))
        if not found:
            raise UserError(f"{path}: expected .tar shards in this directory, found none")
    for shard in found:
        if not Path(shard).exists():
            raise UserError(f"{shard}: no such file or directory")
        if other := _OTHER_FORMATS.get(Path(shard).suffix):
            raise UserError(f"{shard}: expected tar shards, as format webdataset has them; give format: {other}")
    return found


def is_webdataset(found: Location) -> bool:
    """Shards in the directory, or in directories of splits."""
    return any(next(found.path.glob(where), None) for where in ("*.tar", "*/*.tar"))


def read_captions(found: Location) -> Dataset[Captioned]:
    """The images that have a caption next to them."""
    folder, shards = _shards_of_split(found)
    records = (record for shard in shards for record in _captions(found.path, shard))
    return Dataset(records=records, split=WHOLE if folder == found.path else found.asked.split)


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


def read_classes(found: Location) -> Dataset[Classified]:
    """Images with their class index in a ``.cls`` file; all files are listed before the first record."""
    folder, shards = _shards_of_split(found)
    records, skipped = [], Counter[str]()
    for shard in shards:
        index = index_tar(shard)
        for member, stem, suffix in _parts(index):
            if member is None:
                skipped.update([] if suffix in _BESIDE else [f".{suffix}".lower()])
                continue
            if f"{stem}.cls" not in index.members:
                raise UserError(f"{shard}/{member}: expected {stem}.cls next to it, the number of its class")
            content = index.read(f"{stem}.cls").decode("utf-8", "replace").strip()
            if not content.isdecimal():
                raise UserError(f"{shard}/{stem}.cls: expected the number of one class, got {content!r:.40}")
            image = TarImage(folder, shard, member, *index.members[member])
            records.append(Classified(image.name, image, int(content)))
    return Dataset(records=records, split=WHOLE if folder == found.path else found.asked.split, skipped=skipped)


def _parts(index: TarIndex) -> Iterator[tuple[str | None, str, str]]:
    """(name of an image, None for anything else; name without suffix; suffix) of each member."""
    for member in index.members:
        stem, dot, suffix = member.rpartition(".")
        yield member if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else None, stem, suffix


def _shards_of_split(found: Location) -> tuple[Path, list[Path]]:
    """The directory of the split (the directory itself where it has no such directories) and the shards in it."""
    folder = found.path / found.asked.split
    if not _shards(folder):
        if found.asked.split != "test":
            raise UserError(f"{found.path}: has no split '{found.asked.split}' (expected .tar shards in {folder})")
        folder = found.path
    shards = _shards(folder)
    if not shards:
        raise UserError(f"{found.path}: expected .tar shards, found none")
    counted = folder / "nshards.txt"
    if counted.is_file():  # so that a shard that was not copied is missed
        stated = counted.read_text(encoding="utf-8", errors="replace").strip()
        if stated != str(len(shards)):
            raise UserError(f"{folder}: expected {stated:.20} shards, as nshards.txt says, found {len(shards)}")
    return folder, shards


def _shards(folder: Path) -> list[Path]:
    """Numeric order for numbered files: 10.tar comes after 9.tar."""
    return sorted(folder.glob("*.tar"), key=lambda path: _by_numbers(path.name))


def _by_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def read_conversations(found: Location) -> Dataset[Conversation]:
    """``key.json`` has the text, ``key.jpg`` or ``key.0.jpg, key.1.jpg …`` the images in order."""
    shards = list_shards(found.asked.path)
    if is_remote(found.asked.path):
        raise UserError(f"{found.asked.path}: expected files of this machine; copy them here first")
    return Dataset(records=(record for shard in shards for record in _conversations(Path(shard))))


def _conversations(shard: Path) -> Iterator[Conversation]:
    index = index_shard(shard)
    for place in range(len(index)):
        key, files = index.key(place), index.files(place)
        where = f"{shard}/{key}"
        if "json" not in files:
            raise UserError(f"{where}: expected {key}.json with what is said, found {', '.join(files)}")
        with library_errors_as_user_errors(f"{where}.json: expected an object with {EXPECTED_FORMAT}"):
            row = safe_json_loads(read_byte_range(shard, *files["json"]))
            turns = parse_messages(row[next(name for name in CONVERSATION_KEYS if name in row)])
        names = sorted((name for name in files if f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES), key=_by_numbers)
        images = [TarImage(shard.parent, shard, f"{key}.{name}", *files[name]) for name in names]
        yield Conversation(f"{shard.name}/{key}", images, place_images(turns, len(images)))
