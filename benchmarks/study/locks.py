"""File locks: one runner in a study's directory, one job on each step, one step on each GPU of this machine.

The kernel frees the locks of dead processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from clips.core.durable import writable_directory
from clips.errors import UserError
from clips.gpus import VISIBLE
from clips.safe_text import log_info

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
    """Whether a process holds the lock of a file, on this machine or on another one with the same file system."""
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


def take_gpus(devices: Sequence[str], count: int) -> tuple[dict[str, str], list[int]] | None:
    """Lock ``count`` of ``devices``; None if fewer are free.

    Returns:
        the environment variables that make only these visible, and the descriptors of their locks; closing a
        descriptor frees its device.
    """
    folder = Path(tempfile.gettempdir()) / f"clips-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    mutex = acquire(folder / "all.lock", wait=True)  # else two processes might each lock a part of their devices
    assert mutex is not None
    taken: dict[str, int] = {}
    try:
        for device in devices:
            if len(taken) < count and (lock := acquire(folder / f"{device.replace('/', '_')}.lock")) is not None:
                taken[device] = lock
    finally:
        os.close(mutex)
    if len(taken) < count:
        for lock in taken.values():
            os.close(lock)
        return None
    order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # the order of nvidia-smi's indices
    return {VISIBLE: ",".join(taken), **order}, list(taken.values())
