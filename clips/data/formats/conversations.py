"""Conversations about images: LLaVA's JSON, COCO-QA, and rows of messages or questions (``datasets``, parquet, JSON).

The text of JSON is memory-mapped (`conversation_table`), that of tables read eagerly. Images are read lazily: those
inside a table by row, from a directory of ``datasets`` by memory map, from parquet through cached copies of row groups.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from clips.core.identity import cache_directory
from clips.data.formats.conversation_table import convert_or_read
from clips.data.formats.dataset_format import IMAGE, SPLIT, Conversation, Dataset, Location, Turn, register
from clips.data.formats.rows import files_of_splits, is_saved, open_rows
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage, ImageColumn, LazyImage, TableImage
from clips.data.parquet_rows import ParquetRows
from clips.data.remote_files import ShardCache, local_files
from clips.errors import UserError, unknown_name_error
from clips.model.loading import library_errors_as_user_errors
from clips.text_files import read_json_lines, read_json_list

CONVERSATION_KEYS = ("messages", "conversations", "texts")
"""The column names that datasets use for a conversation."""
EXPECTED_FORMAT = (
    "messages or conversations of from (human, gpt or system) and value, or of role (user, assistant or system) and "
    "content, which is text or a list of parts of type text or image; or texts of user and assistant"
)
_IMAGE_KEYS = ("images", "image")
_EXCLUDING_KEYS = ("loss", "train", "weight")
"""Of a message or a row: false or 0 excludes it from training, in the formats of several trainers."""
ROW_KEYS = ("system", *_EXCLUDING_KEYS)
"""Of a row, next to its conversation and images."""
_MESSAGE_KEYS = {"from", "value", "role", "content", "user", "assistant", *_EXCLUDING_KEYS}
_SHORT_ANSWER = "Answer the question using a single word or phrase."  # the same as in lmms-eval's tasks
_ROLES: dict[str, Any] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_SUFFIXES = (".parquet", ".jsonl", ".json")
_JSON_LINES = "format conversations reads JSON lines"
_SOURCES = "LLaVA-NeXT's YAML lists sources: state each json_path in it as a source of its own"
_OTHER_FILES = {".jsonl": _JSON_LINES, ".jsonlines": _JSON_LINES, ".yaml": _SOURCES, ".yml": _SOURCES}
_BATCH_ROWS = 256
_NO_IMAGE = object()

Parts = ParamSpec("Parts")


def read_record(
    name: str,
    expected: str,
    parse: Callable[Parts, tuple[Sequence[LazyImage], Sequence[Turn], Sequence[str]]],
    *arguments: Parts.args,
    **options: Parts.kwargs,
) -> Conversation:
    """The conversation of the images, turns and unread keys that ``parse`` returns; if it raises, one with a fault,
    see ``expected``.
    """
    try:
        with library_errors_as_user_errors(expected):
            images, turns, unread = parse(*arguments, **options)
            return Conversation(name, images, turns, unread=unread)
    except UserError as error:
        return Conversation(name, [], [], str(error))


def _text(value: Any) -> str:
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
    turns = []
    for message in messages:
        trained = _is_trained(message)
        if message.get("user") is not None:
            answer = Turn("assistant", _text(message["assistant"]), trained is not False)
            turns += [Turn("user", _text(message["user"])), answer]
            continue
        role, content = ("from", "value") if message.get("from") is not None else ("role", "content")
        if message[role] not in _ROLES:
            raise ValueError(f"a message of the role {message[role]!r}")
        said = message[content]
        turn = Turn(_ROLES[message[role]], said if isinstance(said, str) else _join_parts(said))
        if trained and turn.role != "assistant":
            raise ValueError(f"a message of the role {message[role]!r} to be trained; only answers are")
        turns.append(turn._replace(trained=trained is not False))
    return turns


def _is_trained(message: Mapping[str, Any]) -> bool | None:
    """Whether a message is to be trained; None if it does not say so."""
    stated = {key: message[key] for key in _EXCLUDING_KEYS if message.get(key) is not None}
    for key, value in stated.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{key}: expected true, false, 1 or 0, got {json.dumps(value, default=repr)}")
    if len({bool(value) for value in stated.values()}) == 2:
        raise ValueError(f"{' and '.join(stated)} contradict each other")
    return bool(next(iter(stated.values()))) if stated else None


def apply_row_settings(row: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turns of a row with its own system message.

    Raises:
        ValueError: it is another one than that of the conversation, or the row is not to be trained.
    """
    for key in _EXCLUDING_KEYS:
        if row.get(key) == 0:  # or False
            raise ValueError(f"{key}: the row is not to be trained")
    if row.get("system") in (None, ""):
        return turns
    said = Turn("system", _text(row["system"]))
    own = [turn.content for turn in turns if turn.role == "system"]
    if own and own != [said.content]:
        raise ValueError("system: the conversation has another system message")
    return turns if own else [said, *turns]


