"""Random access to tar files by the offsets of their members, read once from the headers; and appending to them."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from clips.errors import UserError
from clips.text_files import reject_named_pipe

MAX_MEMBER_BYTES = 256 * 2**20
"""Maximum size of a member that is read into memory; images and texts are smaller."""
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CLUTTER = {"readme", "readme.md", "readme.txt", "thumbs.db"}


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The regular files in one uncompressed tar.

    Args:
        path: the tar.
        members: name → (offset, size) in bytes, in the order of the tar.
        cut: whether the tar is truncated; ``members`` are the complete ones.
    """

    path: Path
    members: Mapping[str, tuple[int, int]]
    cut: bool = False

    def read(self, name: str) -> bytes:
        """The content of member ``name``. Raises FileNotFoundError."""
        try:
            offset, size = self.members[name]
        except KeyError:
            raise FileNotFoundError(f"{self.path}/{name}") from None
        return read_byte_range(self.path, offset, size)


def read_byte_range(path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset``. Raises OSError for more than ``MAX_MEMBER_BYTES``."""
    if size > MAX_MEMBER_BYTES:
        raise OSError(f"{size / 2**20:,.0f} MB, expected at most {MAX_MEMBER_BYTES // 2**20}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def is_clutter(name: str) -> bool:
    """Whether a file or member is no data but lies beside them: hidden (``._0.jpg``), a README, in ``__MACOSX``."""
    path = PurePosixPath(name)
    return path.name.startswith(".") or "__MACOSX" in path.parts or path.name.lower() in _CLUTTER


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to a tar that is open for writing."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def index_tar(path: str | Path, *, allow_cut: bool = False) -> TarIndex:
    """Read the headers of an uncompressed tar, or of several concatenated ones. A hard link has its file's bytes.

    Args:
        path: the tar.
        allow_cut: accept a damaged or truncated tar with at least one complete member.

    Raises:
        UserError: the file is missing, compressed, not a tar, truncated, or two of its members have the same name.
    """
    path = Path(path)
    reject_named_pipe(path)
    members: dict[str, tuple[int, int]] = {}
    problem = None
    try:
        with path.open("rb") as stream:
            start: int | None = 0
            while start is not None:
                stream.seek(start)
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    for member in tar:
                        _add(members, member, path)
                    end = tar.offset
                start = _find_next_tar(stream, end)
            size = stream.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: expected an uncompressed tar ({error.strerror or error})") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        problem = f"expected a whole, uncompressed tar; it is broken or truncated ({error})"
        size = path.stat().st_size
    members = {name: (offset, length) for name, (offset, length) in members.items() if offset + length <= size}
    if problem is not None and not (allow_cut and members):
        raise UserError(f"{path}: {problem}")
    return TarIndex(path, members, cut=problem is not None)


def _add(members: dict[str, tuple[int, int]], member: tarfile.TarInfo, path: Path) -> None:
    if member.size < 0:  # would cause an endless loop
        raise tarfile.ReadError("a member of negative size")
    name = member.name.removeprefix("./")
    if name in members and (member.isreg() or member.islnk()) and not is_clutter(name):
        raise UserError(f"{path}: expected different names, got {name} twice")
    if member.isreg():
        members[name] = (member.offset_data, member.size)
    elif member.islnk() and (target := member.linkname.removeprefix("./")) in members:
        members[name] = members[target]


def _find_next_tar(stream: BinaryIO, end: int) -> int | None:
    """The start of the tar after the end mark at ``end``; None if only zeros follow. Raises ReadError for no end mark.

    tarfile ends silently at any header but the first that it cannot read.
    """
    stream.seek(end)
    mark = stream.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise tarfile.ReadError("no end mark")
    if mark != _ZEROS:
        raise tarfile.ReadError("invalid header")
    position = end + _BLOCK
    while content := stream.read(2**20):
        if rest := content.lstrip(b"\0"):
            return position + (len(content) - len(rest)) // _BLOCK * _BLOCK
        position += len(content)
    return None
