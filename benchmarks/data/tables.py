"""Tables that name pictures: CSV, TSV and parquet files with a row for each picture, or for each of its captions."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data.hub import caption_columns
from benchmarks.data.source import Files, Found, OnDisk, Row
from clips.data.unpacking import unpacked
from clips.errors import UserError, reason_of, suggest
from clips.model.loading import refusing

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def is_table(found: OnDisk) -> bool:
    """``.csv``, ``.tsv``, or one ``.parquet`` file."""
    return found.path.suffix in {*_DELIMITERS, ".parquet"} and found.path.is_file()


def read_table(found: OnDisk) -> Found:
    """Each row names a picture; its captions stand in one column, or in several, of which some may be empty.

    Raises:
        UserError: no such columns, or several of one name, a row without a caption, or it cannot be read.
    """
    columns, rows = _opened(found.path)
    picture = found.asked.image_column
    if picture not in columns:
        raise suggest(picture, columns, f"column for image_column in {found.path}")
    captions = caption_columns(found, columns)
    if twice := [name for name in (picture, *captions) if columns.count(name) > 1]:
        raise UserError(f"{found.path}: several columns are called '{twice[0]}'")
    return Found(Files(found.folder("images")), _rows(found.path, rows([picture, *captions]), picture, captions))


def _rows(path: Path, rows: Iterator[Mapping[str, Any]], picture: str, captions: Sequence[str]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        if not (isinstance(row[picture], str) and row[picture]):
            raise UserError(
                f"{path} row {number}: {picture}: expected the name of a picture's file, got {row[picture]!r:.40} "
                "(of parquet files that hold the pictures themselves, give the folder as 'data')"
            )
        cells = [cell for name in captions for cell in (row[name] if isinstance(row[name], list) else [row[name]])]
        texts = [cell for cell in cells if cell is not None and cell != ""]
        if not texts:
            raise UserError(f"{path} row {number}: {', '.join(captions)}: expected a caption, got none")
        yield [row[picture]], texts


def _opened(path: Path) -> tuple[Sequence[str], Callable[[Sequence[str]], Iterator[Mapping[str, Any]]]]:
    """The columns of a table, and the function of some of them that yields its rows."""
    with refusing(f"{path}: cannot be read as a table"):
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(path).names, partial(_of_parquet, path)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            columns = next(csv.reader(stream, delimiter=_DELIMITERS[path.suffix], strict=True), [])
    return columns, lambda _: _of_text(path, columns)


def _of_parquet(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with refusing(f"{path}: cannot be read as a table"):
        for batch in unpacked(str(path), path, columns=columns):
            yield from batch.to_pylist()


def _of_text(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=_DELIMITERS[path.suffix], strict=True)
        try:
            for row in reader:
                if row.keys() != set(columns) or None in row.values():
                    raise UserError(f"{path} line {reader.line_num}: expected {len(columns)} cells, as the head has")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} line {reader.reader.line_num}: cannot be read ({reason_of(error)})") from None
