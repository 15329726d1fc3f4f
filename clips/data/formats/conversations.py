"""Conversations about images: LLaVA's JSON, COCO-QA, and rows of ``datasets``, parquet or JSON.

What is said is read at once; images stay where they are. Those inside a table are read by row: from a directory of
``datasets`` by memory map, from parquet out of copies of row groups, which a cache keeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from clips.core.cache import cache_directory
from clips.data.formats.dataset_format import IMAGE, Conversation, Dataset, Location, Turn
from clips.data.formats.rows import files_of_splits, is_saved, open_rows
from clips.data.formats.turns import (
    CONVERSATION_KEYS,
    EXPECTED_FORMAT,
    IMAGE_KEYS,
    drop_before_first_user_turn,
    parse_messages,
    place_image_first,
    place_images,
    text,
)
from clips.data.lazy_images import FileImage, ImageColumn, LazyImage, TableImage
from clips.data.parquet_limits import iter_record_batches
from clips.data.remote_files import ShardCache, expand_brace_ranges, is_remote
from clips.data.text_files import read_json, read_json_lines
from clips.errors import UserError, unknown_name_error
from clips.model.loading import library_errors_as_user_errors

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Follows a question with a one-word answer; also the words of lmms-eval's question tasks."""
_ROWS_AT_ONCE = 256
_SUFFIXES = (".parquet", ".jsonl", ".json")
_HELD_OUT_ONE_IN = 5


