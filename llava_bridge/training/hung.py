"""A process that waits for another one in a collective hears no signal: this ends it where a stop is asked for."""

from __future__ import annotations

import threading
import time

from clips.parallel.watchdog import EXIT_HUNG
from llava_bridge.training.launch import DistributedStopRequest, end_hung, is_main_process

_PAUSE = 1.0
_LEAST = 30.0
_FIRST = 120.0
_STEPS = 4


class HungWatch:
    """Ends this process if, after a stop is asked for, a step takes several times as long as any before.

    The time before the request does not count: a step that is slow, and not hung, ends, hears the request and saves.

    Args:
        stop: whether anybody wants the run to stop.
        stage: its name.
    """

    def __init__(self, stop: DistributedStopRequest, stage: str) -> None:
        self.stop = stop
        self.stage = stage
        self._longest = 0.0
        self._since: float | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Steps are computed from now on."""
        self._since = time.monotonic()
        threading.Thread(target=self._watch, name="hung", daemon=True).start()

    def step_ended(self, *, saves: bool) -> None:
        """A step has ended; ``saves``: what comes next, until `saved`, takes as long as it takes."""
        now = time.monotonic()
        if self._since is not None:
            self._longest = max(self._longest, now - self._since)
        self._since = None if saves else now

    def saved(self) -> None:
        """A checkpoint is written."""
        self._since = time.monotonic()

    def end(self) -> None:
        """No more steps are to come."""
        self._over.set()

    def _watch(self) -> None:
        asked: float | None = None
        while not self._over.wait(_PAUSE):
            since, limit = self._since, max(_LEAST, _STEPS * self._longest) if self._longest else _FIRST
            if asked is None and self.stop.asked():
                asked = time.monotonic()
            if since is None or asked is None:
                continue
            if not is_main_process():
                limit += 2 * _PAUSE  # that one tells why
            if (waited := time.monotonic() - max(since, asked)) > limit and not self._over.is_set():
                end_hung(
                    EXIT_HUNG,
                    f"{self.stage}: asked to stop, but a step has not ended for {waited:.0f} s: processes wait for "
                    "each other; ended without saving; from the last checkpoint the same command goes on",
                )
