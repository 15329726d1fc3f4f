"""References to images: in a file, in a tar, or in a row of a table. Images are read on access.

Data, unlike a user's config, may name only files below an allowed directory, or at an allowed URL.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from clips.data.images import InvalidImageError, InvalidSampleError, decode_image
from clips.data.tar_index import TarIndex, index_tar, read_byte_range
from clips.errors import UserError

MAX_BYTES = 64 * 2**20  # of a download; photos of 100 megapixels have about 40 MB
TIMEOUT_SECONDS = 60  # of a download
_MAX_PATH = 1000  # characters, fewer than the smallest photo has in base64
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+")


def open_image(root: str | Path, reference: str) -> Image.Image:
    """The RGB image that ``reference`` names below ``root``: a file, or ``shard.tar/member`` inside a tar.

    Raises:
        UserError: the reference leaves ``root``, there is no such file or member, or it is not an image.
    """
    try:
        return decode_image(read_image_bytes(root, reference))
    except InvalidImageError as error:
        raise UserError(f"{Path(root) / reference}: {error}") from None


def read_image_bytes(root: str | Path, reference: str) -> bytes:
    """The bytes behind an image reference (see `open_image`)."""
    if not _is_inside(root, reference):
        raise UserError(f"'{reference}': expected a path inside {root}")
    tar, mark, member = reference.partition(".tar/")
    try:
        if mark:
            return _tar_members(Path(root) / f"{tar}.tar").read(member)
        return (Path(root) / reference).read_bytes()
    except PermissionError:
        raise UserError(f"{Path(root) / reference}: permission denied") from None
    except (OSError, ValueError):  # also a file as a parent, a name that is too long or has a null character
        raise UserError(f"{Path(root) / reference}: no such image") from None


def image_exists(root: str | Path, reference: str) -> bool:
    """Whether the file or member of an image reference (see `open_image`) exists."""
    if not _is_inside(root, reference):
        return False
    tar, mark, member = reference.partition(".tar/")
    try:
        return member in _tar_members(Path(root) / f"{tar}.tar").members if mark else (Path(root) / reference).is_file()
    except (UserError, OSError, ValueError):
        return False


def _is_inside(root: str | Path, reference: str) -> bool:
    """Whether a reference, relative to ``root`` or absolute, stays in it; symlinks inside are followed."""
    if ".." in Path(reference).parts:
        return False
    try:
        _resolve_path(reference, [Path(root)])
    except _ForbiddenReferenceError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _tar_members(path: Path) -> TarIndex:
    return index_tar(path)


class LazyImage(abc.ABC):
    """An image that can be read; ``str()`` gives its location for people."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The dataset's name of the image."""

    @abc.abstractmethod
    def read(self) -> bytes:
        """The encoded image.

        Raises:
            UserError: it is missing.
        """

    def exists(self) -> bool:
        """Whether its file exists; always true for an image at a known position within a file."""
        return True

    def where(self) -> str:
        """Its location with all names that help to find it, with which errors about it begin."""
        return str(self)

    def open(self) -> Image.Image:
        """The image in RGB.

        Raises:
            UserError: it is missing or invalid.
        """
        try:
            return decode_image(self.read())
        except InvalidImageError as error:
            raise UserError(f"{self.where()}: {error}") from None


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
    """The images of a table, with the base directory of paths."""

    rows: Any  # index → row, a dict with the column: bytes, {"bytes", "path"}, a path, or a list of these
    name: str
    table: str  # the file or directory, for messages
    root: Path


@dataclasses.dataclass(frozen=True, slots=True)
class TableImage(LazyImage):
    """An image in a row of a table."""

    column: ImageColumn
    row: int
    number: int | None = None  # within the row if the column contains lists
    label: str = ""  # by default the index of its row

    def __str__(self) -> str:
        index = "" if self.number is None else f"[{self.number}]"
        return f"{self.column.table} row {self.row} {self.column.name}{index}"

    @property
    def name(self) -> str:
        """See `LazyImage`."""
        return self.label or str(self.row)

    def where(self) -> str:
        """See `LazyImage`."""
        with contextlib.suppress(UserError):
            return f"{self}{named_path(self._cell())}"
        return str(self)

    def read(self) -> bytes:
        """See `LazyImage`."""
        cell = self._cell()
        try:
            return image_bytes(cell, self.column.root, settings=False)
        except InvalidSampleError as error:
            path = named_path(cell)
            hint = f"; paths in the table are relative to {self.column.root}" if path else ""
            raise UserError(f"{self}{path}: {error}{hint}") from None

    def _cell(self) -> Any:
        try:
            cell = self.column.rows[self.row][self.column.name]
        except InvalidSampleError as error:
            raise UserError(f"{self}: {error}") from None
        except UnicodeDecodeError as error:  # parquet writers do not check text
            raise UserError(f"{self}: expected UTF-8 text ({error.reason})") from None
        return cell[self.number] if isinstance(cell, list) and self.number is not None else cell


