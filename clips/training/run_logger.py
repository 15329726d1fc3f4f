"""Logging of a training run: a progress line, metrics.jsonl for the report, and trackers (TensorBoard, W&B)."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clips.core.artifact import atomic_write, log_info, write_errors_as_user_errors
from clips.errors import UserError, error_reason
from clips.safe_text import redact
from clips.training.train_state import TrainState
from clips.typed_data import flatten

_WANDB_RUN = ".wandb-run"  # next to metrics.jsonl: the id of the W&B run, which a resumed training continues


class MetricsTracker(Protocol):
    """Records the metrics of one run."""

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """Record the numbers of ``entry`` at ``step``."""

    def finish(self) -> None:
        """Write buffered entries."""


class TensorBoardTracker:
    """Files in ``directory``/tensorboard."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory / "tensorboard"))
        rows = [f"| {name} | {value} |" for name, value in config.items()]
        self.writer.add_text("config", "\n".join(["| field | value |", "| --- | --- |", *rows]))

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """See `MetricsTracker`."""
        for name, value in entry.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self) -> None:
        """See `MetricsTracker`."""
        self.writer.close()


class WandbTracker:
    """A run of the project "clips", or of WANDB_PROJECT; a resumed training continues its run."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        import wandb

        id_file = directory / _WANDB_RUN
        run_id = id_file.read_text(encoding="utf-8").strip() if id_file.is_file() else uuid.uuid4().hex[:8]
        atomic_write(id_file, run_id + "\n")
        project = os.environ.get("WANDB_PROJECT", "clips")
        self.run = wandb.init(project=project, name=directory.name, id=run_id, resume="allow", config=dict(config))

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """See `MetricsTracker`."""
        self.run.log(dict(entry), step=step)

    def finish(self) -> None:
        """See `MetricsTracker`."""
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], MetricsTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def open_trackers(names: Sequence[str], directory: str | Path, config: Mapping[str, Any]) -> list[MetricsTracker]:
    """Open trackers, which also record the run's config.

    Args:
        names: of ``TRACKERS``.
        directory: the run's.
        config: the run's, as plain data.

    Raises:
        UserError: a tracker's package is not installed.
    """
    scalar = bool | int | float | str
    fields = {name: value if isinstance(value, scalar) else str(value) for name, value in flatten(redact(config))}
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"report_to: expected the package {name} to be installed (pip install {name})") from None
    return [TRACKERS[name](Path(directory), fields) for name in names]


METRICS_FILE = "metrics.jsonl"


class RunLogger:
    """Progress of one run.

    Args:
        directory: of metrics.jsonl; entries after ``step`` are removed from an existing file.
        step: the step from which the run resumes.
        steps: the last step.
        quiet: write and show nothing, as on all processes except the main one.
        trackers: see `clips.training.run_logger`.
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
        _remove_entries_after(self.path, self.step)
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
        """Count a completed step."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def _track(self, tracker: MetricsTracker, work: Callable[[], None]) -> None:
        """Remove a tracker that fails: metrics.jsonl has all metrics, and the training should not end."""
        try:
            work()
        except Exception as error:  # trackers raise arbitrary exceptions, for example without a network
            log_info(f"report_to: {type(tracker).__name__} failed ({error_reason(error)}) and is not used any more")
            self.trackers.remove(tracker)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an entry to metrics.jsonl, pass it to the trackers and show it."""
        if self.quiet:
            return
        with write_errors_as_user_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        for tracker in list(self.trackers):
            self._track(tracker, functools.partial(tracker.log, dict(entry), step=entry["step"]))
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


def _remove_entries_after(path: Path, step: int) -> None:
    """Remove entries of steps after the checkpoint, and an incomplete last line."""
    if not path.is_file():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line + "\n")
        except ValueError:
            break
    atomic_write(path, "".join(lines))