def unread_keys(row: Mapping[str, Any], read: Collection[str], messages: Any = ()) -> list[str]:
    """The keys of a row and of its ``messages`` that have a value but are not in ``read``, or no reader knows."""
    keys = [
        str(key)
        for key, value in row.items()
        if _says_something(value) and (key not in read or (key in _EXCLUDING_KEYS and value not in (0, 1)))
    ]
    if isinstance(messages, Mapping):
        messages = [messages]
    unread = {key: None for message in messages for key, value in message.items() if _says_something(value)}
    return keys + [f"messages.{key}" for key in unread if key not in _MESSAGE_KEYS]


def _says_something(value: Any) -> bool:
    return value is not None and (isinstance(value, bool | int | float) or bool(value))


def image_references(row: Mapping[str, Any]) -> list[Any]:
    """The values of a row's images. ValueError: it names them twice, and differently."""
    stated = []
    for key in _IMAGE_KEYS:
        values = row.get(key)
        values = [each for each in (values if isinstance(values, list) else [values]) if each not in (None, "")]
        stated += [values] if values else []
    if len(stated) == 2 and stated[0] != stated[1]:
        raise ValueError("image and images name different images; expected one of them")
    return stated[0] if stated else []


def _join_parts(parts: Any) -> str:
    """Content as text, as the chat template writes it at inference."""
    if not isinstance(parts, Sequence):
        return _text(parts)
    pieces = []
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"a part of type {part['type']!r}")
        pieces.append(f"{IMAGE}\n" if part["type"] == "image" else _text(part["text"]))
    return "".join(pieces)


def reject_video(row: Mapping[str, Any]) -> None:
    """Raise UserError for a row with a video, whose frames no reader reads."""
    if key := next((key for key in ("video", "videos") if row.get(key)), None):
        raise UserError(f"{key}: expected images, got a video")


def _first_user_turn(turns: Sequence[Turn]) -> int:
    return next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))


def place_images(turns: list[Turn], count: int) -> list[Turn]:
    """Put ``count`` placeholders before the user's first message if the conversation has none."""
    first = _first_user_turn(turns)
    if not count or first == len(turns) or any(IMAGE in turn.content for turn in turns):
        return turns
    with_images = Turn("user", f"{IMAGE}\n" * count + turns[first].content)
    return [*turns[:first], with_images, *turns[first + 1 :]]


def is_llava(location: Location) -> bool:
    """``[{"conversations"}]``."""
    first = location.json[0] if isinstance(location.json, list) and location.json else None
    return isinstance(first, dict) and "conversations" in first


