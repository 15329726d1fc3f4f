"""File locks: one runner in a study's directory, one job on each step. The kernel frees those of the dead."""

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
    """Lock a file, made if it is not there; the descriptor that holds it, None where another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # as the umask has it
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
    """Whether a process is at work on a step, also on another machine that shares its files."""
    path = step_directory(output, name) / LOCK
    if not path.is_file():
        return False
    descriptor = acquire(path)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def runner_lives(output: Path) -> bool:
    """Whether the process that holds the study's lock is on this machine; the lock itself is not touched."""
    try:
        os.kill(int((output / LOCK).read_text(encoding="utf-8").strip()), 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)  # it is there, and somebody else's
    return True


@contextlib.contextmanager
def locked(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the study's directory.

    Args:
        output: the directory.
        wait: for who is at work there, instead of refusing.

    Raises:
        UserError: another runner, or a step that a killed runner left behind on this machine, is at work there; or it
            cannot be written.
    """
    path = writable_directory(output) / LOCK
    descriptor, told = acquire(path), False
    while descriptor is None or left_behind(output):
        owner = path.read_text(encoding="utf-8").strip() or "unknown"
        who = f"{output}: another runner (process {owner}) or a step it left behind is at work here"
        if not wait:
            if descriptor is not None:
                os.close(descriptor)
            raise UserError(f"{who}; end it, or wait for it with --wait_for_lock true")
        if not told:
            log_info(f"{who}; waiting")
        told = True
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
    """The steps at work on this machine; with ``jobs`` those that are jobs of a cluster."""
    names = [path.parent.name for path in (output / "steps").glob(f"*/{LOCK}")]
    records = {name: read_record(output, name) for name in names if is_at_work(output, name)}
    return [name for name, record in records.items() if bool(record and record.job) is jobs]
