"""Destinations of a run's metrics in addition to metrics.jsonl; each is an entry of ``TRACKERS``."""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clips.core.artifact import atomic_write
from clips.errors import UserError
from clips.redaction import redact
from clips.serialization import flatten

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
