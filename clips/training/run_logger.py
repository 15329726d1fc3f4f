"""Logging of a training run: a progress line, metrics.jsonl for the report, and trackers."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clips.core.artifact import log_info, write_errors_as_user_errors
from clips.core.metrics_log import METRICS_FILE, retain_entries
from clips.core.trackers import Trackers
from clips.training.train_state import TrainState


class RunLogger:
    """Progress of one run.

    Args:
        directory: of metrics.jsonl; entries after ``step`` are removed from an existing file.
        step: the step from which the run resumes.
        steps: the last step.
        quiet: write and show nothing, as on all processes except the main one.
        trackers: those in addition to metrics.jsonl.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        step: int,
        steps: int,
        quiet: bool = False,
        trackers: Trackers | None = None,
    ) -> None:
        self.path = Path(directory) / METRICS_FILE
        self.step, self.steps, self.quiet, self.trackers = step, steps, quiet, trackers or Trackers()
        self.bar: Progress | None = None

    def __enter__(self) -> RunLogger:
        if self.quiet:
            return self
        retain_entries(self.path, lambda entry: entry["step"] <= self.step)
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
        self.trackers.finish()

    def advance(self) -> None:
        """Count a completed step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry to metrics.jsonl, pass it to the trackers and show it."""
        if self.quiet:
            return
        with write_errors_as_user_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        self.trackers.log(entry, entry["step"])
        summary = f"loss {entry['loss']:.3f} · {entry['samples_per_second']:.0f} samples/s{_validation_summary(entry)}"
        if self.bar is not None:
            self.bar.update(self.task, description=summary)
        else:
            rate = max(entry["samples_per_second"], 1e-9)
            left = (self.steps - entry["step"]) * entry["samples_seen"] / max(1, entry["step"]) / rate
            log_info(f"step {entry['step']}/{self.steps} · {summary} · {int(left) // 60}:{int(left) % 60:02d} left")


class ThroughputTimer:
    """Measures the total time of a training loop, its throughput, and the time spent waiting for data.

    Args:
        state: the run's state, whose ``seconds`` it continues.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state

    def __enter__(self) -> ThroughputTimer:
        self._started = time.perf_counter() - self.state.seconds
        self._start_interval()
        return self

    def _start_interval(self) -> None:
        self._read_at, self._read_samples, self._waited = self.state.seconds, self.state.samples_seen, 0.0

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.tick()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Exclude the time of the block from the training time."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def tick(self) -> None:
        """Set ``state.seconds`` to the current training time."""
        self.state.seconds = time.perf_counter() - self._started

    def read(self) -> dict[str, float]:
        """Return samples per second and the ratio of time spent waiting for data, since the last call."""
        elapsed = max(self.state.seconds - self._read_at, 1e-9)
        samples = self.state.samples_seen - self._read_samples
        reading = {"samples_per_second": samples / elapsed, "data_wait": self._waited / elapsed}
        self._start_interval()
        return reading | {"time": self.state.seconds}


def _validation_summary(entry: Mapping[str, Any]) -> str:
    recalls = [
        f"{name.removeprefix('val_').removesuffix('_t2i_r1')} {100 * value:.1f}"
        for name, value in entry.items()
        if name.startswith("val_") and name.endswith("_t2i_r1")
    ]
    return f" · T→I R@1 {', '.join(recalls)}" if recalls else ""
