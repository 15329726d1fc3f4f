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

from clips.artifact import say
from clips.parallel.processes import Processes, describe_process, gather_objects

EXIT_HUNG = 70
"""Exit status of a training that a watchdog ended (EX_SOFTWARE of sysexits.h)."""

_ORDER = ("waiting for data", "computing", "validating", "saving")


class Watchdog:
    """Tells the processes from each other by what they did last, and ends the training once one has not moved on.

    Args:
        processes: who trains.
        patience: seconds that a process may stand still.
    """

    def __init__(self, processes: Processes, patience: float) -> None:
        self.processes, self.patience = processes, patience
        self._place: dict[str, Any] = {"step": 0, "doing": _ORDER[0], "moves": 0, "who": describe_process()}
        self._store = self._shared_store() if processes.count > 1 else None
        self._tell()
        gather_objects(None)  # from here on everyone's place is there
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def _shared_store(self) -> dist.TCPStore:
        host, wait = os.environ.get("MASTER_ADDR", "127.0.0.1"), datetime.timedelta(seconds=self.patience)
        options: dict[str, Any] = {"wait_for_workers": False, "timeout": wait}
        store = dist.TCPStore(host, 0, is_master=True, **options) if self.processes.is_main else None
        port = gather_objects(store.port if store else None)[0]
        return store or dist.TCPStore(host, port, is_master=False, **options)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def at(self, step: int, doing: str) -> None:
        """This process now does ``doing`` of ``step``."""
        self._place |= {"step": step, "doing": doing, "moves": self._place["moves"] + 1}

    def _watch(self) -> None:
        moved: dict[int, tuple[Any, float]] = {}
        pause = min(self.patience / 4, 15)
        while not self._ended.wait(pause):
            try:
                places = self._everyone()
            except (dist.DistError, RuntimeError):
                return  # the main process has ended: so will this one
            now = time.monotonic()
            for rank, place in places.items():
                if rank not in moved or moved[rank][0] != place["moves"]:
                    moved[rank] = (place["moves"], now)
            still = {rank: now - since for rank, (_, since) in moved.items()}
            if any(seconds > self.patience for seconds in still.values()) and not self._ended.is_set():
                # What the others tell is up to two pauses old.
                standing = [rank for rank, seconds in still.items() if seconds > self.patience - 2 * pause]
                say(blame({rank: places[rank] for rank in standing}, len(places), self.patience))
                os._exit(EXIT_HUNG)

    def _tell(self) -> None:
        if self._store is not None:
            self._store.set(str(self.processes.rank), json.dumps(self._place))

    def _everyone(self) -> dict[int, dict[str, Any]]:
        """Where each process stands; only the main one asks for all."""
        rank, count = self.processes.rank, self.processes.count
        self._tell()
        if self._store is None:
            return {rank: dict(self._place)}
        if not self.processes.is_main:
            return {}
        return {other: json.loads(self._store.get(str(other))) for other in range(count)}


def blame(still: dict[int, dict[str, Any]], count: int, patience: float) -> str:
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
        return f"all {count} processes have stood still for {patience:g} s ({where}; scale.patience); ended"
    names = ", ".join(place["who"] for place in guilty)
    others = " and the others wait for it" if count > 1 else ""
    return f"{names} has stood still for {patience:g} s ({where}; scale.patience){others}; ended"


def _progress(place: dict[str, Any]) -> tuple[int, int]:
    return place["step"], _ORDER.index(place["doing"])
