"""Tables with one image per row, in files or Hugging Face datasets: for training, and their captions for benchmarks."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import itertools
import json
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.identity import content_hashes, digest, file_hash, sampled_hash
from clips.data.formats.dataset_format import ALL, Captioned, Dataset, DatasetSpec, Location, register, strict_captions
from clips.data.formats.rows import (
    SPLIT_COLUMN,
    check_column,
    files_of_splits,
    is_datasets,
    is_saved,
    one_line_errors,
    rows_of_split,
    table_files,
    table_rows_of_split,
    utf8_rows,
)
from clips.data.formats.source import CAPTION_NAMES, Record, Sample, Source, SourceConfig, choose_captions
from clips.data.formats.webdataset import is_webdataset
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import FileImage, ImageColumn, LazyImage, TableImage, image_bytes, named_path
from clips.data.parquet_rows import ParquetRows
from clips.data.remote_files import ShardCache, is_remote
from clips.errors import UserError, unknown_name_error

_IMAGE_COLUMNS = ("image", "jpg", "png", "image_path", "file_name", "filename", "path", "url", "image_url")
_CAPTION_COLUMNS = ("captions", "caption", "sentences", "texts", "text", "raw")
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*['"].*\]\s*""", re.DOTALL)
_BLOCK_ROWS = 10_000
_COLUMNS = ("image_column", "caption_columns")


