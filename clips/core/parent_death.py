"""Processes that end with their parent: also after its kill -9 (Linux), and workers that ignore signals at its exit."""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


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
