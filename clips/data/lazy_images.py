"""References to images: in a file, in a tar, or in a row of a table. Images are read on access."""

from __future__ import annotations

import abc
import dataclasses
import re
from pathlib import Path
from typing import Any

from PIL import Image

from clips.data.images import InvalidImageError, InvalidSampleError, decode_image, image_exists, read_image_bytes
from clips.data.tar_index import read_byte_range
from clips.data.untrusted_files import ForbiddenReferenceError, read_untrusted
from clips.errors import UserError

_MAX_PATH = 1000  # characters, fewer than the smallest photo has in base64
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+")


class LazyImage(abc.ABC):
    """An image that can be read; ``str()`` gives its location for people."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The dataset's name of the image."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """The encoded image. Raises UserError if it is missing."""

    def exists(self) -> bool:
        """Whether its file exists; always true for an image at a known position within a file."""
        return True

    def open(self) -> Image.Image:
        """The image in RGB. Raises UserError if it is missing or invalid."""
        try:
            return decode_image(self.read())
        except InvalidImageError as error:
            raise UserError(f"{self}: {error}") from None


@dataclasses.dataclass(frozen=True, slots=True)
class FileImage(LazyImage):
    """A file below ``root``, or ``shard.tar/member``."""

    root: Path
    reference: str

    def __str__(self) -> str:
        return str(self.root / self.reference)

    @property
    def name(self) -> str:
        """See `LazyImage`."""
        return self.reference

    def read(self) -> bytes:
        """See `LazyImage`."""
        try:
            return read_image_bytes(self.root, self.reference)
        except UserError as error:
            if ".tar/" in self.reference:
                raise
            raise UserError(f"{error} (set image_root to the directory of the images)") from None

    def exists(self) -> bool:
        """See `LazyImage`."""
        return image_exists(self.root, self.reference)


@dataclasses.dataclass(frozen=True, slots=True)
class TarImage(LazyImage):
    """A member of a tar: ``size`` bytes from ``offset``; the shard is below ``root``."""

    root: Path
    shard: Path
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.member}"

    @property
    def name(self) -> str:
        """See `LazyImage`."""
        return f"{self.shard.relative_to(self.root).as_posix()}/{self.member}"

    def read(self) -> bytes:
        """See `LazyImage`."""
        try:
            return read_byte_range(self.shard, self.offset, self.size)
        except OSError as error:
            raise UserError(f"{self}: {error}") from None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ImageColumn:
    """The images of a table.

    Args:
        rows: index → row, a dict with the column: bytes, ``{"bytes", "path"}``, a path, or a list of these.
        name: name of the column.
        table: the file or directory, for messages.
        root: base directory of paths.
    """

    rows: Any
    name: str
    table: str
    root: Path


@dataclasses.dataclass(frozen=True, slots=True)
class TableImage(LazyImage):
    """An image in a row of a table.

    Args:
        column: its column.
        row: index of its row.
        number: its index within the row if the column contains lists.
        label: its name; by default the index of its row.
    """

    column: ImageColumn
    row: int
    number: int | None = None
    label: str = ""

    def __str__(self) -> str:
        index = "" if self.number is None else f"[{self.number}]"
        return f"{self.column.table} row {self.row} {self.column.name}{index}"

    @property
    def name(self) -> str:
        """See `LazyImage`."""
        return self.label or str(self.row)

    def read(self) -> bytes:
        """See `LazyImage`."""
        cell: Any = None
        try:
            cell = self.column.rows[self.row][self.column.name]
            cell = cell[self.number] if isinstance(cell, list) and self.number is not None else cell
            return image_bytes(cell, self.column.root, settings=False)
        except InvalidSampleError as error:
            path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
            hint = f"; paths in the table are relative to {self.column.root}" if path else ""
            raise UserError(f"{self}: {f'{path}: ' if path else ''}{error}{hint}") from None
        except UnicodeDecodeError as error:  # parquet writers do not check text
            raise UserError(f"{self}: expected UTF-8 text ({error.reason})") from None


def image_bytes(value: Any, root: str | Path, *, settings: bool = True) -> bytes:
    """The encoded image of a table's value: bytes, ``{"bytes", "path"}``, a path or URL, or a list of one of these.

    Args:
        value: the value.
        root: base directory of paths, which they may not leave; see `clips.data.untrusted_files`.
        settings: whether the error names the setting of a data source that would allow it.

    Raises:
        InvalidSampleError: there is no image, or it is missing or forbidden.
    """
    directories = [Path(root)]
    if isinstance(value, list):
        if len(value) > 1:
            raise InvalidSampleError("several images, expected one")
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
        directories += _datasets_caches()
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise InvalidSampleError("no image")
    if value.startswith("data:") or (len(value) > _MAX_PATH and _BASE64.fullmatch(value[:_MAX_PATH])):
        raise InvalidSampleError("an image as base64 text, expected its bytes, path or URL")
    try:
        return read_untrusted(value, directories)
    except ForbiddenReferenceError as error:
        allowed_by = f" (data source's '{error.setting}')" if settings and error.setting else ""
        raise InvalidSampleError(f"image rejected: {error}{allowed_by}") from None
    except (OSError, ValueError, ImportError):
        hint = " (a Windows path, expected / instead of \\)" if "\\" in value else ""
        raise InvalidSampleError(f"missing image{hint}") from None


def _datasets_caches() -> list[Path]:
    """The directories into which ``datasets`` unpacks images, which it then names by absolute paths."""
    import datasets
    import huggingface_hub

    return [Path(datasets.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE)]
