"""One run at a time in an output. The kernel frees the lock of a dead process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from clips.core.artifact import log_info, write_errors_as_user_errors
from clips.core.durable import make_directory
from clips.errors import UserError

_held: set[int] = set()


@contextlib.contextmanager
def lock_output(path: Path, output: str | Path) -> Iterator[None]:
    """Hold the lock of ``output``.

    Args:
        path: the lock's file, which is deleted at the end.
        output: what a run writes.

    Raises:
        UserError: another run holds the lock, or its file cannot be written.
    """
    lock = _acquire(path, output)
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        path.unlink(missing_ok=True)
        os.close(lock)


def _acquire(path: Path, output: str | Path) -> int:
    while True:
        with write_errors_as_user_errors(output):
            make_directory(path.parent)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"output: another run is writing {output}") from None
        except OSError as error:  # network file systems may be mounted without locks
            log_info(f"{path}: no locks here ({error.strerror}); ensure that no other run writes {output}")
            return lock
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)  # its owner has just ended and deleted it


def _close_in_child() -> None:
    """Forked workers outlive a killed process for seconds, in which they would hold its lock."""
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