def named_path(cell: Any) -> str:
    """The path or URL in a table's value, in brackets for messages; empty without one."""
    path = cell.get("path") if isinstance(cell, dict) else cell
    is_path = isinstance(path, str) and 0 < len(path) <= _MAX_PATH and not path.startswith("data:")
    return f" ({path})" if is_path else ""


def image_bytes(value: Any, root: str | Path, *, settings: bool = True) -> bytes:
    """The encoded image of a table's value: bytes, ``{"bytes", "path"}``, a path or URL, or a list of one of these.

    Paths may not leave ``root``. With ``settings``, an error names the setting of a data source that would allow it.

    Raises:
        InvalidSampleError: there is no image, or it is missing or forbidden.
    """
    directories = [Path(root)]
    if isinstance(value, list):
        if len(value) > 1:
            raise InvalidSampleError("several images, expected one")
        value = value[0] if value else None
    if isinstance(value, dict):
        import datasets
        import huggingface_hub

        value = value.get("bytes") or value.get("path")
        # into these ``datasets`` unpacks images, which it then names by absolute paths
        directories += [Path(datasets.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE)]
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise InvalidSampleError("no image")
    if value.startswith("data:") or (len(value) > _MAX_PATH and _BASE64.fullmatch(value[:_MAX_PATH])):
        raise InvalidSampleError("an image as base64 text, expected its bytes, path or URL")
    try:
        return _read_untrusted(value, directories)
    except _ForbiddenReferenceError as error:
        allowed_by = f" (data source's '{error.setting}')" if settings and error.setting else ""
        raise InvalidSampleError(f"image rejected: {error}{allowed_by}") from None
    except (OSError, ValueError, ImportError):
        # without the path, so that samples with this fault are counted together
        hint = "" if "://" in value or not settings else " (image_root is the directory that its path starts from)"
        hint = " (a Windows path, expected / instead of \\)" if "\\" in value else hint
        raise InvalidSampleError(f"missing image{hint}") from None


class _ForbiddenReferenceError(Exception):
    """Data name a file that is not allowed; ``setting`` of a training data source would allow it."""

    def __init__(self, reason: str, setting: str | None = None) -> None:
        super().__init__(reason)
        self.setting = setting


def _read_untrusted(name: str, directories: list[Path]) -> bytes:
    """The content of a path (relative to the first directory), a ``file://`` URL, or one of http, https, s3, gs, hf.

    Paths must be in one of the directories; symlinks in these are followed. Raises OSError or ValueError for a file
    that cannot be found or reached.
    """
    scheme, mark, rest = name.partition("://")
    if name.startswith("pipe:"):
        raise _ForbiddenReferenceError("a command where an image is expected")
    if not mark:
        return _resolve_path(name, directories).read_bytes()
    if scheme == "file":
        return _resolve_path(urllib.request.url2pathname(urllib.parse.urlsplit(name).path), directories).read_bytes()
    if scheme in {"http", "https"}:
        return _download(name)
    # object stores, where the user's own credentials decide about access; "::" would be a chain of file systems
    if scheme in {"s3", "gs", "gcs", "hf"} and "::" not in rest:
        import fsspec

        with fsspec.open(name) as file:
            return _read_limited(file.read)
    raise _ForbiddenReferenceError("a URL with a scheme other than http, https, s3, gs, hf or file")


def _resolve_path(name: str, directories: list[Path]) -> Path:
    """The path of ``name``, resolved lexically, so that symlinks inside a directory stay usable."""
    path = Path(os.path.normpath(name))  # pathlib does not remove ".."
    if not path.is_absolute():
        if path.parts[:1] != (os.pardir,):
            return directories[0] / path
    # a directory behind a symlink has two names; abspath, unlike pathlib, removes ".."
    elif any(path.is_relative_to(name(at)) for at in directories for name in (os.path.abspath, os.path.realpath)):
        return path
    raise _ForbiddenReferenceError("a path outside the directory of images", "image_root")


def _download(url: str) -> bytes:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    system = HTTPFileSystem(client_kwargs={"timeout": aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)})
    try:
        with system.open(url, "rb", block_size=0) as file:
            return _read_limited(file.read)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(str(error)) from None


def _read_limited(read: Callable[[int], bytes]) -> bytes:
    content = bytearray()
    while len(content) <= MAX_BYTES and (piece := read(2**20)):
        content += piece
    if len(content) > MAX_BYTES:
        raise _ForbiddenReferenceError(f"a file of more than {MAX_BYTES // 2**20} MB")
    return bytes(content)
