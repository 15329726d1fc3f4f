"""Tables with one image per row, in files or Hugging Face datasets: for training, and their captions for benchmarks."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clips.data.formats.dataset_format import ALL, Captioned, Dataset, DatasetSpec, Location, strict_captions
from clips.data.formats.rows import (
    SPLIT_COLUMN,
    check_column,
    files_of_splits,
    is_saved,
    one_line_errors,
    rows_of_split,
    table_files,
    table_rows_of_split,
    utf8_rows,
)
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage, ImageColumn, LazyImage, TableImage, image_bytes
from clips.data.parquet_rows import ParquetRows
from clips.data.remote_files import ShardCache, is_remote
from clips.data.sources import Record, Sample, Source, SourceConfig, choose_captions
from clips.errors import UserError, unknown_name_error

_IMAGE_COLUMNS = ("image", "jpg", "png", "image_path", "file_name", "filename", "path", "url", "image_url")
_CAPTION_COLUMNS = ("captions", "caption", "sentences", "texts", "text", "raw")
_NUMBERED_COLUMN = re.compile(r"captions?_?\d+")
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*['"].*\]\s*""", re.DOTALL)
_BLOCK_ROWS = 10_000


class DatasetsSource(Source):
    """A dataset of the Hugging Face Hub, or a directory in the Hub's structure or of ``save_to_disk``.

    ``datasets`` reads it; with ``streaming`` its parquet files are read directly.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        with one_line_errors(config.path):
            self.rows = self.read_rows()
        names = self.rows.column_names
        self.image_column = find_image_column(config.image_column, names, config.path)
        check_column(config.web_caption, names, "web_caption", config.path)
        for column in config.synthetics:
            check_column(column, names, "synthetic_caption", config.path)
        self.full_rows = self.rows
        columns = dict.fromkeys([self.image_column, config.web_caption, *config.synthetics])
        self.rows = self.full_rows.select_columns(list(columns))
        self.image_root = config.image_root or self.default_image_root()
        if isinstance(self.rows, ParquetRows):
            self.blocks, self.copies = self.rows.blocks, self.rows.cache
            self.is_remote = any(map(is_remote, self.rows.files))
        else:  # neighboring rows, which are shuffled like shards
            full, remainder = divmod(len(self.rows), _BLOCK_ROWS)
            self.blocks = [_BLOCK_ROWS] * full + [remainder] * bool(remainder)

    def read_rows(self) -> Any:
        """The rows, as a ``datasets.Dataset`` or `ParquetRows`."""
        if not self.config.streaming or is_saved(self.config.path):
            return rows_of_split(self.location())[0]
        files = files_of_splits(self.config.path, self.config.subset)
        if self.config.split not in files:
            raise unknown_name_error(self.config.split, files, f"split of {self.config.path}")
        return self.stream_rows(files[self.config.split])

    def stream_rows(self, files: Sequence[str]) -> ParquetRows:
        """Rows of parquet files without a full copy."""
        if other := next((file for file in files if not file.lower().endswith(".parquet")), None):
            raise UserError(f"{self.config.path}: a data source with 'streaming' expects .parquet files, found {other}")
        rows = ParquetRows(files, ShardCache(Path(self.config.cache_dir).expanduser(), self.config.max_cache_gb * 1e9))
        if SPLIT_COLUMN in rows.column_names and self.config.split != ALL:
            raise UserError(
                f"{self.config.path}: a data source with 'streaming' reads every row, but the column '{SPLIT_COLUMN}' "
                f"divides them; expected 'split: {ALL}', or no streaming"
            )
        return rows

    def location(self) -> Location:
        """The dataset, for the readers of benchmarks."""
        config = self.config
        return Location(DatasetSpec(path=config.path, format=config.format, split=config.split, subset=config.subset))

    def default_image_root(self) -> str:
        """The directory that paths of images are relative to."""
        return self.config.path

    def fetch(self, block: int) -> Path:
        """See `Source`."""
        path: Path = self.rows.fetch(block)
        return path

    def name(self, index: int) -> str:
        """See `Source`."""
        return f"{self.config.path} row {index}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        row = self._row(self.rows, index)
        web, synthetic = choose_captions(self.config, lambda name: parse_caption_cell(row[name]), rng)
        return Sample(image_bytes(row[self.image_column], self.image_root), web, synthetic)

    @staticmethod
    def _row(rows: Any, index: int) -> dict[str, Any]:
        try:
            row: dict[str, Any] = rows[index]
        except UnicodeDecodeError as error:  # parquet writers do not check text
            raise InvalidSampleError(f"not UTF-8 text ({error.reason})") from None
        return row

    def record(self, index: int) -> Record:
        """See `Source`."""
        row = self._row(self.full_rows, index)
        image = row.pop(self.image_column)
        reference = image.get("path") if isinstance(image, dict) else image
        if isinstance(reference, str):
            row[self.image_column] = reference
        fields = {name: value for name, value in row.items() if not isinstance(value, bytes | bytearray)}
        return Record(f"{index:09d}", fields, reference=reference if isinstance(reference, str) else None)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        return {
            "path": self.config.path,
            "split": self.config.split,
            "samples": len(self),
            "hash": self.rows.fingerprint if isinstance(self.rows, ParquetRows) else self.rows._fingerprint,
        }


class TableSource(DatasetsSource):
    """CSV, TSV, JSON lines or parquet files.

    Recap-DataComp-1B has columns url, org_caption, re_caption; CapsFusion-120M has image_url, laion_2b (the web
    caption), laion_coco (a synthetic caption) and capsfusion (an LLM's fusion of both). Image URLs are downloaded
    sample by sample, which suffices for an inspection; for training, download the images first (img2dataset writes
    webdataset shards with all columns in the JSON).
    """

    def __init__(self, config: SourceConfig) -> None:
        self.files = table_files(config.path)  # before datasets is imported, which takes seconds
        super().__init__(config)

    def read_rows(self) -> Any:
        """See `DatasetsSource`."""
        if self.config.streaming:
            return self.stream_rows(self.files)
        return table_rows_of_split(self.location())[0]

    def default_image_root(self) -> str:
        """See `DatasetsSource`."""
        path = Path(self.config.path)
        return str(path if path.is_dir() else path.parent)


def read_table(location: Location) -> Dataset[Captioned]:
    """Each row has an image or its name; its captions are in one column, or in several, some of which may be empty.

    Raises:
        UserError: no such columns, a row without a caption, or an unreadable file.
    """
    rows, split = table_rows_of_split(location)
    return Dataset(records=_records(location, rows, location.image_root("images")), split=split)


def read_datasets(location: Location) -> Dataset[Captioned]:
    """As `read_table`, for the rows of `open_rows`."""
    rows, split = rows_of_split(location)
    root = location.image_root() if location.spec.image_root else location.path
    return Dataset(records=_records(location, rows, root), split=split)


def _records(location: Location, rows: Any, root: Path) -> Iterator[Captioned]:
    path = location.spec.path
    image_column = find_image_column(location.spec.image_column, rows.column_names, path)
    columns = _caption_columns(location, rows.column_names)
    images = ImageColumn(rows.select_columns([image_column]), image_column, path, root)
    are_names = getattr(rows.features[image_column], "dtype", "") in {"string", "large_string"}
    for number, row in enumerate(utf8_rows(path, rows.select_columns([*columns, *([image_column] * are_names)]))):
        image = _named_image(images, number, row[image_column]) if are_names else TableImage(images, number)
        where = f"{path} row {number}: {', '.join(columns)}"
        try:
            cells = [parse_caption_cell(row[name]) for name in columns]
        except InvalidSampleError as error:
            raise UserError(f"{where}: {error}") from None
        yield Captioned([image], strict_captions(cells, where))


def _caption_columns(location: Location, columns: Sequence[str]) -> list[str]:
    """The requested columns, else those with usual names of caption columns. Raises UserError if there are none."""
    spec = location.spec
    for name in spec.caption_columns:
        check_column(name, columns, "caption_columns", spec.path)
    if spec.caption_columns:
        return list(spec.caption_columns)
    numbered = [name for name in columns if _NUMBERED_COLUMN.fullmatch(name)]
    known = next(([name] for name in _CAPTION_COLUMNS if name in columns), numbered)
    if not known:
        raise UserError(f"caption_columns: expected columns of captions in {spec.path} (it has: {', '.join(columns)})")
    return known


def find_image_column(given: str | None, columns: Sequence[str], path: str) -> str:
    """The ``image_column`` of a config, by default the first column with a usual name. Raises UserError."""
    if given is not None:
        check_column(given, columns, "image_column", path)
        return given
    found = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if found is None:
        raise UserError(
            f"{path}: no column of images (columns: {', '.join(columns)}); expected one of "
            f"{', '.join(_IMAGE_COLUMNS)}, or its name as image_column; captions alone have to be joined with paths of "
            "their images first"
        )
    return found


def _named_image(images: ImageColumn, row: int, name: str | None) -> LazyImage:
    """An image by its file name, or by its address; rows of one name have one image."""
    if not name:
        raise UserError(f"{images.table} row {row}: {images.name}: expected the name of an image file, got none")
    if "://" in name or Path(name).is_absolute():
        return TableImage(images, row, label=name)
    return FileImage(images.root, name)


def parse_caption_cell(cell: Any) -> Any:
    """A cell of captions, which may be a list written as text: as JSON, or as pandas writes lists to CSV.

    Raises:
        InvalidSampleError: such a list cannot be read.
    """
    if not isinstance(cell, str) or not _LIST_AS_TEXT.fullmatch(cell):
        return cell
    try:
        found = json.loads(cell)
    except ValueError:
        found = _python_list(cell)
    if isinstance(found, list) and all(text is None or isinstance(text, str) for text in found):
        return found
    if found is None and cell.rstrip("] \n")[-1:] not in {"'", '"'}:
        return cell  # a caption in brackets
    raise InvalidSampleError(f"expected captions, got a list written as text that cannot be read: {cell:.80}")


def _python_list(text: str) -> Any:
    """The value of a list in Python's notation; None for another text, and for NumPy's ``['a' 'b']``.

    Python joins strings without a comma between them.
    """
    try:
        tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError):
        return None
    types = [kind for kind in tokens if kind != tokenize.NL]
    return None if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(types) else found