@register("llava", "conversations", fits=is_llava)
def read_llava(location: Location) -> Dataset[Conversation]:
    """LLaVA's JSON list: id, image or images (a reference, a list of them, or none), conversations (from, value)."""
    path, root = location.path, location.image_root()
    if path.suffix.lower() in _OTHER_FILES:
        raise UserError(f"{path}: expected LLaVA's JSON list; {_OTHER_FILES[path.suffix.lower()]}")
    expected = "expected conversations with from (human, gpt or system) and value, and image as a reference or a list"

    def parse(row: Mapping[str, Any], root: Path) -> tuple[list[LazyImage], list[Turn], list[str]]:
        reject_video(row)
        if "conversations" not in row:
            raise UserError(f"expected conversations, found {', '.join(row)}; format conversations also reads messages")
        images: list[LazyImage] = [FileImage(root, _text(each)) for each in image_references(row)]
        turns = apply_row_settings(row, parse_messages(row["conversations"]))
        # ShareGPT's conversations are split into pieces, some of which begin with an answer. LLaVA's training drops
        # what is before the user's first message (``preprocess_v1`` in ``train.py``), except system messages.
        first = _first_user_turn(turns)
        turns = [turn for turn in turns[:first] if turn.role == "system"] + turns[first:]
        # LLaVA's data have the placeholder of a message with one image before or after the text; its training moves it
        # to a line before the text (``preprocess_multimodal``).
        for index, turn in enumerate(turns):
            if turn.role == "user" and turn.content.count(IMAGE) == 1:
                content = turn.content.replace(IMAGE, "").strip()
                turns[index] = Turn(turn.role, f"{IMAGE}\n{content}" if content else IMAGE)
        read = {"id", "conversations", *_IMAGE_KEYS, *ROW_KEYS}
        return images, turns, unread_keys(row, read, row["conversations"])

    def read(prefix: str, root: Path) -> Iterator[Conversation]:
        try:
            for number, row in enumerate(read_json_list(path)):
                name = f"{prefix}{row.get('id', number) if isinstance(row, dict) else number}"
                yield read_record(name, expected, parse, row, root)
        except UserError as error:
            hint = f"; {_JSON_LINES} from a file that ends in .jsonl" if "Extra data" in str(error) else ""
            raise UserError(f"{error}{hint}") from None

    return Dataset(records=convert_or_read(path, "llava", root, read))