def is_held_out(photo: str) -> bool:
    """Whether the photo with this file name belongs to COCO-QA's held-out fifth, on which nothing is trained.

    One rule for training and for the benchmark: it looks at the name alone, so that all questions about one photo fall
    on one side, and adding photos moves none.
    """
    return int.from_bytes(hashlib.sha256(photo.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def is_llava(found: Location) -> bool:
    """``[{"conversations"}]``."""
    first = found.json[0] if isinstance(found.json, list) and found.json else None
    return isinstance(first, dict) and "conversations" in first


def read_llava(found: Location) -> Dataset[Conversation]:
    """LLaVA's JSON list: id, image (a reference, a list of them, or none), conversations (from, value)."""
    path, root = found.path, found.folder()
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of samples, got {type(rows).__name__}")

    def records() -> Iterator[Conversation]:
        for number, row in enumerate(rows):
            with library_errors_as_user_errors(
                f"{path} sample {number}: expected conversations with from (human, gpt or system) and value, "
                "and image as a reference or a list of them"
            ):
                turns = place_image_first(drop_before_first_user_turn(parse_messages(row["conversations"])))
                image = row.get("image")
                references = [] if image is None else [image] if isinstance(image, str) else image
                images = [FileImage(root, text(one)) for one in references]
            yield Conversation(f"{path.name} {row.get('id', number)}", images, turns)

    return Dataset(records=records())


def read_cocoqa(found: Location) -> Dataset[Conversation]:
    """Questions with one-word answers (COCO-QA), all questions about a photo in one conversation."""
    path, root = found.file("questions.jsonl"), found.folder("images")
    split = found.asked.split
    rules: dict[str, Callable[[str], bool]] = {
        "train": lambda photo: not is_held_out(photo),
        "held_out": is_held_out,
        "all": lambda photo: True,
    }
    if split not in rules:
        raise unknown_name_error(split, rules, "split of cocoqa")
    photos: dict[str, list[Turn]] = {}
    for _, row in read_json_lines(path, texts=("image", "question", "answer")):
        if rules[split](row["image"]):
            turns = photos.setdefault(row["image"], [])
            image = "" if turns else f"{IMAGE}\n"
            turns.append(Turn("user", f"{image}{row['question']}\n{SHORT_ANSWER}"))
            turns.append(Turn("assistant", row["answer"]))
    records = [Conversation(photo, [FileImage(root, photo)], turns) for photo, turns in photos.items()]
    return Dataset(records=records, split=split)


def read_rows(found: Location) -> Dataset[Conversation]:
    """Rows with messages or conversations in either form, and images or image: bytes, paths, or none.

    Raises:
        UserError: a file is missing or broken, of no known kind, or lacks the columns.
    """
    return Dataset(records=_saved(found) if is_saved(found.path) else _in_files(found), split=found.asked.split)


def _in_files(found: Location) -> Iterator[Conversation]:
    path = found.path
    for file in _files(found):
        root = found.folder() if found.asked.image_root or path.is_dir() else file.parent
        if file.suffix == ".parquet":
            yield from _parquet(file, root, found.asked.max_cache_gb)
        elif file.suffix in _SUFFIXES:
            yield from _json(file, root)
        else:
            raise UserError(f"{file}: expected a file that ends in {', '.join(_SUFFIXES)}, or a directory of datasets")


def _files(found: Location) -> list[Path]:
    """A directory's files are those that ``datasets`` would read of the split, as of a dataset on the hub."""
    path = found.path
    if not path.is_dir():
        return local_files(found.asked.path)
    with library_errors_as_user_errors(f"{path}: expected a directory of datasets, or of {', '.join(_SUFFIXES)} files"):
        splits = files_of_splits(str(path.resolve()))
    if found.asked.split not in splits:
        raise unknown_name_error(found.asked.split, splits, f"split of {path}")
    return [Path(file) for file in splits[found.asked.split]]


def local_files(path: str) -> list[Path]:
    """The files or the directory that a ``path`` with or without ``{000..127}`` names.

    Raises:
        UserError: one of them is not there, or is not on this machine.
    """
    if is_remote(path):
        raise UserError(f"{path}: expected files of this machine; copy them here first")
    files = [Path(one) for one in expand_brace_ranges(path)]
    for one in files:
        if not one.exists():
            raise UserError(f"{one}: no such file or directory")
    return files


def _json(file: Path, root: Path) -> Iterator[Conversation]:
    rows = (row for _, row in read_json_lines(file)) if file.suffix == ".jsonl" else read_json(file)
    if isinstance(rows, dict):
        raise UserError(f"{file}: expected a list of rows, got an object")
    for number, row in enumerate(rows):
        with library_errors_as_user_errors(f"{file} row {number}: expected an object whose images are paths"):
            said, column = _columns(dict(row), f"{file} row {number}")
            images = [FileImage(root, _path(one)) for one in _as_list(row.get(column))]
        yield _conversation(str(file), f"{file.name} row {number}", row[said], images)


def _parquet(file: Path, root: Path, cache_gb: float) -> Iterator[Conversation]:
    import pyarrow.parquet

    from clips.data.sources.parquet import ParquetRows

    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        reader = pyarrow.parquet.ParquetFile(file)
        names = reader.schema_arrow.names
    said, column = _columns(names, str(file))
    wanted, kept = [said], None
    if column in names:
        cache = ShardCache(cache_directory("rows"), cache_gb * 1e9)
        kept = ImageColumn(ParquetRows([str(file.resolve())], cache).select_columns([column]), column, str(file), root)
        leaves = [leaf.path for leaf in map(reader.schema.column, range(len(reader.schema)))]
        paths = [leaf for leaf in leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")]
        wanted += paths or [column]  # of images with paths those tell how many there are: no need to read any
    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        batches = iter_record_batches(str(file), file, columns=wanted, footer=reader.metadata)
        yield from _of_batches(batches, said, kept, file.name, str(file))


def _saved(found: Location) -> Iterator[Conversation]:
    path, root = found.path, found.folder()
    rows = open_rows(found.asked.path, None, found.asked.split).with_format("arrow")  # slices are views of the files
    said, column = _columns(rows.column_names, str(path))
    kept = None
    if column in rows.column_names:
        kept = ImageColumn(_OneByOne(rows.select_columns([column])), column, str(path), root)
    tables = (rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE))
    batches = (batch for table in tables for batch in table.to_batches())
    yield from _of_batches(batches, said, kept, path.name, str(path))


@dataclasses.dataclass(frozen=True)
class _OneByOne:
    """A dataset in Arrow's format, by the row as plain objects."""

    rows: Any

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index : index + 1].to_pylist()[0]
        return row


def _of_batches(
    batches: Iterable[Any], said: str, kept: ImageColumn | None, name: str, where: str
) -> Iterator[Conversation]:
    """The rows in batches of Arrow: paths of images as files, all other images by their row."""
    number = 0
    for batch in batches:
        talks = batch.column(said).to_pylist()
        paths = [[]] * len(talks) if kept is None else _paths_of_rows(batch.column(kept.name))
        for talk, listed in zip(talks, paths, strict=True):
            images: list[LazyImage] = []
            for place, path in enumerate(listed):
                assert kept is not None
                images.append(TableImage(kept, number, place) if path is None else FileImage(kept.root, path))
            yield _conversation(where, f"{name} row {number}", talk, images)
            number += 1


def _conversation(where: str, name: str, said: Any, images: list[Any]) -> Conversation:
    with library_errors_as_user_errors(f"{where}: {name}: expected {EXPECTED_FORMAT}"):
        turns = parse_messages(said)
    return Conversation(name, images, place_images(turns, len(images)))


def _paths_of_rows(column: Any) -> list[list[str | None]]:
    """For each image of each row its path, None if the image is in the row; images themselves are not touched."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return [[] for _ in range(len(column))]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        there = zip(column.is_valid().to_pylist(), _paths(column), strict=True)
        return [[path] if valid else [] for valid, path in there]
    flat = iter(_paths(column.flatten()))
    return [[next(flat) for _ in range(length or 0)] for length in pc.list_value_length(column).to_pylist()]


def _paths(values: Any) -> list[str | None]:
    import pyarrow as pa

    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.to_pylist() if is_text else [None] * len(values)


def _columns(names: Iterable[str], where: str) -> tuple[str, str]:
    """The columns of what is said and of the images; the latter may be missing.

    Raises:
        UserError: nothing is said.
    """
    found = list(names)
    said = next((name for name in CONVERSATION_KEYS if name in found), None)
    if said is None:
        raise UserError(f"{where}: expected {' or '.join(CONVERSATION_KEYS)}, found {', '.join(map(str, found))}")
    return said, next((name for name in IMAGE_KEYS if name in found), IMAGE_KEYS[0])


def _as_list(found: Any) -> list[Any]:
    return [] if found is None else found if isinstance(found, list) else [found]


def _path(found: Any) -> str:
    path = found.get("path") if isinstance(found, dict) else found
    if not isinstance(path, str):
        raise TypeError(f"expected a path, got {str(found)[:80]}")
    return path
