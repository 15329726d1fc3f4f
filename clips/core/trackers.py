"""Experiment trackers of training runs, in addition to metrics.jsonl: TensorBoard, Weights & Biases, Trackio."""

from __future__ import annotations

import functools
import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from clips.core.artifact import atomic_write, log_info
from clips.errors import UserError, error_reason
from clips.safe_text import redact
from clips.typed_data import flatten

TrackerName = Literal["tensorboard", "wandb", "trackio"]
TENSORBOARD_DIR = "tensorboard"


class MetricsTracker(Protocol):
    """Records the metrics of one run."""

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """Record the numbers of ``entry`` at ``step``."""

    def finish(self) -> None:
        """Write buffered entries."""


class TensorBoardTracker:
    """Files in ``directory``/tensorboard."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory / TENSORBOARD_DIR))
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

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        project, run_id = os.environ.get("WANDB_PROJECT", "clips"), _run_id(directory / ".wandb-run")
        self.run = wandb.init(project=project, name=name, id=run_id, resume="allow", config=dict(config))

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """See `MetricsTracker`."""
        self.run.log(dict(entry), step=step)

    def finish(self) -> None:
        """See `MetricsTracker`."""
        self.run.finish()


class TrackioTracker:
    """A run of the project "clips", or of TRACKIO_PROJECT; a resumed training continues its run."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        import trackio

        project, run = os.environ.get("TRACKIO_PROJECT", "clips"), f"{name}-{_run_id(directory / '.trackio-run')}"
        self.run = trackio.init(project=project, name=run, resume="allow", config=dict(config), embed=False)

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """See `MetricsTracker`."""
        self.run.log(dict(entry), step=step)

    def finish(self) -> None:
        """See `MetricsTracker`."""
        self.run.finish()


def _run_id(file: Path) -> str:
    """The id of the run, which a resumed training reads from ``file``."""
    run_id = file.read_text(encoding="utf-8").strip() if file.is_file() else uuid.uuid4().hex[:8]
    atomic_write(file, run_id + "\n")
    return run_id


TRACKERS: dict[TrackerName, Callable[[Path, str, Mapping[str, Any]], MetricsTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


class Trackers:
    """The trackers of a run. One that fails is dropped: metrics.jsonl has all metrics, and the training continues.

    Args:
        trackers: those in use.
    """

    def __init__(self, trackers: Sequence[MetricsTracker] = ()) -> None:
        self.trackers = list(trackers)

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """Record the numbers of ``entry`` at ``step``."""
        for tracker in list(self.trackers):
            self._try(tracker, functools.partial(tracker.log, dict(entry), step=step))

    def finish(self) -> None:
        """Write buffered entries."""
        for tracker in list(self.trackers):
            self._try(tracker, tracker.finish)

    def _try(self, tracker: MetricsTracker, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # trackers raise arbitrary exceptions, for example without a network
            _log_failure(type(tracker).__name__, error)
            self.trackers.remove(tracker)


def _log_failure(name: str, error: Exception) -> None:
    log_info(f"report_to: {name} failed ({error_reason(error)}) and is not used any more")


def open_trackers(
    names: Sequence[TrackerName], directory: str | Path, run_name: str, config: Mapping[str, Any]
) -> Trackers:
    """Open trackers, which also record the run's config; one that cannot be opened is logged and dropped.

    Args:
        names: of ``TRACKERS``.
        directory: the run's; TensorBoard's files and the ids of runs are written there.
        run_name: the run's name in the trackers.
        config: the run's, as plain data.

    Raises:
        UserError: a tracker's package is not installed.
    """
    scalar = bool | int | float | str
    fields = {name: value if isinstance(value, scalar) else str(value) for name, value in flatten(redact(config))}
    check_trackers(names)
    opened = []
    for name in names:
        try:
            opened.append(TRACKERS[name](Path(directory), run_name, fields))
        except Exception as error:  # for example without a key or a network
            _log_failure(name, error)
    return Trackers(opened)


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError if a tracker's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"report_to: expected the package {name} to be installed (pip install {name})")
