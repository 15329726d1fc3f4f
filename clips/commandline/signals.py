"""Shutdown on Ctrl-C, on SIGTERM, which schedulers send before they reclaim a node, and on SIGHUP, which a closed
terminal sends: between two steps, or at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""They stop a run; schedulers and terminals send them to all processes of a job."""
EXIT_PREEMPTED = 75
"""Exit status after SIGTERM or SIGHUP: training was saved; the same command resumes it (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130
_ECHO_SECONDS = 2.0  # in which a second Ctrl-C is the first one, forwarded by a launcher
_STUCK_SECONDS = 5.0  # in which the second Ctrl-C ends the process, unless it waits in a library's call


class StopRequest:
    """The signal that requested this process to stop; 0 for none."""

    def __init__(self) -> None:
        self.signal = 0

    def of_any_process(self, device: torch.device) -> int:
        """The signal that any process received, 0 for none. All processes must call it together."""
        import torch.distributed

        if not torch.distributed.is_initialized():
            return self.signal
        received = torch.tensor(self.signal, device=device)
        torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
        return int(received)


@contextlib.contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
    """Turn `STOP_SIGNALS` in this block into a request; a second Ctrl-C ends the process, also a hanging one.

    A second SIGTERM has no effect, because schedulers send it to all processes of a job and torchrun forwards it. Use
    SIGKILL to stop without a checkpoint.
    """
    request = StopRequest()
    requested_at = 0.0
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        if request.signal == 0:
            request.signal, requested_at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - requested_at > _ECHO_SECONDS:
            raise KeyboardInterrupt

    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python calls handlers between its own instructions; the numbers of signals are written at once.
    wakeup, ended = signal.set_wakeup_fd(writer, warn_on_full_buffer=False), threading.Event()
    threading.Thread(target=_end_if_stuck, args=(reader, ended), daemon=True).start()
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        ended.set()
        os.close(writer)  # ends the thread


def _end_if_stuck(reader: int, ended: threading.Event) -> None:
    first = None
    with os.fdopen(reader, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] != signal.SIGINT:
                continue
            first = time.monotonic() if first is None else first
            if time.monotonic() - first > _ECHO_SECONDS and not ended.wait(_STUCK_SECONDS):
                os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise KeyboardInterrupt in this block, as Ctrl-C does: temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status_for_signal(number: int) -> int:
    """The exit status after signal ``number``."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