def is_held_out(name: str) -> bool:
    """Whether the image with this file name belongs to COCO-QA's held-out fifth, which no training uses.

    Training and benchmark share this rule. It depends on the name alone: all questions about one image are in one
    split, and adding images moves none.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 5 == 0


@register("cocoqa", "conversations", takes=SPLIT)  # its JSON lines of image, question, answer
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
            turns.append(Turn("user", f"{placeholder}{row['question']}\n{_SHORT_ANSWER}"))
            turns.append(Turn("assistant", row["answer"]))
    records = [Conversation(name, [FileImage(root, name)], turns) for name, turns in conversations.items()]
    return Dataset(records=records, split=split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """How the rows of a table state a conversation.

    Args:
        name: the format.
        columns: those of the text, each by the names that it may have.
        turns: the messages of a row, from the values of these columns.
        expected: these values, for messages about other ones.
    """

    name: str
    columns: Sequence[Sequence[str]]
    turns: Callable[..., list[Turn]]
    expected: str

    def choose(self, names: Collection[str], where: str = "") -> tuple[list[str], str]:
        """The columns of the text, and that of the images, which may be missing."""
        chosen = []
        for keys in self.columns:
            if (column := next((name for name in keys if name in names), None)) is None:
                expected = ", ".join(keys) if len(keys) == 1 else f"one of {', '.join(keys)}"
                raise UserError(f"{where}expected {expected}; found {', '.join(map(str, names))}")
            chosen.append(column)
        images = [name for name in _IMAGE_KEYS if name in names]
        if where and len(images) > 1:  # of a table; a row alone may have both keys, one of them empty
            raise UserError(f"{where}expected one column of images, found {' and '.join(images)}")
        return chosen, (images or _IMAGE_KEYS)[0]

    def parse(
        self, row: Mapping[str, Any], columns: Sequence[str], images: list[LazyImage]
    ) -> tuple[list[LazyImage], list[Turn], list[str]]:
        """Images, turns and unread keys of a row, whose text is in ``columns``."""
        for value in row.values():
            if isinstance(value, InvalidSampleError):
                raise value
        values = [row[column] for column in columns]
        turns = apply_row_settings(row, place_images(self.turns(*values), len(images)))
        messages = values[0] if self.columns == [CONVERSATION_KEYS] else ()
        return images, turns, unread_keys(row, {"id", *columns, *_IMAGE_KEYS, *ROW_KEYS}, messages)


@register("conversations", "conversations", takes=SPLIT)
def read_rows(location: Location) -> Dataset[Conversation]:
    """Rows with messages, conversations or texts (`parse_messages`), and images or image: bytes, paths, or none.

    Raises:
        UserError: a file is missing, malformed or of an unknown format, or lacks the columns.
    """
    layout = _Layout(name="conversations", columns=[CONVERSATION_KEYS], turns=parse_messages, expected=EXPECTED_FORMAT)
    return _read_table(location, layout)


@register("vqa", "conversations", takes=SPLIT)
def read_questions(location: Location) -> Dataset[Conversation]:
    """Rows with a question and an answer, or answers; the prompt ends as lmms-eval's for short answers.

    Images and errors are as those of `read_rows`.
    """

    def turns(question: Any, answers: Any) -> list[Turn]:
        if isinstance(answers, Mapping):  # of lists, as ``datasets`` stores sequences of objects
            answers = answers["answer"]
        several = [answers] if isinstance(answers, str) else answers  # VQAv2's are objects of "answer"
        texts = [_text(each["answer"] if isinstance(each, Mapping) else each).strip() for each in several]
        most_frequent = max(texts, key=texts.count)
        return [Turn("user", f"{_text(question).strip()}\n{_SHORT_ANSWER}"), Turn("assistant", most_frequent)]

    expected = "a question, and an answer or answers, which are text"
    columns = [("question",), ("answer", "answers")]
    return _read_table(location, _Layout(name="vqa", columns=columns, turns=turns, expected=expected))


def _read_table(location: Location, layout: _Layout) -> Dataset[Conversation]:
    path, split = location.path, location.spec.split
    if is_saved(path):
        return Dataset(records=_read_saved(location, layout), split=split)
    if path.is_dir():  # the files that ``datasets`` would read for the split
        expected = f"{path}: expected a directory of datasets, or of {', '.join(_SUFFIXES)} files"
        with library_errors_as_user_errors(expected):
            splits = files_of_splits(str(path.resolve()))
        if split not in splits:
            raise unknown_name_error(split, splits, f"split of {path}")
        files = [Path(file) for file in splits[split]]
    else:
        files = local_files(location.spec.path)
    parts = (_read_file(location, file, layout) for file in files)
    return Dataset(records=next(parts) if len(files) == 1 else itertools.chain.from_iterable(parts), split=split)


def _read_file(location: Location, file: Path, layout: _Layout) -> Iterable[Conversation]:
    root = location.image_root() if location.spec.image_root or location.path.is_dir() else file.parent
    if file.suffix == ".parquet":
        return _read_parquet(file, root, layout)
    if file.suffix not in _SUFFIXES:
        raise UserError(f"{file}: expected a file that ends in {', '.join(_SUFFIXES)}, or a directory of datasets")

    def parse(row: Mapping[str, Any], root: Path) -> tuple[list[LazyImage], list[Turn], list[str]]:
        images: list[LazyImage] = []
        with library_errors_as_user_errors("expected an object whose images are paths"):
            columns, _ = layout.choose(dict(row))
            reject_video(row)
            for each in image_references(row):
                path = each.get("path") if isinstance(each, dict) else each
                if not isinstance(path, str):
                    raise TypeError(f"expected a path, got {str(each)[:80]}")
                images.append(FileImage(root, path))
        return layout.parse(row, columns, images)

    def read(prefix: str, root: Path) -> Iterator[Conversation]:
        rows = (row for _, row in read_json_lines(file)) if file.suffix == ".jsonl" else read_json_list(file)
        for number, row in enumerate(rows):
            yield read_record(f"{prefix}row {number}", f"expected {layout.expected}", parse, row, root)

    return convert_or_read(file, layout.name, root, read)


def _read_parquet(file: Path, root: Path, layout: _Layout) -> Iterator[Conversation]:
    import pyarrow.parquet

    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        reader = pyarrow.parquet.ParquetFile(file)
        names = reader.schema_arrow.names
    columns, image_column = layout.choose(names, f"{file}: ")
    read, images = [*columns, *(name for name in ROW_KEYS if name in names)], None
    unread = [name for name in names if name not in {"id", *_IMAGE_KEYS, *read}]
    if image_column in names:
        # more than the images of LLaVA's 665K samples; of a larger table the row groups that were read last stay
        cache = ShardCache(cache_directory("rows"), 100e9)
        rows = ParquetRows([str(file.resolve())], cache).select_columns([image_column])
        images = ImageColumn(rows, image_column, str(file), root)
        leaves = [leaf.path for leaf in map(reader.schema.column, range(len(reader.schema)))]
        paths = [leaf for leaf in leaves if leaf.startswith(f"{image_column}.") and leaf.endswith(".path")]
        read += paths or [image_column]  # paths are enough to count the images, without reading them
    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        batches = reader.iter_batches(_BATCH_ROWS, columns=read)
        yield from _read_batches(batches, layout, columns, images, file.name, unread)


def _read_saved(location: Location, layout: _Layout) -> Iterator[Conversation]:
    path, root = location.path, location.image_root()
    plain = open_rows(location.spec.path, None, location.spec.split)
    columns, image_column = layout.choose(plain.column_names, f"{path}: ")
    rows = plain.with_format("arrow")  # slices are views of the files; a format that was saved would show in `plain`
    images = None
    if image_column in rows.column_names:
        images = ImageColumn(_PlainRows(rows.select_columns([image_column])), image_column, str(path), root)
    tables = (rows[start : start + _BATCH_ROWS] for start in range(0, len(rows), _BATCH_ROWS))
    batches = (batch for table in tables for batch in table.to_batches())
    unread = [name for name in rows.column_names if name not in {"id", *columns, *_IMAGE_KEYS, *ROW_KEYS}]
    yield from _read_batches(batches, layout, columns, images, path.name, unread)


class _PlainRows:
    """The rows of a dataset in Arrow's format as plain objects."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index : index + 1].to_pylist()[0]
        return row


