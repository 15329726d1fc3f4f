"""A process that stands still makes all others wait for it without a word: this ends the training and names it."""

from __future__ import annotations

import datetime
import json
import os
import threading
import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

from clips.core.artifact import log_info
from clips.parallel.distributed import DistributedContext, all_gather_objects, describe_process

EXIT_HUNG = 70
"""Exit status of a training that a watchdog ended (EX_SOFTWARE of sysexits.h)."""

_GRACE = 60.0  # seconds that others may go on after the main process has ended
_ORDER = ("waiting for data", "computing", "validating", "saving")


class Watchdog:
    """Tells the processes from each other by what they did last, and ends the training once one has not moved on.

    Args:
        processes: who trains.
        patience: seconds that a process may stand still.
    """

    def __init__(self, processes: DistributedContext, patience: float) -> None:
        self.processes, self.patience = processes, patience
        self._place: dict[str, Any] = {"step": 0, "doing": _ORDER[0], "moves": 0, "who": describe_process()}
        self._beats = 0  # of the thread, which goes on where the training waits for another process
        self._store = self._shared_store() if processes.count > 1 else None
        self._tell()
        self._main: dict[str, Any] = all_gather_objects(self._place)[0]  # from here on everyone's place is there
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def _shared_store(self) -> dist.TCPStore:
        host, wait = os.environ.get("MASTER_ADDR", "127.0.0.1"), datetime.timedelta(seconds=2 * self.patience)
        options: dict[str, Any] = {"wait_for_workers": False, "timeout": wait}
        store = dist.TCPStore(host, 0, is_master=True, **options) if self.processes.is_main else None
        port = all_gather_objects(store.port if store else None)[0]
        return store or dist.TCPStore(host, port, is_master=False, **options)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(timeout=1)  # it may wait for a process that does not answer

    def at(self, step: int, doing: str) -> None:
        """This process now does ``doing`` of ``step``."""
        self._place |= {"step": step, "doing": doing, "moves": self._place["moves"] + 1}

    def _watch(self) -> None:
        """The main process watches what all do; the others, whether it still can."""
        moved: dict[int, tuple[Any, float]] = {}
        pause, sign = min(self.patience / 4, 15), "moves" if self.processes.is_main else "beats"
        while not self._ended.wait(pause):
            try:
                places = self._places()
            except (dist.DistError, RuntimeError):  # the main process has ended: so will this one
                if not self._ended.wait(_GRACE):
                    self._end(f"{self._place['who']}: the main process has ended and this one waits for others; ended")
                return
            now = time.monotonic()
            for rank, place in places.items():
                if rank not in moved or moved[rank][0] != place[sign]:
                    moved[rank] = (place[sign], now)
            still = {rank: now - since for rank, (_, since) in moved.items()}
            if any(seconds > self.patience for seconds in still.values()):
                # What the others tell is up to two pauses old.
                standing = {
                    rank: places[rank] for rank, seconds in still.items() if seconds > self.patience - 2 * pause
                }
                self._end(describe_stalled(standing, self.processes.count, self.patience))

    def _end(self, why: str) -> None:
        if not self._ended.is_set():
            log_info(why)
            os._exit(EXIT_HUNG)

    def _tell(self) -> None:
        self._beats += 1
        if self._store is not None:
            self._store.set(str(self.processes.rank), json.dumps(self._place | {"beats": self._beats}))

    def _places(self) -> dict[int, dict[str, Any]]:
        """Where each process stands, for the main one; for the others where that one does, who keeps what all tell.

        If that one does not answer for ``patience`` seconds, the training ends.

        Raises:
            DistError, RuntimeError: it has ended.
        """
        self._tell()
        if self._store is None:
            return {self.processes.rank: dict(self._place)}
        unanswered = describe_stalled({0: self._main}, self.processes.count, self.patience)
        timer = threading.Timer(self.patience, self._end, [unanswered])  # the store's own time limit may not end
        timer.daemon = True
        timer.start()
        try:
            wanted = range(self.processes.count) if self.processes.is_main else [0]
            found = {rank: json.loads(self._store.get(str(rank))) for rank in wanted}
        finally:
            timer.cancel()
        self._main = found[0]
        return found


def describe_stalled(still: dict[int, dict[str, Any]], count: int, patience: float) -> str:
    """One line that names those of the processes standing still that the others wait for.

    Args:
        still: by rank, where each process that stands still is.
        count: how many processes there are.
        patience: seconds they have been given.
    """
    first = min(map(_progress, still.values()))
    guilty = [place for place in still.values() if _progress(place) == first]
    where = f"{guilty[0]['doing']}, step {guilty[0]['step'] + 1}"
    if count > 1 and len(guilty) == count:
        return f"all {count} processes have stood still for {patience:g} s ({where}; distributed.hang_timeout); ended"
    names = ", ".join(place["who"] for place in guilty)
    others = " and the others wait for it" if count > 1 else ""
    return f"{names} has stood still for {patience:g} s ({where}; distributed.hang_timeout){others}; ended"


def _progress(place: dict[str, Any]) -> tuple[int, int]:
    return place["step"], _ORDER.index(place["doing"])
