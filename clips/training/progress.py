"""What a user sees of a running training: a progress bar or lines, and its throughput."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clips.core.artifact import log_info
from clips.training.run_dir import TrainState


class ProgressLine:
    """The progress of a run on standard error: a bar in a terminal, else a line for each entry of its log.

    Args:
        step: the step from which the run resumes.
        steps: the last step.
        quiet: show nothing, as on all processes except the main one.
    """

    def __init__(self, step: int, steps: int, *, quiet: bool = False) -> None:
        self.steps, self.quiet = steps, quiet
        self.bar: Progress | None = None
        if not quiet and sys.stderr.isatty():
            left = (TimeRemainingColumn(), TextColumn("left"))
            columns = (MofNCompleteColumn(), BarColumn(bar_width=30), TextColumn("{task.description}"), *left)
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> ProgressLine:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self) -> None:
        """Count a completed step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def show(self, entry: Mapping[str, Any]) -> None:
        """Show the loss, the throughput and, after a validation, the recalls of an entry of the log."""
        if self.quiet:
            return
        recalls = [
            f"{name.removeprefix('val_').removesuffix('_t2i_r1')} {100 * value:.1f}"
            for name, value in entry.items()
            if name.startswith("val_") and name.endswith("_t2i_r1")
        ]
        validation = f" · T→I R@1 {', '.join(recalls)}" if recalls else ""
        summary = f"loss {entry['loss']:.3f} · {entry['samples_per_second']:.0f} samples/s{validation}"
        if self.bar is not None:
            self.bar.update(self.task, description=summary)
            return
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
