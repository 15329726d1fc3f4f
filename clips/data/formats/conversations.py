"""Conversations about images: LLaVA's JSON, COCO-QA, and rows of ``datasets``, parquet or JSON.

The text is read eagerly; images are read lazily. Those inside a table are read by row: from a directory of ``datasets``
by memory map, from parquet through cached copies of row groups.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.core.cache import cache_directory
from clips.data.formats.dataset_format import IMAGE, Conversation, Dataset, Location, Turn
from clips.data.formats.rows import files_of_splits, is_saved, open_rows
from clips.data.lazy_images import FileImage, ImageColumn, LazyImage, TableImage
from clips.data.parquet_limits import iter_record_batches
from clips.data.remote_files import ShardCache, expand_brace_ranges, is_remote
from clips.errors import UserError, unknown_name_error
from clips.model.loading import library_errors_as_user_errors
from clips.text_files import read_json, read_json_lines

CONVERSATION_KEYS = ("messages", "conversations", "texts")
"""The column names that datasets use for a conversation."""
IMAGE_KEYS = ("images", "image")
"""The column names that datasets use for its images."""
EXPECTED_FORMAT = (
    "messages or conversations of from (human, gpt or system) and value, or of role (user, assistant or system) and "
    "content, which is text or a list of parts of type text or image; or texts of user and assistant"
)

_ROLES: dict[str, Any] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def text(value: Any) -> str:
    """``value``, checked to be a string. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {json.dumps(value, default=repr)}")
    return value


def parse_messages(messages: Any) -> list[Turn]:
    """The messages of a conversation: from and value (LLaVA's), role and content (transformers'), or pairs of user and
    assistant (FineVision's).

    Args:
        messages: a list of messages; or, as ``datasets`` stores sequences of objects, an object of lists.

    Raises:
        Exception: of any type, for none of them; the caller adds the location and `EXPECTED_FORMAT`.
    """
    if isinstance(messages, Mapping):
        messages = [dict(zip(messages, values, strict=True)) for values in zip(*messages.values(), strict=True)]
    if isinstance(messages, str):
        raise TypeError(f"expected a list of messages, got the string {messages[:40]!r}")
    return [turn for message in messages for turn in _turns(message)]


def _turns(message: Mapping[str, Any]) -> list[Turn]:
    if message.get("user") is not None:
        return [Turn("user", text(message["user"])), Turn("assistant", text(message["assistant"]))]
    role, content = ("from", "value") if message.get("from") is not None else ("role", "content")
    return [Turn(_ROLES[message[role]], _join_parts(message[content]))]


def _join_parts(parts: Any) -> str:
    """Content as text, as the chat template writes it at inference."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        return text(parts)
    pieces = []
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"a part of type {part['type']!r}")
        pieces.append(f"{IMAGE}\n" if part["type"] == "image" else text(part["text"]))
    return "".join(pieces)


def drop_before_first_user_turn(turns: list[Turn]) -> list[Turn]:
    """Drop messages before the user's first one, except system messages.

    LLaVA's training drops them too (``preprocess_v1`` in ``train.py``): ShareGPT's conversations are split into pieces,
    some of which begin with an answer.
    """
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return [turn for index, turn in enumerate(turns) if index >= first or turn.role == "system"]


def place_images(turns: list[Turn], count: int) -> list[Turn]:
    """Put ``count`` placeholders before the user's first message if the conversation has none."""
    if not count or any(IMAGE in turn.content for turn in turns):
        return turns
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns
    with_images = Turn("user", f"{IMAGE}\n" * count + turns[first].content)
    return [*turns[:first], with_images, *turns[first + 1 :]]


def place_image_first(turns: list[Turn]) -> list[Turn]:
    """Move the placeholder of a user message with one image to a line before the text.

    LLaVA's data have it before or after the text; its training (``preprocess_multimodal`` in ``train.py``) moves it.
    """
    return [_image_first(turn) if turn.role == "user" and turn.content.count(IMAGE) == 1 else turn for turn in turns]


def _image_first(turn: Turn) -> Turn:
    content = turn.content.replace(IMAGE, "").strip()
    return Turn(turn.role, f"{IMAGE}\n{content}" if content else IMAGE)


SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Prompt suffix for questions with a one-word answer, the same as in lmms-eval's tasks."""
_BATCH_ROWS = 256
_SUFFIXES = (".parquet", ".jsonl", ".json")
_HELD_OUT_ONE_IN = 5


