"""Data sets with a picture a row, read by Hugging Face ``datasets``: of the hub, parquet files, ``save_to_disk``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data.hub_tables import has_splits, picture_bytes
from benchmarks.data.source import WHOLE, Found, OnDisk, Row
from clips.errors import UserError, suggest

_CAPTIONS = ("captions", "caption", "sentences", "texts", "text", "raw")
_NUMBERED = re.compile(r"captions?_?\d+")


@dataclass(frozen=True)
class Rows:
    """Pictures in a column of a ``datasets.Dataset``; a reference is the number of the row."""

    data: Any
    column: str
    path: str

    def read(self, reference: str) -> bytes:
        """See `Pictures`."""
        where = f"{self.path} row {reference}: {self.column}"
        return picture_bytes(self.data[int(reference)][self.column], Path(self.path), where)


def is_hub(found: OnDisk) -> bool:
    """Parquet files, or what ``save_to_disk`` wrote."""
    saved = {"state.json", "dataset_dict.json"} & found.names
    return bool(saved) or (found.path.is_dir() and next(found.path.rglob("*.parquet"), None) is not None)


def read_hub(found: OnDisk) -> Found:
    """Each row is a picture of its own; its captions are a list in one column, or stand in several."""
    from clips.data.sources.tables import hub_rows, one_line_errors, undecoded

    asked = found.asked
    _check_parquet(found.path)
    with one_line_errors(asked.data):
        data = hub_rows(asked.data, asked.subset, asked.split)
    if asked.image_column not in data.column_names:
        raise suggest(asked.image_column, data.column_names, f"column for image_column in {asked.data}")
    columns = caption_columns(found, data.column_names)
    data = undecoded(data.select_columns([asked.image_column, *columns]))
    pictures = Rows(data.select_columns([asked.image_column]), asked.image_column, asked.data)
    return Found(pictures, _rows(data, columns), asked.split if has_splits(found.path) else WHOLE)


def _rows(data: Any, columns: Sequence[str]) -> Iterator[Row]:
    for number, row in enumerate(data.select_columns(columns)):
        texts: list[Any] = []
        for column in columns:
            texts += row[column] if isinstance(row[column], list) else [row[column]]
        yield [str(number)], [text.get("raw") if isinstance(text, dict) else text for text in texts]


def caption_columns(found: OnDisk, columns: Sequence[str]) -> list[str]:
    """The columns that were asked for, else those that are called as captions are. Raises UserError where none is."""
    for name in found.asked.caption_columns:
        if name not in columns:
            raise suggest(name, columns, f"column for caption_columns in {found.asked.data}")
    if found.asked.caption_columns:
        return list(found.asked.caption_columns)
    numbered = [name for name in columns if _NUMBERED.fullmatch(name)]
    known = next(([name] for name in _CAPTIONS if name in columns), numbered)
    if not known:
        raise UserError(
            f"caption_columns: expected those of the captions in {found.asked.data} (it has: {', '.join(columns)})"
        )
    return known


def _check_parquet(folder: Path) -> None:
    """``datasets`` does not say which of many files is broken."""
    import pyarrow.parquet

    for file in sorted(folder.rglob("*.parquet")) if folder.is_dir() else ():
        try:
            pyarrow.parquet.read_metadata(file)
        except Exception as error:  # Arrow's own, or the system's
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{file}: not a whole parquet file ({reason})") from None