@register("table", "source", **CAPTION_NAMES)
@register("datasets", "source", **CAPTION_NAMES)
@register(  # a table with the columns of CapsFusion-120M
    "capsfusion", "source", takes=(), web_caption="laion_2b", synthetic_caption=("laion_coco", "capsfusion")
)
class TableSource(Source):
    """Rows of tables (CSV, TSV, JSON lines, parquet), or of Hugging Face datasets.

    ``datasets`` reads them; with ``streaming`` parquet files are read directly, by row group. Image URLs are downloaded
    sample by sample, which suffices for an inspection; for training, download the images first (img2dataset writes
    webdataset shards with all columns in the JSON).
    """

    def __init__(self, config: SourceConfig) -> None:
        self.config, path = config, Path(config.path)
        is_table = config.format != "datasets"
        files = table_files(config.path) if is_table else []  # before datasets is imported, which takes seconds
        with one_line_errors(config.path):
            if config.streaming and (is_table or not is_saved(path)):
                rows = self._stream(files)
            else:
                spec = DatasetSpec(path=config.path, format=config.format, split=config.split, subset=config.subset)
                rows, _ = (table_rows_of_split if is_table else rows_of_split)(Location(spec))
        self.full_rows, names = rows, rows.column_names
        self.image_column = _find_image_column(config.image_column, names, config.path)
        check_column(config.web_caption, names, "web_caption", config.path)
        for column in config.synthetics:
            check_column(column, names, "synthetic_caption", config.path)
        self.rows = rows.select_columns(
            list(dict.fromkeys([self.image_column, config.web_caption, *config.synthetics]))
        )
        self.image_root = config.image_root or (path.parent if is_table and not path.is_dir() else path)
        if isinstance(self.rows, ParquetRows):
            self.blocks, self.copies = self.rows.blocks, self.rows.cache
            self.is_remote = any(map(is_remote, self.rows.files))
        else:  # neighboring rows, which are shuffled like shards
            full, remainder = divmod(len(self.rows), _BLOCK_ROWS)
            self.blocks = [_BLOCK_ROWS] * full + [remainder] * bool(remainder)

    def _stream(self, files: Sequence[str]) -> ParquetRows:
        """Rows of parquet files without a full copy: of ``files``, or of a dataset's split."""
        config = self.config
        if not files:
            splits = files_of_splits(config.path, config.subset)
            wanted = list(splits) if config.split == ALL else config.split.split("+")
            if missing := next((each for each in wanted if each not in splits), None):
                raise unknown_name_error(missing, splits, f"split of {config.path}")
            files = list(itertools.chain.from_iterable(splits[each] for each in wanted))
        if other := next((file for file in files if not file.lower().endswith(".parquet")), None):
            raise UserError(f"{config.path}: a data source with 'streaming' expects .parquet files, found {other}")
        rows = ParquetRows(files, ShardCache(Path(config.cache_dir).expanduser(), config.max_cache_gb * 1e9))
        if SPLIT_COLUMN in rows.column_names and config.split != ALL:
            raise UserError(
                f"{config.path}: a data source with 'streaming' reads every row, but the column '{SPLIT_COLUMN}' "
                f"divides them; expected 'split: {ALL}', or no streaming"
            )
        return rows

    def fetch(self, block: int) -> Path:
        """See `Source`."""
        path: Path = self.rows.fetch(block)
        return path

    def name(self, index: int) -> str:
        """See `Source`."""
        with contextlib.suppress(InvalidSampleError):
            return f"{self.config.path} row {index}{named_path(self._row(self.rows, index)[self.image_column])}"
        return f"{self.config.path} row {index}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        row = self._row(self.rows, index)
        captions = choose_captions(self.config, lambda name: _parse_caption_cell(row[name]), rng)
        return Sample(image_bytes(row[self.image_column], self.image_root), *captions)

    def captions(self, index: int, rng: np.random.Generator) -> tuple[str, str]:
        """See `Source`."""
        row = self._row(self.rows, index)
        return choose_captions(self.config, lambda name: _parse_caption_cell(row[name]), rng)

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
            "hash": self.rows.fingerprint if isinstance(self.rows, ParquetRows) else digest(self._content(self.rows)),
        }

    def contents(self) -> str:
        """See `Source`."""
        files = [file for file in self.rows.files if not is_remote(file)] if isinstance(self.rows, ParquetRows) else []
        card = Path(self.config.path) / "README.md"  # of a dataset in the Hub's layout, which says what its splits are
        labels = file_hash(card) if self.config.format == "datasets" and card.is_file() else ""
        content = sampled_hash(files)
        return digest([content, labels]) if labels else content

    def _content(self, rows: Any) -> list[str]:
        # What changes with the rows. The fingerprint of ``datasets`` also changes with the time of a file.
        config, path = self.config, Path(self.config.path)
        files: list[Path] = []
        if config.format != "datasets":
            files = [Path(file) for file in table_files(config.path) if not is_remote(file)]
        elif is_saved(path):
            files = sorted(path.rglob("state.json"))
        elif path.is_dir():
            files = [Path(file) for names in files_of_splits(config.path, config.subset).values() for file in names]
        if files:
            return list(content_hashes(files).values())
        # The copies' directories are called CONFIG/0.0.0/HASH, with the Hub's commit or a hash of URLs and ETags.
        return sorted({"/".join(Path(copy["filename"]).parts[-4:-1]) for copy in rows.cache_files})


@register(
    "table",
    "captions",
    takes=("split", "image_root", *_COLUMNS),
    fits=lambda at: at.suffix in {".csv", ".tsv", ".parquet"} and at.path.is_file(),
)
def read_table(location: Location) -> Dataset[Captioned]:
    """Each row has an image or its name; its captions are in one column, or in several, some of which may be empty.

    Raises:
        UserError: no such columns, a row without a caption, or an unreadable file.
    """
    rows, split = table_rows_of_split(location)
    return Dataset(records=_records(location, rows, location.image_root("images")), split=split)


@register(
    "datasets",
    "captions",
    takes=("split", "subset", "image_root", *_COLUMNS),
    fits=lambda at: not is_webdataset(at) and is_datasets(at),  # img2dataset writes a table next to each shard
    is_general=True,
)
def read_datasets(location: Location) -> Dataset[Captioned]:
    """As `read_table`, for Hugging Face datasets."""
    rows, split = rows_of_split(location)
    root = location.image_root() if location.spec.image_root else location.path
    return Dataset(records=_records(location, rows, root), split=split)


