"""Hashes of files' contents, remembered in the user's cache: a file is read once, until it may have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from clips.errors import UserError

FileStamp = tuple[int, int, int, int]
"""Size, modification time, inode, change time (ns)."""
_SETTLED_NS = 2_000_000_000
"""A file changed more recently is not remembered: with a file system's coarse clock, another change may be unseen."""

_MANY_BYTES = 10e9  # reading them takes so long that the user is told


def cache_directory(kind: str) -> Path:
    """``clips/KIND`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clips" / kind


def file_stamp(path: str | Path) -> FileStamp:
    """What changes with a file's content; equal stamps mean equal contents.

    Size and modification time are not enough: ``rsync --times`` and ``cp -p`` set the time of the file that they copy.
    No program can set the change time.
    """
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def file_hash(path: str | Path) -> str:
    """SHA-256 of one file's content. Raises UserError if it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def content_hashes(files: Iterable[str | Path]) -> dict[Path, str]:
    """SHA-256 of each file's content, in the given order; files with a remembered stamp are not read.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    paths = [Path(file) for file in files]
    memories = {parent: _read_memory(parent) for parent in {path.parent for path in paths}}
    read, found, stamps = set[Path](), dict[Path, str](), dict[Path, FileStamp]()
    for path in paths:
        try:
            stamps[path] = file_stamp(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    unread = [path for path in stamps if memories[path.parent].get(path.name, [])[:-1] != [*stamps[path]]]
    size = sum(stamps[path][0] for path in unread)
    if size > _MANY_BYTES:
        print(f"hashing {size / 1e9:,.0f} GB in {len(unread):,} files, once for each content", file=sys.stderr)
    for path, stamp in stamps.items():
        known = memories[path.parent].get(path.name, [])
        if known[:-1] == [*stamp]:
            found[path] = str(known[-1])
            continue
        started = time.time_ns()
        found[path] = file_hash(path)
        if started - stamp[-1] > _SETTLED_NS:
            memories[path.parent][path.name] = [*stamp, found[path]]
            read.add(path.parent)
    for parent in read:
        _write_memory(parent, memories[parent])
    return found


def _memory_path(directory: Path) -> Path:
    """The memory of a directory, found by inode: artifacts are hashed in a temporary directory, which is renamed."""
    status = directory.stat()
    key = hashlib.sha256(f"{status.st_dev} {status.st_ino}".encode()).hexdigest()
    return cache_directory("hashes") / key[:2] / f"{key}.json"


def _read_memory(directory: Path) -> dict[str, list[int | str]]:
    """File name → its stamp and hash; empty if it is missing or damaged."""
    try:
        return {name: list(known) for name, known in json.loads(_memory_path(directory).read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_memory(directory: Path, known: Mapping[str, list[int | str]]) -> None:
    with contextlib.suppress(OSError):  # without a writable cache, files are read each time
        path = _memory_path(directory)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        partial.write_text(json.dumps(known), encoding="utf-8")
        partial.replace(path)
