"""Local and remote files: any fsspec URL, and the output of commands; remote shards are copied into a cache."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from clips.core.artifact import log_info
from clips.data.download_process import DownloadProcess
from clips.errors import UserError, error_reason

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_OURS = re.compile(r"[0-9a-f]{16}-")  # begins the names of a cache's files
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TRIES = 3
_MORE_TRIES = 12  # of a cache that has worked before: about seven minutes
_LONGEST_PAUSE, _STALE = 60.0, 86400.0  # seconds between retries; age at which an unfinished copy counts as abandoned
_PIPE = "pipe:"
_PARTIAL = ".partial"


class UnreachableError(UserError):
    """A remote file cannot be reached now, which implies nothing about its content."""


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL (``s3://…``) or a command (``pipe:aws s3 cp … -``) and no local file."""
    return "://" in path or path.startswith(_PIPE)


def expand_brace_ranges(path: str) -> list[str]:
    """``a/{08..11}.tar`` → a/08.tar … a/11.tar, as many ranges as there are; any other path by itself."""
    pieces = _RANGE.split(path)
    ranges = [
        [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        for first, last in zip(pieces[1::3], pieces[2::3], strict=True)
    ]
    texts = pieces[::3]
    return [
        "".join(itertools.chain(*itertools.zip_longest(texts, numbers, fillvalue="")))
        for numbers in itertools.product(*ranges)
    ]


def read_file(path: str) -> bytes:
    """The content of a local or remote file. Raises OSError (or ValueError for an unknown protocol)."""
    if not is_remote(path):
        return Path(path).read_bytes()
    if path.startswith(_PIPE):
        return _run(path, stdout=subprocess.PIPE)
    import fsspec

    with fsspec.open(path) as file:
        return file.read()


def _run(address: str, stdout: Any) -> bytes:
    """What a command writes; OSError where it fails."""
    done = subprocess.run(address.removeprefix(_PIPE), shell=True, stdout=stdout, check=False)
    if done.returncode:
        raise OSError(f"the command ended with status {done.returncode}")
    return done.stdout


class ShardCache:
    """A directory of local copies of shards; the least recently used are deleted when it grows too large.

    Several processes may share a directory: a copy appears atomically.

    Args:
        folder: the directory.
        limit: maximum size in bytes; the newest copy always stays.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        self.downloads: DownloadProcess | None = None  # of those that training would do itself
        self._has_worked = False

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"downloads": None}

    def path(self, address: str) -> Path:
        """The local path of ``address``, copied if missing; a local file is returned unchanged.

        Raises:
            UnreachableError: it cannot be copied, after three tries; after many if earlier files could be.
            UserError: it does not exist.
        """
        if not is_remote(address):
            return Path(address)
        name = address.rpartition("/")[2] if "://" in address else "shard.tar"
        return self.made(address, name, functools.partial(_fetch, address), remote=True)

    def made(self, key: str, name: str, make: Callable[[Path], None], *, remote: bool = False) -> Path:
        """The local path of the file that ``make`` writes to a given path; called only if the file is missing.

        Args:
            key: identifies the content.
            name: suffix of the file's name.
            make: deterministic for a key.
            remote: ``make`` downloads and can be pickled, so that it may run in ``downloads``.

        Raises:
            UnreachableError: it cannot be made, after three tries; after many if earlier files could be.
            UserError: it does not exist, or whatever ``make`` raises of this kind.
        """
        if remote and self.downloads is not None:
            make = functools.partial(self.downloads.run, make)
        target = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name}"
        try:
            os.utime(target)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{target.name}.lock"):  # among threads and processes; one copies for all
                if not target.exists():
                    _try(make, key, target, _MORE_TRIES if self._has_worked else _TRIES)
                    self._make_room(target)
        self._has_worked = True
        return target

    def _make_room(self, newest: Path) -> None:
        found = []
        for path in filter(_is_ours, self.folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another process is freeing space as well
                facts = path.stat()
                if path.suffix != _PARTIAL:
                    found.append((facts.st_mtime, facts.st_size, path))
                elif time.time() - facts.st_mtime > _STALE:
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


def _is_ours(path: Path) -> bool:
    return _OURS.match(path.name) is not None and path.is_file()


def _try(make: Callable[[Path], None], key: str, target: Path, tries: int) -> None:
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{_PARTIAL}")
    for attempt in range(tries):
        try:
            make(partial)
            partial.replace(target)
            return
        except (UserError, FileNotFoundError) as error:  # trying again would not help
            partial.unlink(missing_ok=True)
            raise error if isinstance(error, UserError) else UserError(f"{key}: no such file") from None
        except Exception as error:  # file systems raise errors of their own
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _NO_PLACE:
                raise
            if attempt + 1 == tries:
                raise UnreachableError(f"{key}: cannot be read ({error_reason(error)})") from None
            if attempt + 1 == _TRIES:
                log_info(f"{key}: cannot be read ({error_reason(error)}); trying again for some minutes")
            time.sleep(min(2.0**attempt, _LONGEST_PAUSE))


def _fetch(address: str, partial: Path) -> None:
    if address.startswith(_PIPE):
        with partial.open("wb") as file:
            _run(address, stdout=file)
        return
    import fsspec

    system, inside = fsspec.core.url_to_fs(address)
    system.get_file(inside, str(partial))
