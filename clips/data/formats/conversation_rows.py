"""Conversations, or questions with answers, as rows of a directory of ``datasets``, parquet or JSON.

The text of JSON is memory-mapped (`conversation_table`), that of tables read eagerly. Images are read lazily: those
inside a table by row, from a directory of ``datasets`` by memory map, from parquet through cached copies of row groups.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.core.identity import cache_directory
from clips.data.formats.conversation_table import convert_or_read
from clips.data.formats.conversations import (
    CONVERSATION_KEYS,
    EXPECTED_FORMAT,
    SHORT_ANSWER,
    parse_messages,
    place_images,
    read_record,
    reject_video,
    text,
)
from clips.data.formats.dataset_format import Conversation, Dataset, Location, Turn
from clips.data.formats.rows import files_of_splits, is_saved, open_rows
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage, ImageColumn, LazyImage, TableImage
from clips.data.remote_files import ShardCache, expand_brace_ranges, is_remote
from clips.errors import UserError, unknown_name_error
from clips.model.loading import library_errors_as_user_errors
from clips.text_files import read_json_lines, read_json_list

IMAGE_KEYS = ("images", "image")
"""The column names that datasets use for the images of a row."""
ANSWER_KEYS = ("answer", "answers")
"""The column names that datasets use for the answer to a ``question``."""
_BATCH_ROWS = 256
_CACHE_BYTES = 100e9
"""More than the images of LLaVA's 665K samples; of a larger table the row groups that were read last stay."""
_SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLayout:
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
        """The columns of the text, and that of the images, which may be missing.

        Raises:
            UserError: a column of the text is missing.
        """
        chosen = []
        for keys in self.columns:
            if (column := next((name for name in keys if name in names), None)) is None:
                expected = ", ".join(keys) if len(keys) == 1 else f"one of {', '.join(keys)}"
                raise UserError(f"{where}expected {expected}; found {', '.join(map(str, names))}")
            chosen.append(column)
        return chosen, next((name for name in IMAGE_KEYS if name in names), IMAGE_KEYS[0])


def parse_question(question: Any, answers: Any) -> list[Turn]:
    """A question and its answer, or the most frequent of several people's answers (VQAv2's, objects of "answer")."""
    if isinstance(answers, Mapping):  # of lists, as ``datasets`` stores sequences of objects
        answers = answers["answer"]
    several = [answers] if isinstance(answers, str) else answers
    texts = [text(each["answer"] if isinstance(each, Mapping) else each).strip() for each in several]
    answer = max(texts, key=texts.count)
    return [Turn("user", f"{text(question).strip()}\n{SHORT_ANSWER}"), Turn("assistant", answer)]


_CONVERSATIONS = RowLayout(
    name="conversations", columns=[CONVERSATION_KEYS], turns=parse_messages, expected=EXPECTED_FORMAT
)
_QUESTIONS = RowLayout(
    name="vqa",
    columns=[("question",), ANSWER_KEYS],
    turns=parse_question,
    expected="a question, and an answer or answers, which are text",
)


def read_rows(location: Location) -> Dataset[Conversation]:
    """Rows with messages, conversations or texts (`parse_messages`), and images or image: bytes, paths, or none.

    Raises:
        UserError: a file is missing, malformed or of an unknown format, or lacks the columns.
    """
    return _read_table(location, _CONVERSATIONS)


def read_questions(location: Location) -> Dataset[Conversation]:
    """Rows with a question and an answer, or answers; the prompt ends as lmms-eval's for short answers.

    Images are as those of `read_rows`.

    Raises:
        UserError: a file is missing, malformed or of an unknown format, or lacks the columns.
    """
    return _read_table(location, _QUESTIONS)


def _read_table(location: Location, layout: RowLayout) -> Dataset[Conversation]:
    split = location.spec.split
    if is_saved(location.path):
        return Dataset(records=_read_saved(location, layout), split=split)
    files = _files(location)
    parts = (_read_file(location, file, layout) for file in files)
    return Dataset(records=next(parts) if len(files) == 1 else itertools.chain.from_iterable(parts), split=split)


def _read_file(location: Location, file: Path, layout: RowLayout) -> Iterable[Conversation]:
    root = location.image_root() if location.spec.image_root or location.path.is_dir() else file.parent
    if file.suffix == ".parquet":
        return _read_parquet(file, root, layout)
    if file.suffix not in _SUFFIXES:
        raise UserError(f"{file}: expected a file that ends in {', '.join(_SUFFIXES)}, or a directory of datasets")

    def read(prefix: str, root: Path) -> Iterator[Conversation]:
        rows = (row for _, row in read_json_lines(file)) if file.suffix == ".jsonl" else read_json_list(file)
        for number, row in enumerate(rows):
            name, expected = f"{prefix}row {number}", f"expected {layout.expected}"
            yield read_record(name, expected, _parse_row, row, root, layout)

    return convert_or_read(file, layout.name, root, read)


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


