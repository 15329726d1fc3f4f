"""Parquet files a few rows at a time, and no more of them than their size allows: a kilobyte can stand for gigabytes.

Texts and bytes are read as parquet keeps them, each different one once, so that their sizes are known before they are
laid out row by row.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from clips.core.artifact import write_file
from clips.core.cache import cache_directory
from clips.data.tars import MOST_BYTES
from clips.errors import UserError

_ANYWAY, _RATIO = 256 << 20, 100  # bytes that any file may unpack to, and how many for each that it has
_AT_ONCE, _MOST_ROWS = 64 << 20, 8192
_MB = 1 << 20


def unpacked(
    file: str,
    stream: Any,
    *,
    columns: Sequence[str],
    group: int | None = None,
    footer: Any = None,
    whole: bool = True,
) -> Iterator[Any]:
    """The rows of a parquet file as Arrow's record batches of at most 64 MB, or one row; small ones are joined.

    Args:
        file: its name, for messages.
        stream: path or open file.
        columns: that are read; ``images.list.element.path`` for a part of one.
        group: the row group that is read; all of them where None.
        footer: of the file, where it is known.
        whole: lay texts and bytes out row by row; otherwise they are only measured.

    Raises:
        UserError: it unpacks to more than 256 MB and a hundred times its size, or a row of it to more than 256 MB.
        pyarrow.ArrowException: it is broken.
    """
    import pyarrow.parquet

    if footer is None:
        footer = pyarrow.parquet.read_metadata(stream)
    groups = list(range(footer.num_row_groups)) if group is None else [group]
    chunks = [chunk for number in groups for chunk in _chunks(footer.row_group(number), columns)]
    allowance = _ANYWAY + _RATIO * sum(chunk.total_compressed_size for chunk in chunks)
    leaves = [footer.schema.column(number) for number in range(len(footer.schema))]
    widths = {leaf.path: leaf.length for leaf in leaves if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY"}
    _check(file, sum(_laid_out_size(chunk, widths) for chunk in chunks), allowance)
    texts = {leaf.path: leaf for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"}
    plain = {path for path, leaf in texts.items() if _is_plain(leaf)}
    once = plain - _written_as(chunks, "DELTA")
    repeated = (texts.keys() - plain) | (_written_as(chunks, "DELTA_BYTE_ARRAY") & texts.keys())
    reader = pyarrow.parquet.ParquetFile(stream, metadata=footer, read_dictionary=sorted(once), pre_buffer=True)
    batches = (
        batch
        for number in groups
        for batch in reader.iter_batches(
            _rows_at_once(footer.row_group(number), columns, repeated, widths),
            row_groups=[number],
            columns=list(columns),
        )
    )
    parts = _measured(file, batches, allowance)
    yield from _joined(parts, footer.schema.to_arrow_schema()) if whole else (part for part, _ in parts)


def check_unpacked(files: Iterable[str]) -> None:
    """Refuse parquet files of this machine that a library which lays them out whole had better not read.

    Each is read once for that, by one process for all; a note in the user's cache says which have passed.

    Raises:
        UserError: as for `unpacked`.
        pyarrow.ArrowException: one is broken.
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
                    write_file(passed, "")


def _check_file(file: str) -> None:
    import pyarrow.parquet

    footer = pyarrow.parquet.read_metadata(file)
    for _ in unpacked(file, file, columns=footer.schema.to_arrow_schema().names, footer=footer, whole=False):
        pass


