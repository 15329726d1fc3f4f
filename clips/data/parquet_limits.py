"""Bounded reading of parquet files: a few rows at a time, with a memory limit relative to the file size, since a
kilobyte may decompress to gigabytes.

Strings and bytes are read dictionary-encoded, each distinct value once, so that their sizes are known before the rows
are materialized.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from clips.core.artifact import atomic_write
from clips.core.cache import cache_directory
from clips.data.tar_index import MAX_MEMBER_BYTES
from clips.errors import UserError, error_reason

_ANYWAY, _RATIO = 256 << 20, 100  # bytes that any file may unpack to, and how many for each that it has
_AT_ONCE, _MOST_ROWS = 64 << 20, 8192
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
    once = {path for path, leaf in leaves.items() if _is_text(leaf)} - delta  # each different text is read once
    allowance = _ANYWAY + _RATIO * sum(chunk.total_compressed_size for chunk in every)
    _check(file, sum(_stated_size(chunk, leaves) for chunk in every), allowance)
    reader = pyarrow.parquet.ParquetFile(stream, metadata=footer, read_dictionary=sorted(once), pre_buffer=True)
    plain = _without_views(
        pyarrow.parquet.ParquetFile(stream, metadata=footer).read_row_groups([], list(columns)).schema
    )
    total = 0
    for number in groups:
        rows = _rows_at_once(chunks[number], leaves, footer.row_group(number).num_rows)
        for batch in reader.iter_batches(rows, row_groups=[number], columns=list(columns)):
            total += _size(batch)
            _check(file, total, allowance)
            for part in _parts(file, batch):
                yield _laid_out(part, plain) if whole else part


def check_decompressed_size(files: Iterable[str]) -> None:
    """Reject local parquet files that are unsafe for a library which materializes them completely.

    One process reads each file once for that; a record in the user's cache lists the accepted files.

    Raises:
        UserError: as for `unpacked`.
        pyarrow.ArrowException: an invalid file.
    """
    for file in files:
        facts = Path(file).stat()
        identity = f"{Path(file).resolve()} {facts.st_size} {facts.st_mtime_ns}"
        passed = cache_directory("rows") / f"unpacks-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
        if passed.exists():
            continue
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # a cache that cannot be written: then each reads, each time
                passed.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(passed.with_name(f".{passed.name}.lock")))
            if not passed.exists():
                _check_file(file)
                with contextlib.suppress(UserError):
                    atomic_write(passed, "")


def _check_file(file: str) -> None:
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(file)
        for _ in iter_record_batches(
            file, file, columns=footer.schema.to_arrow_schema().names, footer=footer, whole=False
        ):
            pass
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole parquet file ({error_reason(error)})") from None


def _laid_out(batch: Any, plain: Any) -> Any:
    """A batch with all strings materialized, in the schema ``plain``."""
    import pyarrow as pa

    pairs = zip(batch.columns, plain, strict=True)  # pyarrow fails to cast a struct of nulls to itself
    columns = [column if column.type == field.type else column.cast(field.type) for column, field in pairs]
    return pa.RecordBatch.from_arrays(columns, schema=plain)


def _without_views(schema: Any) -> Any:
    """The schema with texts that a dictionary can be cast to."""
    import pyarrow as pa

    kinds = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return pa.schema([field.with_type(kinds.get(field.type, field.type)) for field in schema])


def _chunks(group: Any, columns: Sequence[str]) -> Iterator[Any]:
    """The metadata of the columns to read of a row group."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            yield chunk


def _is_text(leaf: Any) -> bool:
    """Whether pyarrow can read each different value of a column once: not of JSON and the like."""
    return leaf.physical_type == "BYTE_ARRAY" and str(leaf.logical_type) in {"None", "String"}


def _stated_size(chunk: Any, leaves: Mapping[str, Any]) -> int:
    """Decompressed bytes of a column by the footer: of distinct values for strings, of all values otherwise."""
    leaf = leaves[chunk.path_in_schema]
    width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    size: int = chunk.total_uncompressed_size + 4 * chunk.num_values
    return max(size, width * chunk.num_values)


def _rows_at_once(chunks: Sequence[Any], leaves: Mapping[str, Any], count: int) -> int:
    """Rows of a row group, of ``count``, that hold about 64 MB.

    Strings that may share parts with others (JSON, delta encoding) may each be as long as all stored data.
    """
    texts = [(leaves[chunk.path_in_schema], chunk) for chunk in chunks]
    texts = [(leaf, chunk) for leaf, chunk in texts if leaf.physical_type == "BYTE_ARRAY"]
    shared = [chunk for leaf, chunk in texts if not _is_text(leaf) or "DELTA_BYTE_ARRAY" in chunk.encodings]
    longest = sum(chunk.total_uncompressed_size for chunk in shared)
    size = sum(_stated_size(chunk, leaves) for chunk in chunks)
    return max(1, min(_MOST_ROWS, _AT_ONCE * count // max(size, 1), _AT_ONCE // max(longest, 1)))


def _check(file: str, size: int, allowance: int) -> None:
    if size > allowance:
        raise UserError(
            f"{file}: unpacks to more than {allowance // _MB:,} MB, that is {_ANYWAY // _MB} MB and {_RATIO} times its "
            "size; expected a table whose rows repeat less, or in smaller files"
        )


def _parts(file: str, batch: Any) -> Iterator[Any]:
    """A batch in pieces of 64 MB or one row; UserError if a row is too large."""
    size = _size(batch)
    if size <= _AT_ONCE or batch.num_rows == 1:
        if size > MAX_MEMBER_BYTES:
            raise UserError(f"{file}: a row unpacks to {size // _MB:,} MB, expected at most {MAX_MEMBER_BYTES // _MB}")
        yield batch
        return
    half = batch.num_rows // 2
    for part in (batch.slice(0, half), batch.slice(half)):
        yield from _parts(file, part)


def _size(found: Any) -> int:
    """Bytes of an array or batch after materialization."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(found, pa.RecordBatch):
        return sum(map(_size, found.columns))
    if isinstance(found, pa.StructArray):
        return sum(map(_size, found.flatten()))
    if isinstance(found, pa.MapArray):
        first, last = found.offsets[0].as_py(), found.offsets[-1].as_py()
        return 8 * len(found) + sum(_size(part.slice(first, last - first)) for part in (found.keys, found.items))
    if isinstance(found, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return 8 * len(found) + _size(found.flatten())
    if isinstance(found, pa.DictionaryArray) and not pa.types.is_primitive(found.dictionary.type):
        lengths = pc.take(pc.binary_length(found.dictionary).cast(pa.int64()), found.indices)
        return int(found.indices.nbytes) + (pc.sum(lengths).as_py() or 0)
    return int(found.nbytes)