def _records(location: Location, rows: Any, root: Path) -> Iterator[Captioned]:
    spec, names = location.spec, rows.column_names
    image_column = _find_image_column(spec.image_column, names, spec.path)
    for name in spec.caption_columns:
        check_column(name, names, "caption_columns", spec.path)
    numbered = [name for name in names if re.fullmatch(r"captions?_?\d+", name)]
    usual = next(([name] for name in _CAPTION_COLUMNS if name in names), numbered)
    columns = list(spec.caption_columns) or usual
    if not columns:
        others = [name for name in names if name != image_column]
        hint = f", such as [{others[0]}]" if others else ""
        listed = ", ".join(names)
        raise UserError(f"caption_columns: expected the columns of captions in {spec.path}{hint} (it has: {listed})")
    images = ImageColumn(rows.select_columns([image_column]), image_column, spec.path, root)
    are_names = getattr(rows.features[image_column], "dtype", "") in {"string", "large_string"}
    first_row: dict[Any, int] = {}  # name or content of an image → its first row: each row may be one of its captions
    cells_of_rows = (utf8_rows(spec.path, part) for part in (rows.select_columns(columns), images.rows))
    for number, (row, shown) in enumerate(zip(*cells_of_rows, strict=True)):
        name = shown[image_column]
        key = (name.get("bytes") or name.get("path")) if isinstance(name, dict) else name
        key = hashlib.sha256(key).digest() if isinstance(key, bytes) else key
        same = first_row.setdefault(key, number) if isinstance(key, bytes | str) else number
        image: LazyImage = TableImage(images, same)
        if are_names:
            if not name:
                raise UserError(
                    f"{spec.path} row {number}: {image_column}: expected the name of an image file, got none"
                )
            is_elsewhere = "://" in name or Path(name).is_absolute()
            image = TableImage(images, same, label=name) if is_elsewhere else FileImage(root, name)
        where = f"{spec.path} row {number}: {', '.join(columns)}"
        try:
            cells = [_parse_caption_cell(row[name]) for name in columns]
        except InvalidSampleError as error:
            raise UserError(f"{where}: {error}") from None
        yield Captioned([image], strict_captions(cells, where))


def _find_image_column(given: str | None, columns: Sequence[str], path: str) -> str:
    if given is not None:
        check_column(given, columns, "image_column", path)
        return given
    column = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    if column is None:
        raise UserError(
            f"{path}: no column of images (columns: {', '.join(columns)}); expected one of "
            f"{', '.join(_IMAGE_COLUMNS)}, or its name as image_column; captions alone have to be joined with paths of "
            "their images first"
        )
    return column


def _parse_caption_cell(cell: Any) -> Any:
    """A cell of captions, which may be a list written as text: as JSON, or as pandas writes lists to CSV.

    Raises:
        InvalidSampleError: such a list cannot be read.
    """
    if not isinstance(cell, str) or not _LIST_AS_TEXT.fullmatch(cell):
        return cell
    try:
        parsed = json.loads(cell)
    except ValueError:
        parsed = _python_list(cell)
    if isinstance(parsed, list) and all(text is None or isinstance(text, str) for text in parsed):
        return parsed
    if parsed is None and cell.rstrip("] \n")[-1:] not in {"'", '"'}:
        return cell  # a caption in brackets
    raise InvalidSampleError(f"expected captions, got a list written as text that cannot be read: {cell:.80}")


def _python_list(text: str) -> Any:
    """The value of a list in Python's notation; None for another text, and for NumPy's ``['a' 'b']``.

    Python joins strings without a comma between them.
    """
    try:
        tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
        parsed = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError):
        return None
    types = [kind for kind in tokens if kind != tokenize.NL]
    return None if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(types) else parsed
