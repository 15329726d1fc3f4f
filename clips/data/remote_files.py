"""Local and remote files: fsspec URLs and the output of commands; remote shards are copied into a cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import math
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, SoftFileLock, Timeout

from clips.core import durable
from clips.errors import UserError, error_reason
from clips.safe_text import log_info

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_NAME = re.compile(r"[^?\s'\"]+")  # of a file in a command, which may continue after it
_CACHE_NAME = re.compile(r"[0-9a-f]{16}-")  # prefix of the names of a cache's files
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NUM_TRIES = 3
_MAX_TRIES = 12  # after earlier successes; takes about seven minutes
_MAX_PAUSE, _STALE = 60.0, 86400.0  # seconds: between retries; age of abandoned partial copies
_PIPE = "pipe:"
_PARTIAL = ".partial"
INDEX_SUFFIX, COUNTS_SUFFIX = ".index", ".counts"
"""Of files with what was read in shards, which have a room of their own in a cache."""
_INDEXES = 0.1  # of a cache's limit, in addition
_WAITING = 60.0  # seconds, after which a process says for what it waits
unfinished: set[Path] = set()
"""The files that this process is writing; one that ends without waiting for its threads deletes them."""


class UnreachableError(UserError):
    """A remote file cannot be reached now; it may be valid."""


class BadCopyError(Exception):
    """What was downloaded is not the file: a login page, nothing, or a part of it."""


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL (``s3://…``) or a command (``pipe:aws s3 cp … -``) and no local file."""
    return "://" in path or path.startswith(_PIPE)


def file_name(path: str) -> str:
    """The file name of a path, URL or command: ``00.tar`` of ``https://host/00.tar?token=1``."""
    if not is_remote(path):
        return path.rpartition("/")[2]
    name = path.partition("?")[0].rpartition("/")[2]  # a query may contain slashes
    if path.startswith(_PIPE):
        name = match[0] if (match := _NAME.match(name)) else ""
    return name or path.rpartition("/")[2]


def sibling(path: str, name: str) -> str:
    """The file ``name`` next to that of a path or URL, with the same query: a server checks the token for each."""
    address, mark, query = path.partition("?") if "://" in path else (path, "", "")
    return f"{address.rpartition('/')[0] or '.'}/{name}{mark}{query}"


def expand_brace_ranges(path: str) -> list[str]:
    """``a/{08..11}.tar`` → a/08.tar … a/11.tar, as a shell does, with any number of ranges; other paths unchanged.

    A range may fall; with a leading zero all numbers have as many digits as the longer end.
    """
    pieces, ranges = _RANGE.split(path), list[list[str]]()
    for first, last in zip(pieces[1::3], pieces[2::3], strict=True):
        width = max(len(first), len(last)) if any(end != str(int(end)) for end in (first, last)) else 1
        step = 1 if int(first) <= int(last) else -1
        ranges.append([str(number).zfill(width) for number in range(int(first), int(last) + step, step)])
    texts = pieces[::3]
    return [
        "".join(itertools.chain(*itertools.zip_longest(texts, numbers, fillvalue="")))
        for numbers in itertools.product(*ranges)
    ]


def local_files(path: str) -> list[Path]:
    """The files or the directory of a ``path`` with or without ``{000..127}``.

    Raises:
        UserError: one of them does not exist, or is not local.
    """
    if is_remote(path):
        raise UserError(f"{path}: expected local files; download them first")
    files = [Path(file) for file in expand_brace_ranges(path)]
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: no such file or directory")
    return files


