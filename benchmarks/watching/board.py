"""The trainings of a study in TensorBoard: their metrics.jsonl, copied into event files as they grow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report.source import read_metrics
from benchmarks.watching.snapshot import trainings
from clips.training.trackers import Tracker, open_trackers


class Board:
    """Event files of the trainings below a directory, a run each.

    Args:
        watched: a study's output or a training's.
        logs: where the event files go, never into what is watched.
    """

    def __init__(self, watched: Path, logs: Path) -> None:
        self.watched, self.logs = watched, logs
        self._trackers: dict[str, Tracker] = {}
        self._last: dict[tuple[str, str], float] = {}

    def collect(self) -> int:
        """Copy what is new; returns how many entries.

        Raises:
            UserError: TensorBoard is not installed.
        """
        return sum(self._collect(name, place) for name, place in trainings(self.watched).items())

    def _collect(self, name: str, place: Path) -> int:
        if name not in self._trackers:
            (self._trackers[name],) = open_trackers(["tensorboard"], self.logs / name, {})
        new = 0
        for entry in read_metrics(place):
            step, stage = entry.get("step"), str(entry.get("stage", ""))
            if isinstance(step, int) and step > self._last.get((name, stage), -1):
                self._trackers[name].log(_scalars(entry, stage), step)
                self._last[name, stage] = step
                new += 1
        return new

    def close(self) -> None:
        """Write what is not written yet."""
        for tracker in self._trackers.values():
            tracker.finish()


def _scalars(entry: dict[str, Any], stage: str) -> dict[str, float]:
    numbers = {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "step"}
    return {f"{stage}/{name}" if stage else name: value for name, value in numbers.items()}


def serve(logs: Path, port: int) -> subprocess.Popen[bytes]:
    """TensorBoard over the event files, for this machine alone."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--host", "localhost"]
    # a session of its own: Ctrl-C is for us, who end it
    return subprocess.Popen([*command, "--port", str(port), "--reload_interval", "5"], start_new_session=True)
