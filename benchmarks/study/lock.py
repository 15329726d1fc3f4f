"""One runner at a time in a study's directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from benchmarks.output import writable_directory
from clips.core.artifact import say
from clips.errors import UserError

_LOCK = ".lock"


def runner_lives(output: Path) -> bool:
    """Whether the process that last held the study's lock is on this machine; the lock itself is not touched."""
    try:
        os.kill(int((output / _LOCK).read_text(encoding="utf-8").strip()), 0)
    except (OSError, ValueError) as error:
        return isinstance(error, PermissionError)  # it is there, and somebody else's
    return True


@contextlib.contextmanager
def locked(output: Path, *, wait: bool = False) -> Iterator[int]:
    """Hold the study's directory; yields the lock's file descriptor, for children to share.

    Args:
        output: the directory.
        wait: for who is at work there, instead of refusing.

    Raises:
        UserError: another runner, or a step that a killed runner left behind, is at work there; or it cannot be
            written.
    """
    path = writable_directory(output) / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # as the umask has it
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = path.read_text(encoding="utf-8").strip() or "unknown"
            who = f"{output}: another runner (process {owner}) or a step it left behind is at work here"
            if not wait:
                raise UserError(f"{who}; end it, or wait for it with --wait true") from None
            say(f"{who}; waiting")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
