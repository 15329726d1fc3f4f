"""Child processes: how many cores they have, and that they end with their parent, also after its kill -9 (Linux)."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
from typing import IO, cast

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def usable_cores() -> int:
    """The number of cores that this process may use: of a job of SLURM its own, not the node's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """DataLoader workers of each training process of this node: those that have a core of their own, at most 4."""
    # torchrun and the bridge's own launcher; DeepSpeed's on one node
    processes = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ.get("WORLD_SIZE")
    return min(4, max(0, usable_cores() // int(processes or 1) - 1))


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when the thread that started it ends; nothing on other systems.

    A process that outlives its parent holds the locks that it inherited.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, number)


def end_stuck_workers() -> None:
    """Kill workers that did not end on request; at exit multiprocessing would send them SIGTERM and wait forever.

    Register it with ``atexit`` in processes whose workers ignore signals.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as crashed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def start_python(code: str) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """A Python process with this one's import path, and its standard input; unlike a fork it has no threads' locks.

    multiprocessing's spawn would run the user's script again, which may call a training without ``if __name__``.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-Pc", code], stdin=subprocess.PIPE, env=environment)
    return process, cast(IO[bytes], process.stdin)
