"""Commands as children that end with their parent, however it ends (Linux), and hold its locks until they have."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

import psutil

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def start_child(
    words: Sequence[str],
    log: IO[bytes],
    environment: Mapping[str, str],
    *,
    locks: Sequence[int] = (),
    on_death: int = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own.

    Args:
        words: the command.
        log: where it prints to.
        environment: its environment.
        locks: descriptors that it inherits, so that what they lock stays locked until it has ended.
        on_death: the signal that the kernel sends it when this process dies.
    """

    def end_with_parent() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, on_death)

    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
        pass_fds=locks,
        preexec_fn=end_with_parent,
    )


def stop_child(process: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to its group, SIGKILL to all that it has started when ``grace`` seconds are over or it has ended."""
    started = _descendants(process.pid)
    end_group(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        started += _descendants(process.pid)
    end_group(process.pid, signal.SIGKILL)
    process.wait()
    for below in started:  # torchrun's workers have sessions of their own
        with contextlib.suppress(psutil.NoSuchProcess):
            below.kill()


def end_group(pid: int, number: int) -> None:
    """Send a signal to a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
