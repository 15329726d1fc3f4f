"""Where a picture lies: in a file, in a tar, or in a row of a table. Nothing of it is in memory until it is opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from clips.data import BadImageError, decode_image, has_reference, open_image
from clips.data.sources.base import BadSampleError
from clips.data.tars import read_span
from clips.errors import UserError


class Picture(Protocol):
    """A picture that can be opened; as text it is where people find it."""

    def open(self) -> Image.Image:
        """The picture in RGB. Raises UserError if it is missing or broken."""

    def is_there(self) -> bool:
        """Whether its file is there, without reading it."""


@dataclasses.dataclass(frozen=True, slots=True)
class FilePicture:
    """A file below ``root``, or ``shard.tar/member``."""

    root: Path
    reference: str

    def __str__(self) -> str:
        return str(self.root / self.reference)

    def open(self) -> Image.Image:
        """See `Picture`."""
        return open_image(self.root, self.reference)

    def is_there(self) -> bool:
        """See `Picture`."""
        return has_reference(self.root, self.reference)


@dataclasses.dataclass(frozen=True, slots=True)
class SpanPicture:
    """A member of a tar whose place is known: ``size`` bytes from ``offset`` on."""

    shard: Path
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.member}"

    def open(self) -> Image.Image:
        """See `Picture`."""
        try:
            return decode_image(read_span(self.shard, self.offset, self.size))
        except (BadImageError, OSError) as error:
            raise UserError(f"{self}: {error}") from None

    def is_there(self) -> bool:
        """See `Picture`; its place is known, so it was there a moment ago."""
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class PictureColumn:
    """The pictures of a table.

    Args:
        rows: index → row, a dict with the column: bytes, ``{"bytes", "path"}``, a path, or a list of such.
        name: the column's.
        table: the file or directory, for messages.
        root: folder that paths start from.
    """

    rows: Any
    name: str
    table: str
    root: Path


@dataclasses.dataclass(frozen=True, slots=True)
class RowPicture:
    """Picture ``number`` in a row of a table."""

    column: PictureColumn
    row: int
    number: int

    def __str__(self) -> str:
        return f"{self.column.table} row {self.row} {self.column.name}[{self.number}]"

    def open(self) -> Image.Image:
        """See `Picture`."""
        try:
            found = self.column.rows[self.row][self.column.name]
            value = found[self.number] if isinstance(found, list) else found
            content = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
            if isinstance(content, str):
                return open_image(self.column.root, content)
            if not content:
                raise UserError(f"{self}: no picture")
            return decode_image(content)
        except (BadImageError, BadSampleError) as error:
            raise UserError(f"{self}: {error}") from None

    def is_there(self) -> bool:
        """See `Picture`; what a row holds is not looked at."""
        return True