def _read_batches(
    batches: Iterable[Any],
    layout: _Layout,
    columns: Sequence[str],
    image_column: ImageColumn | None,
    name: str,
    unread: Sequence[str],
) -> Iterator[Conversation]:
    """The rows of Arrow batches: image paths as files, all other images by their row; of ``unread`` no column."""

    def parse(row: Mapping[str, Any], images: list[LazyImage]) -> tuple[list[LazyImage], list[Turn], list[str]]:
        shown, turns, keys = layout.parse(row, columns, images)
        return shown, turns, [*unread, *keys]

    row = 0
    for batch in batches:
        read = [*columns, *(key for key in ROW_KEYS if key in batch.schema.names)]
        texts = [_cells(batch.column(column), column) for column in read]
        paths = [[]] * len(batch) if image_column is None else _row_paths(batch, image_column.name)
        for *values, row_paths in zip(*texts, paths, strict=True):
            images: list[LazyImage] = []
            cells = dict(zip(read, values, strict=True))
            for index, path in enumerate(row_paths):
                assert image_column is not None
                if path is _NO_IMAGE:
                    continue
                if path is None:
                    images.append(TableImage(image_column, row, index))
                elif isinstance(path, InvalidSampleError):
                    cells[image_column.name] = path
                else:
                    images.append(FileImage(image_column.root, path))
            yield read_record(f"{name} row {row}", f"expected {layout.expected}", parse, cells, images)
            row += 1


def _row_paths(batch: Any, name: str) -> list[list[Any]]:
    """The path of each image of each row as in `_cells`, None if the row contains the image; images are not read.

    An empty path, or a null in a list, is no image, as in JSON.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    def paths(values: Any) -> list[Any]:
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        found = _cells(values, name) if is_text else [None] * len(values)
        return [
            path if valid and path != "" else _NO_IMAGE
            for valid, path in zip(values.is_valid().to_pylist(), found, strict=True)
        ]

    column = batch.column(name)
    if pa.types.is_null(column.type):
        return [[] for _ in range(len(column))]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return [[path] for path in paths(column)]
    flat = iter(paths(column.flatten()))
    return [[next(flat) for _ in range(length or 0)] for length in pc.list_value_length(column).to_pylist()]


def _cells(column: Any, name: str) -> list[Any]:
    """The values of a column; an InvalidSampleError for text that is not UTF-8, which parquet writers do not check."""
    try:
        cells: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        cells = []
        for value in column:
            try:
                cells.append(value.as_py())
            except UnicodeDecodeError as error:
                cells.append(InvalidSampleError(f"{name}: expected UTF-8 text ({error.reason})"))
    return cells
