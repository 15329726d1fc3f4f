"""The log of a training, `clips train` or `llava-bridge train`: JSON lines in ``metrics.jsonl``, and its trackers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from clips.core.durable import atomic_write, write_errors_as_user_errors
from clips.errors import UserError, error_reason
from clips.safe_text import log_info, redact
from clips.text_files import safe_json_loads
from clips.typed_data import flatten, to_plain

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
TrackerName = Literal["tensorboard", "wandb", "trackio"]


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
        self.finish = self.writer.close

    def log(self, entry: Mapping[str, Any], step: int) -> None:
        """See `MetricsTracker`."""
        for name, value in entry.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class WandbTracker:
    """A run of the project "clips", or of WANDB_PROJECT; a resumed training continues its run."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        project, run_id = os.environ.get("WANDB_PROJECT", "clips"), _run_id(directory / ".wandb-run")
        self.run: Any = wandb.init(project=project, name=name, id=run_id, resume="allow", config=dict(config))
        self.log: Any = self.run.log
        self.finish = self.run.finish


class TrackioTracker:
    """A run of the project "clips", or of TRACKIO_PROJECT; a resumed training continues its run."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, Any]) -> None:
        import trackio

        project, run = os.environ.get("TRACKIO_PROJECT", "clips"), f"{name}-{_run_id(directory / '.trackio-run')}"
        self.run = trackio.init(project=project, name=run, resume="allow", config=dict(config), embed=False)
        self.log, self.finish = self.run.log, self.run.finish


def _run_id(file: Path) -> str:
    run_id = file.read_text(encoding="utf-8").strip() if file.is_file() else uuid.uuid4().hex[:8]
    atomic_write(file, run_id + "\n")
    return run_id


TRACKERS: dict[TrackerName, Callable[[Path, str, Mapping[str, Any]], MetricsTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers' packages are installed.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"report_to: expected the package {name} to be installed (pip install {name})")


def _log_failure(name: str, error: Exception) -> None:
    log_info(f"report_to: {name} failed ({error_reason(error)}) and is not used any more")


class RunLog:
    """The log of one run, which only the main process writes; leaving the block finishes the trackers.

    A tracker that fails is dropped: metrics.jsonl has all metrics, and the training continues.

    Args:
        directory: of metrics.jsonl.
        trackers: those in addition to it.
        writes: whether this is the main process.
    """

    def __init__(self, directory: str | Path, trackers: Sequence[MetricsTracker] = (), *, writes: bool = True) -> None:
        self.path, self.trackers, self.writes = Path(directory) / METRICS_FILE, list(trackers), writes

    @classmethod
    def of(cls, config: Any, directory: str | Path, *, writes: bool) -> RunLog:
        """Open the log and the trackers of a training's ``config``, which also record that config.

        Raises:
            UserError: a tracker's package is not installed.
        """
        log = cls(directory, writes=writes)
        if not writes:
            return log
        check_trackers(config.report_to)
        scalar = bool | int | float | str
        values = flatten(redact(to_plain(config)))
        fields = {name: value if isinstance(value, scalar) else str(value) for name, value in values}
        for name in config.report_to:
            try:
                log.trackers.append(TRACKERS[name](Path(directory), Path(config.output).name, fields))
            except Exception as error:  # for example without a key or a network
                _log_failure(name, error)
        return log

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._each(lambda tracker: tracker.finish())

    def resume(self, is_retained: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Remove the entries of lost work, and those in which ``is_retained`` misses a field; return the rest."""
        entries = []
        for entry in read_entries(self.path) if self.writes else ():
            with contextlib.suppress(KeyError, TypeError):
                if is_retained(entry):
                    entries.append(entry)
        if self.writes and self.path.is_file():
            atomic_write(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))
        return entries

    def write(self, entry: Mapping[str, Any], step: int, tracked: Mapping[str, Any] | None = None) -> None:
        """Append an entry, and pass its numbers, or those ``tracked`` instead, to the trackers at ``step``."""
        if self.writes:
            with write_errors_as_user_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
            self._each(lambda tracker: tracker.log(dict(entry if tracked is None else tracked), step=step))

    def _each(self, work: Callable[[MetricsTracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                work(tracker)
            except Exception as error:  # trackers raise arbitrary exceptions, for example without a network
                _log_failure(type(tracker).__name__, error)
                self.trackers.remove(tracker)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; empty without the file.

    Lines that cannot be read are skipped: a crash leaves the last one incomplete, a fault of the disk damages any.
    """
    entries = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with contextlib.suppress(ValueError):
            entry = safe_json_loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries
