"""Random access to rows of parquet files, local or remote, without a full copy.

A row group is copied when one of its rows is first read: only the requested columns, as a memory-mapped Arrow file in
the shard cache. The cache limit bounds the disk usage. The sample order is the same as for local data.
"""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.durable import atomic_write
from clips.core.identity import digest, file_stamp
from clips.data.images import InvalidSampleError
from clips.data.remote_files import ShardCache, UnreachableError, is_remote
from clips.errors import UserError, error_reason
from clips.safe_text import log_info

_CORRUPTION_SIGNS = ("deserializ", "thrift", "corrupt", "decompress", "malformed", "magic bytes")  # in Arrow's messages
_MAX_OPEN = 64  # open footers and row groups per process


class ParquetRows:
    """Rows of many files (paths, or URLs that fsspec reads), with the interface of `datasets.Dataset` that we use."""

    def __init__(self, files: Sequence[str], cache: ShardCache) -> None:
        self.files, self.cache = list(files), cache
        versions = json.dumps([*map(_file_version, files)])
        counted = cache.directory / f"rows-{hashlib.sha256(versions.encode()).hexdigest()[:16]}.json"

        def count(file: str) -> list[int]:
            footer = self._footer(file)
            return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]

        try:
            stored, counts = json.loads(counted.read_text(encoding="utf-8"))
            if stored != digest(counts):  # damaged: other rows would be read
                raise ValueError
        except (OSError, ValueError, TypeError):
            with concurrent.futures.ThreadPoolExecutor(16) as executor:
                counts = list(executor.map(count, files))
            try:
                atomic_write(counted, json.dumps([digest(counts), counts]))
            except (OSError, UserError):
                if any(map(is_remote, files)):  # whose rows need the cache, too
                    raise
        self.groups = [  # (file index, row group index, number of rows)
            (file, group, rows) for file, sizes in enumerate(counts) for group, rows in enumerate(sizes) if rows
        ]
        self.ends = np.cumsum([rows for _, _, rows in self.groups])
        self.unreadable: dict[int, str] = {}  # row group index → its error
        self.is_in_memory = False  # whether a row group could not be copied
        self._reset_caches()
        self.column_names = list(self._footer_of(self.files[0]).schema.to_arrow_schema().names)

    def select_columns(self, names: Sequence[str]) -> ParquetRows:
        """The same rows with fewer columns."""
        selected = copy.copy(self)
        selected.column_names = list(names)
        return selected

    def _reset_caches(self) -> None:
        self._table = functools.lru_cache(maxsize=_MAX_OPEN)(self._open_group)
        self._footer_of = functools.lru_cache(maxsize=_MAX_OPEN)(self._footer)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in {"_table", "_footer_of"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset_caches()

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def blocks(self) -> list[int]:
        """Number of rows of each row group."""
        return [rows for _, _, rows in self.groups]

    @property
    def fingerprint(self) -> str:
        """Hash of the file names and of the row counts of their row groups."""
        return hashlib.sha256(
            json.dumps([[file.rpartition("/")[2] for file in self.files], self.blocks]).encode()
        ).hexdigest()

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, index, side="right"))
        if number in self.unreadable:
            raise InvalidSampleError(self.unreadable[number])
        try:
            table = self._table(number)
        except UnreachableError:
            raise
        except UserError as error:
            self.unreadable[number] = str(error)
            raise InvalidSampleError(str(error)) from None
        row_index = index - int(self.ends[number]) + self.groups[number][2]
        row: dict[str, Any] = table.slice(row_index, 1).to_pylist()[0]
        return row

    def fetch(self, number: int, *, retry: bool = True) -> Path:
        """The local copy of row group ``number``, created if missing; raises as `ShardCache.made`."""
        place, group, _ = self.groups[number]
        file = self.files[place]

        def make(target: Path) -> None:
            import pyarrow as pa

            parts = self.read_batches(file, group)
            first = next(parts)
            with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
                for part in itertools.chain([first], parts):
                    writer.write_batch(part)

        key = f"{_file_version(file)}#{group}#{','.join(self.column_names)}"
        return self.cache.made(key, "group.arrow", make, retry=retry)

    def _open_group(self, number: int) -> Any:
        """A row group: its copy; of a local file its rows in memory where no copy can be made."""
        import pyarrow as pa

        file, group, _ = self.groups[number]
        is_local = not is_remote(self.files[file])
        try:
            copy = self.fetch(number, retry=not is_local)
        except (OSError, NotImplementedError, UserError) as error:  # also without disk space or locks
            if not is_local:
                raise
            try:
                rows = pa.Table.from_batches(self.read_batches(self.files[file], group))
            except (pa.ArrowException, OSError):  # it is the file that cannot be read now
                copy = self.fetch(number)
            else:
                if not self.is_in_memory:
                    self.is_in_memory = True
                    log_info(
                        f"{self.cache.directory}: no copy of a row group can be written ({error_reason(error)}); each "
                        "process keeps those that it reads in its memory"
                    )
                return rows
        return pa.ipc.open_file(pa.memory_map(str(copy))).read_all()

    def read_batches(self, file: str, group: int) -> Iterator[Any]:
        """The requested columns of a row group.

        Raises:
            UserError: it is broken, and as pyarrow does.
        """
        import pyarrow as pa
        import pyarrow.parquet

        footer = self._footer_of(file)
        with _open(file) as stream:
            try:
                reader = pyarrow.parquet.ParquetFile(stream, metadata=footer, pre_buffer=True)
                # few rows of images are in memory while a row group is copied
                parts = reader.iter_batches(64, row_groups=[group], columns=self.column_names)
                first = next(parts, None)
                if first is None:
                    raise UserError(f"{file}: row group {group} is broken (it has no rows)")
                yield first
                yield from parts
            except (pa.ArrowException, OSError) as error:  # OSError: a network error, or an invalid file
                if any(sign in str(error).lower() for sign in _CORRUPTION_SIGNS):
                    raise UserError(f"{file}: row group {group} is broken ({error_reason(error)})") from None
                raise

    @staticmethod
    def _footer(file: str) -> Any:
        import pyarrow.parquet

        with _open(file) as stream:
            return pyarrow.parquet.read_metadata(stream)


def _file_version(file: str) -> str:
    """A file's URL; for a local file with its stamp, so that copies of earlier versions are not used."""
    if is_remote(file):
        return file
    return f"{file} {file_stamp(file)}"


def _open(file: str) -> Any:
    """Open a file without fsspec's caches: pyarrow knows the next ranges better."""
    if not is_remote(file):
        return Path(file).open("rb")
    import fsspec

    system, inside = fsspec.core.url_to_fs(file)
    return system.open(inside, "rb", cache_type="none")
