"""Bounded reading of parquet files, of which a kilobyte may decompress to gigabytes.

A few rows are read at a time, with a memory limit relative to the file size. Strings and bytes are read
dictionary-encoded, each distinct value once, so that their sizes are known before the rows are materialized.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from clips.core.artifact import atomic_write
from clips.core.content import cache_directory, file_stamp
from clips.data.tar_index import MAX_MEMBER_BYTES
from clips.errors import UserError, error_reason

_BASE_BYTES, _MAX_RATIO = 256 << 20, 100  # decompressed bytes allowed for any file, and per compressed byte
_BATCH_BYTES, _MAX_BATCH_ROWS = 64 << 20, 8192
_MB = 1 << 20


def iter_record_batches(
    file: str,
    stream: Any,
    *,
    columns: Sequence[str],
    group: int | None = None,
    footer: Any = None,
    whole: bool = True,
) -> Iterator[Any]:
    """The rows of a parquet file as Arrow's record batches of at most 64 MB, or one row.

    Args:
        file: the file's name, for messages.
        stream: path or open file.
        columns: columns to read; ``images.list.element.path`` for a part of one.
        group: the row group to read; all of them if None.
        footer: the file's footer, if already read.
        whole: materialize strings and bytes; otherwise they are only measured.

    Raises:
        UserError: it decompresses to more than 256 MB and a hundred times its size, or one row to more than 256 MB.
        pyarrow.ArrowException: it is invalid.
    """
    import pyarrow.parquet

    if footer is None:
        footer = pyarrow.parquet.read_metadata(stream)
    groups = list(range(footer.num_row_groups)) if group is None else [group]
    chunks = {number: list(_chunks(footer.row_group(number), columns)) for number in groups}
    every = [chunk for found in chunks.values() for chunk in found]
    leaves = {leaf.path: leaf for leaf in map(footer.schema.column, range(len(footer.schema)))}
    delta = {chunk.path_in_schema for chunk in every if any(each.startswith("DELTA") for each in chunk.encodings)}
    dictionaries = {path for path, leaf in leaves.items() if _reads_as_dictionary(leaf)} - delta
    allowance = _BASE_BYTES + _MAX_RATIO * sum(chunk.total_compressed_size for chunk in every)
    _check_size(file, sum(_stated_size(chunk, leaves) for chunk in every), allowance)
    reader = pyarrow.parquet.ParquetFile(stream, metadata=footer, read_dictionary=sorted(dictionaries), pre_buffer=True)
    empty_table = pyarrow.parquet.ParquetFile(stream, metadata=footer).read_row_groups([], list(columns))
    schema = _plain_schema(empty_table.schema)
    total = 0
    for number in groups:
        rows = _batch_rows(chunks[number], leaves, footer.row_group(number).num_rows)
        for batch in reader.iter_batches(rows, row_groups=[number], columns=list(columns)):
            total += _materialized_size(batch)
            _check_size(file, total, allowance)
            for part in _split_batch(file, batch):
                yield _materialize(part, schema) if whole else part


def check_decompressed_size(files: Iterable[str]) -> None:
    """Reject local parquet files that are unsafe for a library that materializes them completely.

    Each file is read once, by one process; marker files in the user's cache record the accepted files.

    Raises:
        UserError: see `iter_record_batches`; also for an invalid file.
    """
    for file in files:
        version = f"{Path(file).resolve()} {file_stamp(file)}"
        marker = cache_directory("rows") / f"unpacks-{hashlib.sha256(version.encode()).hexdigest()[:32]}"
        if marker.exists():
            continue
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # without a writable cache each process reads the file each time
                marker.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(marker.with_name(f".{marker.name}.lock")))
            if not marker.exists():
                _check_file(file)
                with contextlib.suppress(UserError):
                    atomic_write(marker, "")


def _check_file(file: str) -> None:
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(file)
        columns = footer.schema.to_arrow_schema().names
        for _ in iter_record_batches(file, file, columns=columns, footer=footer, whole=False):
            pass
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole parquet file ({error_reason(error)})") from None


def _materialize(batch: Any, schema: Any) -> Any:
    """A batch with all strings materialized, in the given schema."""
    import pyarrow as pa

    pairs = zip(batch.columns, schema, strict=True)  # pyarrow fails to cast a struct of nulls to itself
    columns = [column if column.type == field.type else column.cast(field.type) for column, field in pairs]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _plain_schema(schema: Any) -> Any:
    """The schema without string views, to which a dictionary cannot be cast."""
    import pyarrow as pa

    types = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.schema([field.with_type(types.get(field.type, field.type)) for field in schema])


def _chunks(group: Any, columns: Sequence[str]) -> Iterator[Any]:
    """The metadata of the selected columns of a row group."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            yield chunk


