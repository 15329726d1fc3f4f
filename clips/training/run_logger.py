"""What a training run tells while it goes on: a progress line, metrics.jsonl for the report, and trackers."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clips.core.artifact import atomic_write, log_info, write_errors_as_user_errors
from clips.errors import error_reason
from clips.training.trackers import MetricsTracker
from clips.training.train_state import TrainState

METRICS_FILE = "metrics.jsonl"


class RunLogger:
    """Progress of one run.

    Args:
        directory: where metrics.jsonl goes; entries after ``step`` are dropped from one that is there.
        step: the step from which the run goes on.
        steps: the step at which it ends.
        quiet: write and show nothing, as all processes but one do.
        trackers: what else gets the numbers, see `clips.training.trackers`.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        step: int,
        steps: int,
        quiet: bool = False,
        trackers: Sequence[MetricsTracker] = (),
    ) -> None:
        self.path = Path(directory) / METRICS_FILE
        self.step, self.steps, self.quiet, self.trackers = step, steps, quiet, list(trackers)
        self.bar: Progress | None = None

    def __enter__(self) -> RunLogger:
        if self.quiet:
            return self
        _drop_after(self.path, self.step)
        if sys.stderr.isatty():
            self.bar = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=30),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task("", total=self.steps, completed=self.step)
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        for tracker in list(self.trackers):
            self._track(tracker, tracker.finish)

    def advance(self) -> None:
        """One step is done."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def _track(self, tracker: MetricsTracker, work: Callable[[], None]) -> None:
        """A tracker that fails is left out: metrics.jsonl has everything, and no training should end for this."""
        try:
            work()
        except Exception as error:  # theirs are of any kind; a service that SIGTERM ended, an address that is away
            log_info(f"report_to: {type(tracker).__name__} failed ({error_reason(error)}) and is left out from here on")
            self.trackers.remove(tracker)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry to metrics.jsonl and show it."""
        if self.quiet:
            return
        with write_errors_as_user_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        for tracker in list(self.trackers):
            self._track(tracker, functools.partial(tracker.log, dict(entry), step=entry["step"]))
        shown = f"loss {entry['loss']:.3f} · {entry['samples_per_second']:.0f} samples/s{_validated(entry)}"
        if self.bar is not None:
            self.bar.update(self.task, description=shown)
        else:
            rate = max(entry["samples_per_second"], 1e-9)
            left = (self.steps - entry["step"]) * entry["samples_seen"] / max(1, entry["step"]) / rate
            log_info(f"step {entry['step']}/{self.steps} · {shown} · {_minutes(left)} left")


class ThroughputTimer:
    """Time of a training loop: in all, since the last reading, and of that, waiting for data.

    Args:
        loop: its ``seconds`` go on from where an interrupted run stood.
    """

    def __init__(self, loop: TrainState) -> None:
        self.loop = loop

    def __enter__(self) -> ThroughputTimer:
        self._started = time.perf_counter() - self.loop.seconds
        self._read_at, self._read_samples, self._waited = self.loop.seconds, self.loop.samples_seen, 0.0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.tick()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in this block is spent waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Time in this block is not the training's."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def tick(self) -> None:
        """Bring ``loop.seconds`` up to now."""
        self.loop.seconds = time.perf_counter() - self._started

    def read(self) -> dict[str, float]:
        """Samples a second and the share of time that went into waiting for data, since the last reading."""
        passed = max(self.loop.seconds - self._read_at, 1e-9)
        samples = self.loop.samples_seen - self._read_samples
        reading = {
            "samples_per_second": samples / passed,
            "data_wait": self._waited / passed,
            "time": self.loop.seconds,
        }
        self._read_at, self._read_samples, self._waited = self.loop.seconds, self.loop.samples_seen, 0.0
        return reading


def _validated(entry: Mapping[str, Any]) -> str:
    """Validation's results in an entry, text to image."""
    found = [
        f"{name.removeprefix('val_').removesuffix('_t2i_r1')} {100 * value:.1f}"
        for name, value in entry.items()
        if name.startswith("val_") and name.endswith("_t2i_r1")
    ]
    return f" · T→I R@1 {', '.join(found)}" if found else ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _drop_after(path: Path, step: int) -> None:
    """Forget entries of steps that an interrupted run logged but did not keep; a torn last line goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    atomic_write(path, "".join(kept))
