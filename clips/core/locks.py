"""One run at a time writes an output: locks that the kernel frees when their process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from clips.core import durable
from clips.core.durable import write_errors_as_user_errors
from clips.errors import UserError
from clips.safe_text import log_info

_held_locks: set[int] = set()


@contextlib.contextmanager
def lock_output(path: Path, output: str | Path) -> Iterator[None]:
    """Hold the lock of ``output``, which the kernel frees when the process dies; ``path`` is deleted at the end.

    Raises:
        UserError: another run holds the lock, or its file cannot be written.
    """
    while True:
        with write_errors_as_user_errors(output):
            durable.make_directory(path.parent)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"output: another run is writing {output}") from None
        except OSError as error:  # network file systems may be mounted without locks
            log_info(f"{path}: no locks here ({error.strerror}); ensure that no other run writes {output}")
            break
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                break
        os.close(lock)  # its owner has just ended and deleted it
    _held_locks.add(lock)
    try:
        yield
    finally:
        _held_locks.discard(lock)
        path.unlink(missing_ok=True)
        os.close(lock)


def _close_locks() -> None:
    for lock in _held_locks:
        os.close(lock)
    _held_locks.clear()


# Forked workers outlive a killed process for seconds, in which they would hold its lock.
os.register_at_fork(after_in_child=_close_locks)
