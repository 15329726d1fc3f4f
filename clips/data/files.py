"""Files here or elsewhere: whatever fsspec reads, and the output of commands; shards from afar are kept in a cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from clips.errors import UserError, reason_of

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TRIES = 3
_PIPE = "pipe:"


def is_remote(path: str) -> bool:
    """Whether ``path`` is an address (``s3://…``) or a command (``pipe:aws s3 cp … -``) and no file of this machine."""
    return "://" in path or path.startswith(_PIPE)


def expand(path: str) -> list[str]:
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
    """The content of a file here or elsewhere. Raises OSError (or ValueError for an unknown protocol)."""
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
    """A folder of local copies of shards; the longest unused go when it grows too large.

    Several processes may share a folder: a copy appears whole or not at all.

    Args:
        folder: the folder.
        limit: bytes that it may hold; the newest copy stays in any case.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit

    def path(self, address: str) -> Path:
        """The local path of ``address``, copied if it is not here already; a file of this machine is itself.

        Raises:
            UserError: it cannot be copied, after three tries.
        """
        if not is_remote(address):
            return Path(address)
        name = address.rpartition("/")[2] if "://" in address else "shard.tar"
        return self.made(address, name, functools.partial(_fetch, address))

    def made(self, key: str, name: str, make: Callable[[Path], None]) -> Path:
        """The local path of what ``make`` writes to the path that it gets; called if that is not here already.

        Args:
            key: says what it is.
            name: ends the file's name.
            make: the same for the same key.

        Raises:
            UserError: it cannot be made, after three tries.
        """
        target = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}-{name}"
        try:
            os.utime(target)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{target.name}.lock"):  # among threads and processes; one copies for all
                if not target.exists():
                    _try(make, key, target)
                    self._make_room(target)
        return target

    def _make_room(self, newest: Path) -> None:
        found = []
        for path in self.folder.iterdir():
            if path.name.startswith("."):  # a lock
                continue
            with contextlib.suppress(FileNotFoundError):  # another process makes room as well
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            if path != newest and not path.name.endswith(".partial"):
                path.unlink(missing_ok=True)
                total -= size


def _try(make: Callable[[Path], None], key: str, target: Path) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    for attempt in range(1, _TRIES + 1):
        try:
            make(partial)
            partial.replace(target)
            return
        except Exception as error:  # file systems raise errors of their own
            partial.unlink(missing_ok=True)
            if attempt == _TRIES:
                raise UserError(f"{key}: cannot be read ({reason_of(error)})") from None
            time.sleep(attempt)


def _fetch(address: str, partial: Path) -> None:
    if address.startswith(_PIPE):
        with partial.open("wb") as file:
            _run(address, stdout=file)
        return
    import fsspec

    system, inside = fsspec.core.url_to_fs(address)
    system.get_file(inside, str(partial))
