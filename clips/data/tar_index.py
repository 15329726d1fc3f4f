"""Random access to tar files by the offsets of their members, read once from the headers; and appending to them."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from clips.errors import UserError
from clips.text_files import reject_named_pipe

MAX_MEMBER_BYTES = 256 * 2**20
"""Maximum size of a member that is read into memory; images and texts are smaller."""
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CLUTTER = {"readme", "readme.md", "readme.txt", "thumbs.db"}
_NUMBERS = ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (148, 156), (329, 337), (337, 345))
"""The octal fields of a header: mode, user, group, size, time, checksum, device (2)."""
_CHECKSUM = slice(148, 156)
_PAX_TIMES = re.compile(rb"(?:\d+ [acm]time=[-+.\de]*\n)+")  # all that webdataset's writer states in pax headers
_MAX_PAX = 4096  # bytes
_CHECKED_AT_ONCE = 4096  # headers


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
    folder, _, file = name.rpartition("/")
    return file.startswith(".") or file.lower() in _CLUTTER or "__MACOSX" in folder.split("/") or file == "__MACOSX"


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
    problem = None
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            members = _plain_members(stream)
            if members is None:
                members = {}
                start: int | None = 0
                while start is not None:
                    stream.seek(start)
                    with tarfile.open(fileobj=stream, mode="r:") as tar:
                        for member in tar:
                            _add(members, member, path)
                        end = tar.offset
                    start = _find_next_tar(stream, end)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: expected an uncompressed tar ({error.strerror or error})") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        problem = f"expected a whole, uncompressed tar; it is broken or truncated ({error})"
    members = {name: span for name, span in (members or {}).items() if sum(span) <= size}
    if problem is not None and not (allow_cut and members):
        raise UserError(f"{path}: {problem}")
    return TarIndex(path, members, cut=problem is not None)


def _plain_members(stream: BinaryIO) -> dict[str, tuple[int, int]] | None:
    """The members of a whole tar of regular files, read ten times as fast as by ``tarfile``.

    None if ``tarfile`` has to judge: for links, long names, sparse files, numbers in base 256, two files of one name,
    and for anything damaged. A pax header may state times, as those of webdataset's writer do.
    """
    members: dict[str, tuple[int, int]] = {}
    headers: list[bytes] = []  # whose numbers and checksums are still to be checked
    offset, is_extended = 0, False
    while True:
        stream.seek(offset)
        header = stream.read(_BLOCK)
        at_end = header == _ZEROS
        if at_end or len(headers) == _CHECKED_AT_ONCE:
            if not _are_plain(headers):
                return None
            headers.clear()
        if at_end:
            following = None if is_extended else _find_next_tar(stream, offset)
            if following is None:
                return None if is_extended else members
            offset = following
            continue
        kind, digits = header[156:157], header[124:136].rstrip(b"\0 ")
        if len(header) < _BLOCK or not digits.isdigit() or b"8" in digits or b"9" in digits:
            return None
        headers.append(header)
        start, size = offset + _BLOCK, int(digits, 8)
        offset = start + -(-size // _BLOCK) * _BLOCK
        if kind == b"x" and not is_extended and size <= _MAX_PAX:
            records = stream.read(size)
            lines = records.splitlines(keepends=True)
            if not _PAX_TIMES.fullmatch(records) or any(int(line.split()[0]) != len(line) for line in lines):
                return None
            is_extended = True
            continue
        name = header[:100].partition(b"\0")[0]
        if kind not in (b"0", b"\0") or not name or name.endswith(b"/"):
            return None
        if header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        text = name.decode(tarfile.ENCODING, "surrogateescape").removeprefix("./")
        if text in members:
            return None
        members[text] = (start, size)
        is_extended = False


def _are_plain(headers: Sequence[bytes]) -> bool:
    """Whether the numbers in headers are octal digits and then blanks or zeros, and the checksums right."""
    rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, _BLOCK)
    for first, last in _NUMBERS:
        field = rows[:, first:last]
        is_digit = (field >= ord("0")) & (field <= ord("7"))
        is_blank = (field == 0) | (field == ord(" "))
        if not (is_digit | is_blank).all() or (is_blank[:, :-1] & is_digit[:, 1:]).any():
            return False
    stated = np.zeros(len(rows), np.int64)
    for column in rows[:, _CHECKSUM].T.astype(np.int64):
        stated = np.where(column >= ord("0"), 8 * stated + column - ord("0"), stated)
    sums = rows.sum(1, dtype=np.int64) - rows[:, _CHECKSUM].sum(1, dtype=np.int64)
    blanks = ord(" ") * (_CHECKSUM.stop - _CHECKSUM.start)  # for which the checksum itself counts
    return bool((sums + blanks == stated).all())


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