def is_held_out(name: str) -> bool:
    """Whether the image with this file name belongs to COCO-QA's held-out fifth, which no training uses.

    Training and benchmark share this rule. It depends on the name alone: all questions about one image are in one
    split, and adding images moves none.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % _HELD_OUT_ONE_IN == 0


def is_llava(location: Location) -> bool:
    """``[{"conversations"}]``."""
    first = location.json[0] if isinstance(location.json, list) and location.json else None
    return isinstance(first, dict) and "conversations" in first


def read_llava(location: Location) -> Dataset[Conversation]:
    """LLaVA's JSON list: id, image (a reference, a list of them, or none), conversations (from, value)."""
    path, root = location.path, location.image_root()
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
                images = [FileImage(root, text(reference)) for reference in references]
            yield Conversation(f"{path.name} {row.get('id', number)}", images, turns)

    return Dataset(records=records())


def read_cocoqa(location: Location) -> Dataset[Conversation]:
    """Questions with one-word answers (COCO-QA), all questions about an image in one conversation."""
    path, root = location.file("questions.jsonl"), location.image_root("images")
    split = location.spec.split
    held_out = {"train": {False}, "held_out": {True}, "all": {False, True}}
    if split not in held_out:
        raise unknown_name_error(split, held_out, "split of cocoqa")
    conversations: dict[str, list[Turn]] = {}
    for _, row in read_json_lines(path, texts=("image", "question", "answer")):
        if is_held_out(row["image"]) in held_out[split]:
            turns = conversations.setdefault(row["image"], [])
            placeholder = "" if turns else f"{IMAGE}\n"
            turns.append(Turn("user", f"{placeholder}{row['question']}\n{SHORT_ANSWER}"))
            turns.append(Turn("assistant", row["answer"]))
    records = [Conversation(name, [FileImage(root, name)], turns) for name, turns in conversations.items()]
    return Dataset(records=records, split=split)


def read_rows(location: Location) -> Dataset[Conversation]:
    """Rows with messages, conversations or texts (`parse_messages`), and images or image: bytes, paths, or none.

    Raises:
        UserError: a file is missing, malformed or of an unknown format, or lacks the columns.
    """
    read = _read_saved if is_saved(location.path) else _read_files
    return Dataset(records=read(location), split=location.spec.split)


def _read_files(location: Location) -> Iterator[Conversation]:
    path = location.path
    for file in _files(location):
        root = location.image_root() if location.spec.image_root or path.is_dir() else file.parent
        if file.suffix == ".parquet":
            yield from _read_parquet(file, root, location.spec.max_cache_gb)
        elif file.suffix in _SUFFIXES:
            yield from _read_json(file, root)
        else:
            raise UserError(f"{file}: expected a file that ends in {', '.join(_SUFFIXES)}, or a directory of datasets")


def _files(location: Location) -> list[Path]:
    """The files of the path; in a directory those that ``datasets`` would read for the split."""
    path = location.path
    if not path.is_dir():
        return local_files(location.spec.path)
    with library_errors_as_user_errors(f"{path}: expected a directory of datasets, or of {', '.join(_SUFFIXES)} files"):
        splits = files_of_splits(str(path.resolve()))
    if location.spec.split not in splits:
        raise unknown_name_error(location.spec.split, splits, f"split of {path}")
    return [Path(file) for file in splits[location.spec.split]]


def local_files(path: str) -> list[Path]:
    """The files or the directory of a ``path`` with or without ``{000..127}``.

    Raises:
        UserError: one of them does not exist, or is not local.
    """
    if is_remote(path):
        raise UserError(f"{path}: expected local files; download them first")
    files = [Path(file) for file in expand_brace_ranges(path)]
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: no such file or directory")
    return files


def _read_json(file: Path, root: Path) -> Iterator[Conversation]:
    rows = (row for _, row in read_json_lines(file)) if file.suffix == ".jsonl" else read_json(file)
    if isinstance(rows, dict):
        raise UserError(f"{file}: expected a list of rows, got an object")
    for number, row in enumerate(rows):
        with library_errors_as_user_errors(f"{file} row {number}: expected an object whose images are paths"):
            text_column, image_column = _columns(dict(row), f"{file} row {number}")
            value = row.get(image_column)
            values = [] if value is None else value if isinstance(value, list) else [value]
            images = [FileImage(root, _path(each)) for each in values]
        yield _conversation(str(file), f"{file.name} row {number}", row[text_column], images)


