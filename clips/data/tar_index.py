"""Random access to tar files by the offsets of their members, read once from the headers; and appending to them."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from clips.errors import UserError

MAX_MEMBER_BYTES = 256 * 2**20
"""Maximum size of a member that is read into memory; images and texts are smaller."""
_BLOCK = 512


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


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file to a tar that is open for writing."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def index_tar(path: str | Path, *, allow_cut: bool = False) -> TarIndex:
    """Read the headers of an uncompressed tar.

    Args:
        path: the tar.
        allow_cut: accept a truncated tar with at least one complete member.

    Raises:
        UserError: the file is missing, compressed, not a tar, or truncated.
    """
    path = Path(path)
    members: dict[str, tuple[int, int]] = {}
    end, problem = 0, None
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0:  # would cause an endless loop
                    raise tarfile.ReadError("a member of negative size")
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isreg() and member.offset_data + member.size <= size:
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: expected an uncompressed tar ({error.strerror or error})") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        problem = f"expected a whole, uncompressed tar; it is broken or truncated ({error})"
    if problem is None and size < end + _BLOCK:
        problem = "expected a whole tar; it is truncated (no end mark)"
    if problem is not None and not (allow_cut and members):
        raise UserError(f"{path}: {problem}")
    return TarIndex(path, members, cut=problem is not None)
