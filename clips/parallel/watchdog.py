"""The watchdog ends a training in which a process hangs, and names the process; otherwise all would wait silently."""

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

_GRACE = 60.0  # seconds for which other processes may continue after the main process has ended
_PHASES = ("waiting for data", "computing", "validating", "saving")  # of a step, in order


class Watchdog:
    """Tracks the progress of every process, and ends the training when one hangs.

    Args:
        processes: the processes of the training.
        timeout: seconds without progress after which a process counts as hanging.
    """

    def __init__(self, processes: DistributedContext, timeout: float) -> None:
        self.processes, self.timeout = processes, timeout
        self._status: dict[str, Any] = {"step": 0, "phase": _PHASES[0], "updates": 0, "process": describe_process()}
        self._heartbeats = 0  # of the thread, which continues while the training waits for another process
        self._store = self._shared_store() if processes.count > 1 else None
        self._report()
        self._main_status: dict[str, Any] = all_gather_objects(self._status)[0]  # now every process has reported
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def _shared_store(self) -> dist.TCPStore:
        host, wait = os.environ.get("MASTER_ADDR", "127.0.0.1"), datetime.timedelta(seconds=2 * self.timeout)
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

    def at(self, step: int, phase: str) -> None:
        """Record that this process is in ``phase`` of ``step``."""
        self._status |= {"step": step, "phase": phase, "updates": self._status["updates"] + 1}

    def _watch(self) -> None:
        """Watch the progress of all processes, or, except on the main process, the thread of the main process."""
        changed: dict[int, tuple[Any, float]] = {}
        interval, counter = min(self.timeout / 4, 15), "updates" if self.processes.is_main else "heartbeats"
        while not self._ended.wait(interval):
            try:
                statuses = self._read_statuses()
            except (dist.DistError, RuntimeError):  # the main process has ended, so this one soon will
                if not self._ended.wait(_GRACE):
                    process = self._status["process"]
                    self._end(f"{process}: the main process has ended and this one waits for others; ended")
                return
            now = time.monotonic()
            for rank, status in statuses.items():
                if rank not in changed or changed[rank][0] != status[counter]:
                    changed[rank] = (status[counter], now)
            idle = {rank: now - since for rank, (_, since) in changed.items()}
            if any(seconds > self.timeout for seconds in idle.values()):
                oldest = self.timeout - 2 * interval  # the others' reports are up to two intervals old
                stalled = {rank: statuses[rank] for rank, seconds in idle.items() if seconds > oldest}
                self._end(describe_stalled(stalled, self.processes.count, self.timeout))

    def _end(self, why: str) -> None:
        if not self._ended.is_set():
            log_info(why)
            os._exit(EXIT_HUNG)

    def _report(self) -> None:
        self._heartbeats += 1
        if self._store is not None:
            self._store.set(str(self.processes.rank), json.dumps(self._status | {"heartbeats": self._heartbeats}))

    def _read_statuses(self) -> dict[int, dict[str, Any]]:
        """Return the status of all processes on the main process, which has the store; of the main one on the others.

        Raises:
            DistError, RuntimeError: the main process has ended.
        """
        self._report()
        if self._store is None:
            return {self.processes.rank: dict(self._status)}
        unanswered = describe_stalled({0: self._main_status}, self.processes.count, self.timeout)
        timer = threading.Timer(self.timeout, self._end, [unanswered])  # the store's own timeout is unreliable
        timer.daemon = True
        timer.start()
        try:
            ranks = range(self.processes.count) if self.processes.is_main else [0]
            statuses = {rank: json.loads(self._store.get(str(rank))) for rank in ranks}
        finally:
            timer.cancel()
        self._main_status = statuses[0]
        return statuses


def describe_stalled(stalled: dict[int, dict[str, Any]], count: int, timeout: float) -> str:
    """Return one line that names the processes with the least progress, for which the others wait.

    Args:
        stalled: status of each hanging process, by rank.
        count: number of processes.
        timeout: in seconds.
    """
    least = min(map(_progress, stalled.values()))
    causes = [status for status in stalled.values() if _progress(status) == least]
    where = f"{causes[0]['phase']}, step {causes[0]['step'] + 1}"
    if count > 1 and len(causes) == count:
        return f"all {count} processes made no progress for {timeout:g} s ({where}; distributed.hang_timeout); ended"
    names = ", ".join(status["process"] for status in causes)
    others = " and the others wait for it" if count > 1 else ""
    return f"{names} made no progress for {timeout:g} s ({where}; distributed.hang_timeout){others}; ended"


def _progress(status: dict[str, Any]) -> tuple[int, int]:
    return status["step"], _PHASES.index(status["phase"])
