"""File locks: one runner in a study's directory, one job on each step. The kernel frees the locks of dead processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.study.step_state import read_record, step_directory
from clips.core.artifact import log_info, writable_directory
from clips.errors import UserError

LOCK = ".lock"
_POLL_SECONDS = 0.2


def acquire(path: Path, *, wait: bool = False) -> int | None:
    """Lock a file, which is created if missing; the descriptor that holds the lock, or None if another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_at_work(output: Path, name: str) -> bool:
    """Whether a process holds the lock of a step, on this machine or on another one with the same file system."""
    return _is_locked(step_directory(output, name) / LOCK)


def runner_lives(output: Path) -> bool:
    """Whether a runner holds the lock of a study, on this machine or on another one with the same file system."""
    return _is_locked(output / LOCK)


def _is_locked(path: Path) -> bool:
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
    """Lock the study's directory; ``wait`` until other processes have ended, instead of raising.

    Raises:
        UserError: another runner is at work there, or a step that a killed runner left behind on this machine; or the
            directory cannot be written.
    """
    path = writable_directory(output) / LOCK
    descriptor, is_logged = acquire(path), False
    if descriptor is None:  # `runner_lives` of another process holds the lock for an instant
        time.sleep(_POLL_SECONDS)
        descriptor = acquire(path)
    while descriptor is None or left_behind(output):
        owner = path.read_text(encoding="utf-8").strip() or "unknown"
        who = f"{output}: another runner (process {owner}) or a step it left behind is at work here"
        if not wait:
            if descriptor is not None:
                os.close(descriptor)
            raise UserError(f"{who}; end it, or wait for it with --wait_for_lock true")
        if not is_logged:
            log_info(f"{who}; waiting")
        is_logged = True
        time.sleep(_POLL_SECONDS)
        descriptor = acquire(path) if descriptor is None else descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def left_behind(output: Path, *, jobs: bool = False) -> list[str]:
    """The steps at work on this machine; with ``jobs`` those that run as jobs of a cluster."""
    names = [path.parent.name for path in (output / "steps").glob(f"*/{LOCK}")]
    records = {name: read_record(output, name) for name in names if is_at_work(output, name)}
    return [name for name, record in records.items() if bool(record and record.job) is jobs]
