"""Stop between two steps on request: Ctrl-C, or SIGTERM, which schedulers send before they reclaim a node."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch  # not for launchers, which only forward signals

EXIT_PREEMPTED = 75
"""Exit status after SIGTERM: training was saved, and the same command resumes it (EX_TEMPFAIL of sysexits.h)."""
EXIT_INTERRUPTED = 130
_ECHO = 2.0  # seconds in which a second Ctrl-C is the first one, passed on by a launcher


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0

    def of_any_process(self, device: torch.device) -> int:
        """The signal that any process got, 0 for none; all processes must call it together, and learn the same."""
        import torch.distributed

        if not torch.distributed.is_initialized():
            return self.signal
        asked = torch.tensor(self.signal, device=device)
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        return int(asked)


@contextlib.contextmanager
def graceful_shutdown(heard: Callable[[int], object] = lambda number: None) -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM in this block into a request; a second Ctrl-C ends the process immediately.

    A second SIGTERM has no effect: schedulers send it to every process of a job, torchrun among them, which forwards
    it. Use SIGKILL to stop without a checkpoint.

    Args:
        heard: called with the first signal.
    """
    request = StopRequest()
    asked = 0.0
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if request.signal == 0:
            request.signal, asked = number, time.monotonic()
            heard(number)
        elif number == signal.SIGINT and time.monotonic() - asked > _ECHO:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_status_for_signal(number: int) -> int:
    """The status to end with after signal ``number``."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
