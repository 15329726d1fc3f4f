"""Child processes that end with their parent, also after a kill -9 (Linux), and hold its locks until then."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

import psutil

from clips.core.parent_death import end_with_parent


def start_child(
    words: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str],
    *,
    locks: Sequence[int] = (),
    on_death: int = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a command in its own session, with its output in ``log``.

    Args:
        locks: descriptors of locks that it inherits and holds until it has ended.
        on_death: the signal that the kernel sends to it when this process dies.
    """
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        pass_fds=locks,
        preexec_fn=functools.partial(end_with_parent, on_death),
    )


def stop_child(process: subprocess.Popen[bytes], grace: float) -> None:
    """Send SIGTERM to its group, and SIGKILL to all its descendants after ``grace`` seconds or when it has ended."""
    started = _descendants(process.pid)
    end_group(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        started += _descendants(process.pid)
    end_group(process.pid, signal.SIGKILL)
    process.wait()
    for descendant in started:  # torchrun's workers have their own sessions
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()


def end_group(pid: int, number: int) -> None:
    """Send a signal to a process group that may have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
