"""Random access into tar files: where each member's bytes lie, found once by reading the headers."""

from __future__ import annotations

import dataclasses
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from clips.errors import UserError

_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class TarIndex:
    """The regular files in one uncompressed tar.

    Args:
        path: the tar.
        members: name → (offset, size) in bytes, in the order of the tar.
    """

    path: Path
    members: Mapping[str, tuple[int, int]]

    def read(self, name: str) -> bytes:
        """The content of member ``name``; FileNotFoundError where there is none."""
        try:
            offset, size = self.members[name]
        except KeyError:
            raise FileNotFoundError(f"{self.path}/{name}") from None
        return read_span(self.path, offset, size)


def read_span(path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes of a file from ``offset`` on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def index_tar(path: str | Path) -> TarIndex:
    """Read the headers of an uncompressed tar.

    Raises:
        UserError: the file is missing, compressed, not a tar, or cut short.
    """
    path = Path(path)
    members: dict[str, tuple[int, int]] = {}
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.isreg():
                    members[member.name.removeprefix("./")] = (member.offset_data, member.size)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: expected an uncompressed tar ({error.strerror or error})") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(f"{path}: expected a whole, uncompressed tar; it is broken or cut short ({error})") from None
    if path.stat().st_size < end + _BLOCK:
        raise UserError(f"{path}: expected a whole tar; it is cut short (no end mark)")
    return TarIndex(path, members)
