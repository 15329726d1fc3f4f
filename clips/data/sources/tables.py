"""Tables with one image per row, read by Hugging Face ``datasets``: files of rows, Hub datasets or saved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clips.data.formats.dataset_format import ALL, DatasetSpec, Location
from clips.data.formats.rows import (
    SPLIT_COLUMN,
    check_column,
    files_of_splits,
    find_image_column,
    is_saved,
    one_line_errors,
    parse_caption_cell,
    rows_of_split,
    table_files,
    table_rows_of_split,
)
from clips.data.images import InvalidSampleError
from clips.data.lazy_images import image_bytes
from clips.data.remote_files import ShardCache, is_remote
from clips.data.sources.parquet import ParquetRows
from clips.data.sources.source import Record, Sample, SourceConfig, choose_nonempty, sample_caption
from clips.errors import UserError, unknown_name_error

_BLOCK_ROWS = 10_000


class DatasetsSource:
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

    @property
    def blocks(self) -> list[int]:
        """Sizes of groups of neighboring rows, which are shuffled like shards: row groups if streamed."""
        if isinstance(self.rows, ParquetRows):
            return self.rows.blocks
        full, remainder = divmod(len(self), _BLOCK_ROWS)
        return [_BLOCK_ROWS] * full + [remainder] * bool(remainder)

    @property
    def is_remote(self) -> bool:
        """See `RemoteSource`."""
        return isinstance(self.rows, ParquetRows) and any(map(is_remote, self.rows.files))

    @property
    def copies(self) -> ShardCache:
        """See `RemoteSource`."""
        cache: ShardCache = self.rows.cache
        return cache

    def fetch(self, block: int) -> Path:
        """See `RemoteSource`."""
        path: Path = self.rows.fetch(block)
        return path

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """See `Source`."""
        return f"{self.config.path} row {index}"

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        row = self._row(self.rows, index)
        web = sample_caption(parse_caption_cell(row[self.config.web_caption]), self.config.web_caption, rng)
        synthetics = [sample_caption(parse_caption_cell(row[name]), name, rng) for name in self.config.synthetics]
        synthetic = choose_nonempty(synthetics, rng)
        if not web and not synthetic:
            raise InvalidSampleError(f"no caption '{self.config.web_caption}'")
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
