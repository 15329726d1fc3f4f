"""End a process that hangs in a collective, where it cannot handle a stop request."""

from __future__ import annotations

import threading
import time

from clips.parallel.watchdog import EXIT_HUNG
from llava_bridge.training.launch import DistributedStopRequest, end_hung, is_main_process

_POLL_SECONDS = 1.0
_MIN_SECONDS = 30.0
_FIRST_STEP_SECONDS = 120.0
_MAX_STEP_RATIO = 4


class HungWatch:
    """Ends this process if, after a stop request, a step takes several times as long as the longest before.

    The time before the request does not count: a slow step that does not hang ends and handles the request.

    Args:
        stop: the run's stop request.
        stage: the stage's name.
    """

    def __init__(self, stop: DistributedStopRequest, stage: str) -> None:
        self.stop = stop
        self.stage = stage
        self._longest = 0.0
        self._step_start: float | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Start watching; a step begins."""
        self._step_start = time.monotonic()
        threading.Thread(target=self._watch, name="hung", daemon=True).start()

    def step_ended(self, *, saves: bool) -> None:
        """Record the end of a step; if it ``saves``, the time until :meth:`saved` is unlimited."""
        now = time.monotonic()
        if self._step_start is not None:
            self._longest = max(self._longest, now - self._step_start)
        self._step_start = None if saves else now

    def saved(self) -> None:
        """Record that a checkpoint is written; a step begins."""
        self._step_start = time.monotonic()

    def end(self) -> None:
        """Stop watching after the last step."""
        self._ended.set()

    def _watch(self) -> None:
        requested: float | None = None
        while not self._ended.wait(_POLL_SECONDS):
            start, limit = self._step_start, _FIRST_STEP_SECONDS
            if self._longest:
                limit = max(_MIN_SECONDS, _MAX_STEP_RATIO * self._longest)
            if requested is None and self.stop.is_requested():
                requested = time.monotonic()
            if start is None or requested is None:
                continue
            if not is_main_process():
                limit += 2 * _POLL_SECONDS  # rank 0 reports first
            if (waited := time.monotonic() - max(start, requested)) > limit and not self._ended.is_set():
                end_hung(
                    EXIT_HUNG,
                    f"{self.stage}: a stop was requested, but a step has not ended for {waited:.0f} s: the processes "
                    "hang; ended without saving; the same command resumes from the last checkpoint",
                )