def _chunks(group: Any, columns: Sequence[str]) -> Iterator[Any]:
    """What is known of the columns of a row group that are read."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if any(chunk.path_in_schema == name or chunk.path_in_schema.startswith(f"{name}.") for name in columns):
            yield chunk


def _written_as(chunks: Iterable[Any], encoding: str) -> set[str]:
    """The columns that have parts in an encoding, or in one of those whose names begin so."""
    return {chunk.path_in_schema for chunk in chunks if any(each.startswith(encoding) for each in chunk.encodings)}


def _is_plain(leaf: Any) -> bool:
    return str(leaf.logical_type) in {"None", "String"}


def _laid_out_size(chunk: Any, widths: Mapping[str, int]) -> int:
    """Bytes of a column, as far as the footer tells: of texts each different one once, of all else every value."""
    size: int = chunk.total_uncompressed_size + 4 * chunk.num_values
    return max(size, widths.get(chunk.path_in_schema, 0) * chunk.num_values)


def _rows_at_once(group: Any, columns: Sequence[str], repeated: set[str], widths: Mapping[str, int]) -> int:
    """Rows that hold about 64 MB.

    Args:
        repeated: columns that may hold more than is there, and cannot be read each different text once: each of their
            texts may be as long as all that is there.
    """
    chunks = list(_chunks(group, columns))
    size = sum(_laid_out_size(chunk, widths) for chunk in chunks)
    longest = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in repeated)
    rows = min(_MOST_ROWS, _AT_ONCE * group.num_rows // max(size, 1), _AT_ONCE // max(longest, 1))
    return max(rows, 1)


def _check(file: str, size: int, allowance: int) -> None:
    if size > allowance:
        raise UserError(
            f"{file}: unpacks to more than {allowance // _MB:,} MB, that is {_ANYWAY // _MB} MB and {_RATIO} times its "
            "size; expected a table whose rows repeat less, or in smaller files"
        )


def _measured(file: str, batches: Iterable[Any], allowance: int) -> Iterator[tuple[Any, int]]:
    """Batches in pieces of 64 MB or one row, with their bytes; UserError where a row, or all of them, has too many."""
    total = 0
    for batch in batches:
        size = _size(batch)
        total += size
        _check(file, total, allowance)
        yield from _parts(file, batch, size)


def _parts(file: str, batch: Any, size: int) -> Iterator[tuple[Any, int]]:
    if size <= _AT_ONCE or batch.num_rows == 1:
        if size > MOST_BYTES:
            raise UserError(f"{file}: a row unpacks to {size // _MB:,} MB, expected at most {MOST_BYTES // _MB}")
        yield batch, size
        return
    half = batch.num_rows // 2
    for part in (batch.slice(0, half), batch.slice(half)):
        yield from _parts(file, part, _size(part))


def _joined(parts: Iterable[tuple[Any, int]], schema: Any) -> Iterator[Any]:
    """Pieces with their bytes, laid out and joined where they are small: where rows are read one by one, all are."""
    held: list[Any] = []
    total = rows = 0
    for part, size in parts:
        if held and (total + size > _AT_ONCE or rows + part.num_rows > _MOST_ROWS):
            yield _one(held)
            held, total, rows = [], 0, 0
        held.append(_lay_out(part, schema))
        total, rows = total + size, rows + part.num_rows
    if held:
        yield _one(held)


def _one(batches: Sequence[Any]) -> Any:
    import pyarrow as pa

    if len(batches) == 1:
        return batches[0]
    columns = [pa.concat_arrays(parts) for parts in zip(*(batch.columns for batch in batches), strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=batches[0].schema)


def _lay_out(batch: Any, whole: Any) -> Any:
    """A batch with each of its texts in its row; ``whole`` is the schema of the file, which may have more columns."""
    import pyarrow as pa

    schema = pa.schema([_laid_out(field, whole.field(field.name)) for field in batch.schema])
    pairs = zip(batch.columns, schema, strict=True)
    columns = [column if column.type == field.type else column.cast(field.type) for column, field in pairs]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _laid_out(field: Any, plain: Any) -> Any:
    """A field as it was read, each of its texts in its row.

    Args:
        field: of a batch.
        plain: the same of the whole file, which may have more parts.
    """
    import pyarrow as pa

    kind, wanted = field.type, plain.type
    if pa.types.is_dictionary(kind):
        wanted = wanted.value_type if pa.types.is_dictionary(wanted) else wanted
        views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}  # no dictionary can be made these
        return field.with_type(views.get(wanted, wanted))
    if pa.types.is_struct(kind):
        return field.with_type(pa.struct([_laid_out(part, wanted.field(part.name)) for part in kind]))
    if pa.types.is_map(kind):
        keys, items = _laid_out(kind.key_field, wanted.key_field), _laid_out(kind.item_field, wanted.item_field)
        return field.with_type(pa.map_(keys, items))
    if pa.types.is_fixed_size_list(kind):
        return field.with_type(pa.list_(_laid_out(kind.value_field, wanted.value_field), kind.list_size))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return field.with_type(make(_laid_out(kind.value_field, wanted.value_field)))
    return field


def _size(found: Any) -> int:
    """Bytes of an array or batch, its texts laid out row by row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(found, pa.RecordBatch):
        return sum(map(_size, found.columns))
    if isinstance(found, pa.DictionaryArray):
        if pa.types.is_primitive(found.dictionary.type):
            return len(found) * found.dictionary.type.bit_width // 8
        lengths = pc.take(pc.binary_length(found.dictionary).cast(pa.int64()), found.indices)
        return int(found.indices.nbytes) + (pc.sum(lengths).as_py() or 0)
    if isinstance(found, pa.StructArray):
        return sum(map(_size, found.flatten()))
    if isinstance(found, pa.MapArray):
        first, last = found.offsets[0].as_py(), found.offsets[-1].as_py()
        return 8 * len(found) + sum(_size(part.slice(first, last - first)) for part in (found.keys, found.items))
    if isinstance(found, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return 8 * len(found) + _size(found.flatten())
    return int(found.nbytes)
