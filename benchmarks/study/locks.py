"""File locks: one runner in a study's directory, one job on each step. The kernel frees the locks of dead processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from clips.core.artifact import log_info, writable_directory
from clips.errors import UserError

LOCK = ".lock"
_POLL_SECONDS = 0.2


def acquire(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file, which is created if missing; the descriptor that holds the lock, or None if another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock the study's directory; ``wait`` until another runner has ended, instead of raising.

    Raises:
        UserError: another runner is at work there, or the directory cannot be written.
    """
    path = writable_directory(output) / LOCK
    descriptor = acquire(path)
    if descriptor is None:
        time.sleep(_POLL_SECONDS)  # `is_locked` of another process holds the lock for an instant
        descriptor = acquire(path)
    if descriptor is None:
        owner = path.read_text(encoding="utf-8").strip() or "unknown"
        who = f"{output}: another runner (process {owner}) is at work here"
        if not wait:
            raise UserError(f"{who}; end it, or wait for it with --wait_for_lock true")
        log_info(f"{who}; waiting")
        descriptor = acquire(path, wait=True)
    assert descriptor is not None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