def _parse_row(row: Mapping[str, Any], root: Path, layout: RowLayout) -> tuple[list[LazyImage], list[Turn]]:
    with library_errors_as_user_errors("expected an object whose images are paths"):
        columns, image_column = layout.choose(dict(row))
        reject_video(row)
        value = row.get(image_column)
        values = [] if value is None else value if isinstance(value, list) else [value]
        images: list[LazyImage] = [FileImage(root, _path(each)) for each in values if each not in (None, "")]
    return _parse_cells(layout, [row[column] for column in columns], images)


def _parse_cells(
    layout: RowLayout, values: Sequence[Any], images: list[LazyImage]
) -> tuple[list[LazyImage], list[Turn]]:
    for value in values:
        if isinstance(value, InvalidSampleError):
            raise value
    return images, place_images(layout.turns(*values), len(images))


def _read_parquet(file: Path, root: Path, layout: RowLayout) -> Iterator[Conversation]:
    import pyarrow.parquet

    from clips.data.parquet_rows import ParquetRows

    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        reader = pyarrow.parquet.ParquetFile(file)
        names = reader.schema_arrow.names
    columns, image_column = layout.choose(names, f"{file}: ")
    read, images = [*columns], None
    if image_column in names:
        cache = ShardCache(cache_directory("rows"), _CACHE_BYTES)
        rows = ParquetRows([str(file.resolve())], cache).select_columns([image_column])
        images = ImageColumn(rows, image_column, str(file), root)
        leaves = [leaf.path for leaf in map(reader.schema.column, range(len(reader.schema)))]
        paths = [leaf for leaf in leaves if leaf.startswith(f"{image_column}.") and leaf.endswith(".path")]
        read += paths or [image_column]  # paths are enough to count the images, without reading them
    with library_errors_as_user_errors(f"{file}: cannot be read as parquet"):
        batches = reader.iter_batches(_BATCH_ROWS, columns=read)
        yield from _read_batches(batches, layout, columns, images, file.name)


def _read_saved(location: Location, layout: RowLayout) -> Iterator[Conversation]:
    path, root = location.path, location.image_root()
    rows = open_rows(location.spec.path, None, location.spec.split)
    rows = rows.with_format("arrow")  # slices are views of the files
    columns, image_column = layout.choose(rows.column_names, f"{path}: ")
    images = None
    if image_column in rows.column_names:
        images = ImageColumn(_PlainRows(rows.select_columns([image_column])), image_column, str(path), root)
    tables = (rows[start : start + _BATCH_ROWS] for start in range(0, len(rows), _BATCH_ROWS))
    batches = (batch for table in tables for batch in table.to_batches())
    yield from _read_batches(batches, layout, columns, images, path.name)


@dataclasses.dataclass(frozen=True)
class _PlainRows:
    """The rows of a dataset in Arrow's format as plain objects."""

    rows: Any

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index : index + 1].to_pylist()[0]
        return row


def _read_batches(
    batches: Iterable[Any],
    layout: RowLayout,
    columns: Sequence[str],
    image_column: ImageColumn | None,
    name: str,
) -> Iterator[Conversation]:
    """The rows of Arrow batches: image paths as files, all other images by their row."""
    row = 0
    for batch in batches:
        texts = [_cells(batch.column(column), column) for column in columns]
        paths = (
            [[]] * len(batch)
            if image_column is None
            else _row_paths(batch.column(image_column.name), image_column.name)
        )
        for *values, row_paths in zip(*texts, paths, strict=True):
            images: list[LazyImage] = []
            for index, path in enumerate(row_paths):
                assert image_column is not None
                if path is None:
                    images.append(TableImage(image_column, row, index))
                elif isinstance(path, InvalidSampleError):
                    values.append(path)
                else:
                    images.append(FileImage(image_column.root, path))
            yield read_record(f"{name} row {row}", f"expected {layout.expected}", _parse_cells, layout, values, images)
            row += 1


def _cells(column: Any, name: str) -> list[Any]:
    """The values of a column; an InvalidSampleError for text that is not UTF-8, which parquet writers do not check."""
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        found = [_cell(value, name) for value in column]
    return found


def _cell(value: Any, name: str) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return InvalidSampleError(f"{name}: expected UTF-8 text ({error.reason})")


def _row_paths(column: Any, name: str) -> list[list[Any]]:
    """The path of each image of each row as in `_cells`, None if the row contains the image; images are not read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return [[] for _ in range(len(column))]
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return [
            [path] if valid else []
            for valid, path in zip(column.is_valid().to_pylist(), _paths(column, name), strict=True)
        ]
    flat = iter(_paths(column.flatten(), name))
    return [[next(flat) for _ in range(length or 0)] for length in pc.list_value_length(column).to_pylist()]


def _paths(values: Any, name: str) -> list[Any]:
    import pyarrow as pa

    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return _cells(values, name) if is_text else [None] * len(values)


def _path(value: Any) -> str:
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        raise TypeError(f"expected a path, got {str(value)[:80]}")
    return path