def _read_parquet(file: Path, root: Path, cache_gb: float) -> Iterator[Conversation]:
    import pyarrow.parquet

    from clips.data.sources.parquet import ParquetRows

    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        reader = pyarrow.parquet.ParquetFile(file)
        names = reader.schema_arrow.names
    text_column, image_column = _columns(names, str(file))
    columns, images = [text_column], None
    if image_column in names:
        cache = ShardCache(cache_directory("rows"), cache_gb * 1e9)
        rows = ParquetRows([str(file.resolve())], cache).select_columns([image_column])
        images = ImageColumn(rows, image_column, str(file), root)
        leaves = [leaf.path for leaf in map(reader.schema.column, range(len(reader.schema)))]
        paths = [leaf for leaf in leaves if leaf.startswith(f"{image_column}.") and leaf.endswith(".path")]
        columns += paths or [image_column]  # paths are enough to count the images, without reading them
    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        batches = iter_record_batches(str(file), file, columns=columns, footer=reader.metadata)
        yield from _read_batches(batches, text_column, images, file.name, str(file))


def _read_saved(location: Location) -> Iterator[Conversation]:
    path, root = location.path, location.image_root()
    rows = open_rows(location.spec.path, None, location.spec.split).with_format(
        "arrow"
    )  # slices are views of the files
    text_column, image_column = _columns(rows.column_names, str(path))
    images = None
    if image_column in rows.column_names:
        images = ImageColumn(_PlainRows(rows.select_columns([image_column])), image_column, str(path), root)
    tables = (rows[start : start + _BATCH_ROWS] for start in range(0, len(rows), _BATCH_ROWS))
    batches = (batch for table in tables for batch in table.to_batches())
    yield from _read_batches(batches, text_column, images, path.name, str(path))


@dataclasses.dataclass(frozen=True)
class _PlainRows:
    """The rows of a dataset in Arrow's format as plain objects."""

    rows: Any

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index : index + 1].to_pylist()[0]
        return row


def _read_batches(
    batches: Iterable[Any], text_column: str, image_column: ImageColumn | None, name: str, where: str
) -> Iterator[Conversation]:
    """The rows of Arrow batches: image paths as files, all other images by their row."""
    row = 0
    for batch in batches:
        conversations = batch.column(text_column).to_pylist()
        paths = [[]] * len(conversations) if image_column is None else _row_paths(batch.column(image_column.name))
        for messages, row_paths in zip(conversations, paths, strict=True):
            images: list[LazyImage] = []
            for index, path in enumerate(row_paths):
                assert image_column is not None
                if path is None:
                    images.append(TableImage(image_column, row, index))
                else:
                    images.append(FileImage(image_column.root, path))
            yield _conversation(where, f"{name} row {row}", messages, images)
            row += 1


def _conversation(where: str, name: str, messages: Any, images: list[Any]) -> Conversation:
    with library_errors_as_user_errors(f"{where}: {name}: expected {EXPECTED_FORMAT}"):
        turns = parse_messages(messages)
    return Conversation(name, images, place_images(turns, len(images)))


def _row_paths(column: Any) -> list[list[str | None]]:
    """The path of each image of each row, None if the row contains the image; images are not read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return [[] for _ in range(len(column))]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return [
            [path] if valid else [] for valid, path in zip(column.is_valid().to_pylist(), _paths(column), strict=True)
        ]
    flat = iter(_paths(column.flatten()))
    return [[next(flat) for _ in range(length or 0)] for length in pc.list_value_length(column).to_pylist()]


def _paths(values: Any) -> list[str | None]:
    import pyarrow as pa

    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.to_pylist() if is_text else [None] * len(values)


def _columns(names: Collection[str], where: str) -> tuple[str, str]:
    """The columns of the text and of the images; the latter may be missing."""
    text_column = next((name for name in CONVERSATION_KEYS if name in names), None)
    if text_column is None:
        raise UserError(f"{where}: expected one of {', '.join(CONVERSATION_KEYS)}; found {', '.join(map(str, names))}")
    return text_column, next((name for name in IMAGE_KEYS if name in names), IMAGE_KEYS[0])


def _path(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        raise TypeError(f"expected a path, got {str(value)[:80]}")
    return path