def _reads_as_dictionary(leaf: Any) -> bool:
    """Whether pyarrow can read each distinct value of a column once; it cannot for JSON and similar types."""
    return leaf.physical_type == "BYTE_ARRAY" and str(leaf.logical_type) in {"None", "String"}


def _stated_size(chunk: Any, leaves: Mapping[str, Any]) -> int:
    """Decompressed bytes of a column by the footer: of distinct values for strings, of all values otherwise."""
    leaf = leaves[chunk.path_in_schema]
    width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    size: int = chunk.total_uncompressed_size + 4 * chunk.num_values
    return max(size, width * chunk.num_values)


def _batch_rows(chunks: Sequence[Any], leaves: Mapping[str, Any], count: int) -> int:
    """The number of rows, of ``count`` in a row group, that take about 64 MB."""
    strings = [(leaves[chunk.path_in_schema], chunk) for chunk in chunks]
    strings = [(leaf, chunk) for leaf, chunk in strings if leaf.physical_type == "BYTE_ARRAY"]
    # A string that shares parts with others (JSON, delta encoding) may be as long as all stored data.
    shared = [
        chunk for leaf, chunk in strings if not _reads_as_dictionary(leaf) or "DELTA_BYTE_ARRAY" in chunk.encodings
    ]
    longest = sum(chunk.total_uncompressed_size for chunk in shared)
    size = sum(_stated_size(chunk, leaves) for chunk in chunks)
    return max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * count // max(size, 1), _BATCH_BYTES // max(longest, 1)))


def _check_size(file: str, size: int, allowance: int) -> None:
    if size > allowance:
        raise UserError(
            f"{file}: decompresses to more than {allowance // _MB:,} MB, that is {_BASE_BYTES // _MB} MB and "
            f"{_MAX_RATIO} times its size; expected a table whose rows repeat less, or in smaller files"
        )


def _split_batch(file: str, batch: Any) -> Iterator[Any]:
    """A batch in parts of at most 64 MB or one row; UserError if a row is too large."""
    size = _materialized_size(batch)
    if size <= _BATCH_BYTES or batch.num_rows == 1:
        if size > MAX_MEMBER_BYTES:
            limit = MAX_MEMBER_BYTES // _MB
            raise UserError(f"{file}: a row decompresses to {size // _MB:,} MB, expected at most {limit}")
        yield batch
        return
    half = batch.num_rows // 2
    for part in (batch.slice(0, half), batch.slice(half)):
        yield from _split_batch(file, part)


def _materialized_size(found: Any) -> int:
    """Bytes of an array or batch after materialization."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(found, pa.RecordBatch):
        return sum(map(_materialized_size, found.columns))
    if isinstance(found, pa.StructArray):
        return sum(map(_materialized_size, found.flatten()))
    if isinstance(found, pa.MapArray):
        first, last = found.offsets[0].as_py(), found.offsets[-1].as_py()
        return 8 * len(found) + sum(
            _materialized_size(part.slice(first, last - first)) for part in (found.keys, found.items)
        )
    if isinstance(found, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return 8 * len(found) + _materialized_size(found.flatten())
    if isinstance(found, pa.DictionaryArray) and not pa.types.is_primitive(found.dictionary.type):
        lengths = pc.take(pc.binary_length(found.dictionary).cast(pa.int64()), found.indices)
        return int(found.indices.nbytes) + (pc.sum(lengths).as_py() or 0)
    return int(found.nbytes)