def read_file(path: str) -> bytes:
    """The content of a local or remote file. Raises OSError (or ValueError for an unknown protocol).

    A remote file that cannot be read for a moment, as with status 503, is tried again.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    if path.startswith(_PIPE):
        return _run_command(path, stdout=subprocess.PIPE)
    import fsspec

    system, inside = fsspec.core.url_to_fs(path)
    for attempt in range(_NUM_TRIES):
        try:
            content: bytes = system.cat_file(inside)
            return content
        except FileNotFoundError:
            raise
        except Exception as error:  # file systems raise errors of their own
            if attempt + 1 == _NUM_TRIES:
                raise OSError(error_reason(error)) from None
            time.sleep(2.0**attempt)
    raise AssertionError


def _run_command(url: str, stdout: Any) -> bytes:
    result = subprocess.run(url.removeprefix(_PIPE), shell=True, stdout=stdout, check=False)
    if result.returncode:
        raise OSError(f"the command ended with status {result.returncode}")
    return result.stdout


class ShardCache:
    """The cache of shards, and of what is made of them and of other data, on the local disk.

    Processes may share its directory: files appear atomically. ``limit`` is the maximum size in bytes of the copies,
    and that of indexes is a tenth of it; the least recently used files are deleted first, and the newest one always
    stays.
    """

    def __init__(self, directory: Path, limit: float) -> None:
        self.directory, self.limit = directory, limit
        self._has_worked = False
        self._unmeasured = math.inf  # bytes made since this process has last measured the directory

    def target(self, key: str, name: str) -> Path:
        """Where `made` has the file of this key and name."""
        return self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name}"

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Lock ``name`` for all processes that share the directory; a long wait is logged.

        The system frees the lock of a process that has ended; without ``flock`` (Lustre mounted without it), filelock
        does if it was one of this host.

        Raises:
            OSError, NotImplementedError: the file system has no locks.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock, started = FileLock(self.directory / f".{name}.lock"), time.monotonic()
        pause = _WAITING
        while True:
            try:
                with lock.acquire(timeout=pause):
                    yield
                return
            except Timeout:
                waited = time.monotonic() - started
                dead = f"; if its host is dead, remove {lock.lock_file}" if isinstance(lock, SoftFileLock) else ""
                made = self.directory / name
                log_info(f"waiting for another process that makes {made}, {waited:,.0f} s so far{dead}")
                pause = min(2 * pause, 600.0)

    def path(self, url: str, check: Callable[[Path], None]) -> Path:
        """The local path of ``url``, downloaded if missing; a local path is returned unchanged. Raises as `made`.

        ``check`` raises `BadCopyError` for a download that is not the file, which then does not enter the cache.
        """
        if not is_remote(url):
            return Path(url)

        def make(partial: Path) -> None:
            download_file(url, partial)
            check(partial)

        return self.made(url, file_name(url) if "://" in url else "shard.tar", make)

    def made(self, key: str, name: str, make: Callable[[Path], None], *, retry: bool = True) -> Path:
        """The local path of the file that ``make`` writes to a given path; called only if the file is missing.

        ``key`` identifies the content, ``name`` is the suffix of the file's name.

        Raises:
            UnreachableError: ``make`` failed 3 times; 12 times if this cache has worked before; once without ``retry``.
            OSError: the cache cannot be written; or, without ``retry``, ``make`` raises it.
            UserError: the file does not exist, ``make`` raises a UserError, or 3 times a `BadCopyError`.
        """
        target = self.target(key, name)
        with contextlib.suppress(OSError):  # missing; or only to be read, as another user's
            os.utime(target)  # its last use, by which `_make_room` chooses
        if not target.exists():
            with self.lock(target.name):  # one thread or process makes it for all
                if not target.exists():
                    tries = _MAX_TRIES if self._has_worked else _NUM_TRIES
                    _try(make, key, target, tries if retry else 1)
                    self._unmeasured += target.stat().st_size
                    room = self.limit * (_INDEXES if target.suffix in (INDEX_SUFFIX, COUNTS_SUFFIX) else 1)
                    if self._unmeasured > room / 100:  # not after each of thousands of small files
                        self._make_room(target)
                        self._unmeasured = 0
        self._has_worked = True
        return target

    def _make_room(self, newest: Path) -> None:
        files: dict[bool, list[tuple[float, int, Path]]] = {True: [], False: []}  # whether it is an index
        for path in self.directory.iterdir():
            if not (_CACHE_NAME.match(path.name) and path.is_file()):
                continue
            with contextlib.suppress(FileNotFoundError):  # another process is freeing space as well
                status = path.stat()
                if path.suffix != _PARTIAL:
                    files[path.suffix in (INDEX_SUFFIX, COUNTS_SUFFIX)].append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > _STALE:
                    path.unlink()
        for is_index, group in files.items():
            total, limit = sum(size for _, size, _ in group), self.limit * (_INDEXES if is_index else 1)
            for _, size, path in sorted(group):
                if total <= limit:
                    break
                if path != newest:
                    path.unlink(missing_ok=True)
                    total -= size


def _try(make: Callable[[Path], None], key: str, target: Path, tries: int) -> None:
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{_PARTIAL}")
    unfinished.add(partial)
    try:
        for attempt in range(tries):
            try:
                make(partial)
                durable.replace(partial, target)  # a shard of zeros would be invalid samples in all later runs
                return
            except (UserError, FileNotFoundError) as error:  # retrying would not help
                raise error if isinstance(error, UserError) else UserError(f"{key}: no such file") from None
            except Exception as error:  # file systems raise errors of their own
                if isinstance(error, OSError) and (tries == 1 or error.errno in _NO_SPACE):
                    raise
                if isinstance(error, BadCopyError) and attempt + 1 >= min(tries, _NUM_TRIES):
                    raise UserError(f"{key}: {error}") from None
                if attempt + 1 == tries:
                    raise UnreachableError(f"{key}: cannot be read ({error_reason(error)})") from None
                if attempt + 1 == _NUM_TRIES:
                    log_info(f"{key}: cannot be read ({error_reason(error)}); retrying for some minutes")
                time.sleep(min(2.0**attempt, _MAX_PAUSE))
    finally:
        partial.unlink(missing_ok=True)
        unfinished.discard(partial)


def download_file(url: str, partial: Path) -> None:
    """Write the file that a URL or ``pipe:`` command names to ``partial``."""
    if url.startswith(_PIPE):
        with partial.open("wb") as file:
            _run_command(url, stdout=file)
        return
    import fsspec

    system, inside = fsspec.core.url_to_fs(url)
    system.get_file(inside, str(partial))
