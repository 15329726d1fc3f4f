"""The progress of a training run, as checkpoints store it; without torch, for programs that only read it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clips.core.identity import Identity
from clips.data.invalid_samples import InvalidSamples, restored
from clips.errors import UserError, error_reason
from clips.text_files import safe_json_loads

CONFIG_FILE = "config.yaml"
CHECKPOINTS_DIR = ".checkpoints"
TRAIN_STATE_FILE = "train_state.json"
KEPT_CHECKPOINTS = 2  # the one before the latest in case that a disk damages the latest


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """The progress of a training run.

    Args:
        step: number of completed steps.
        samples_seen: samples trained on, over all processes.
        seconds: training time without interruptions.
        invalid_samples: invalid samples found by all processes.
        identity: of the run (`clips.core.identity`).
        sources: path, size and hash of each data source.
        changes: config fields that changed when the run was resumed.
        sums: sum of each metric over the ``summed`` steps since the last entry of the log.
        flops: FLOPs per sample of the batches counted so far.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    invalid_samples: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)
    identity: Identity = dataclasses.field(default_factory=dict)
    sources: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    changes: list[str] = dataclasses.field(default_factory=list)
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    summed: int = 0
    flops: list[float] = dataclasses.field(default_factory=list)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the metrics of a step to the sums for the next entry of the log."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.summed += 1

    def take_means(self) -> dict[str, float]:
        """Return the mean of each metric since the last entry of the log, and reset the sums."""
        means = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


def list_checkpoints(output: str | Path) -> list[Path]:
    """Return the checkpoints of a run, the latest last; UserError if one has no readable state."""
    return sorted((Path(output) / CHECKPOINTS_DIR).glob("[!.]*/"), key=lambda path: read_train_state(path).step)


def train_state_text(state: TrainState) -> str:
    """Return ``state`` as the JSON that `read_train_state` reads."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return json.dumps(fields | {"invalid_samples": state.invalid_samples.stored()}, ensure_ascii=False)


def read_train_state(checkpoint: Path) -> TrainState:
    """Return the state of the run at ``checkpoint``; UserError if it cannot be read."""
    path = checkpoint / TRAIN_STATE_FILE
    try:
        stored = safe_json_loads(path.read_text(encoding="utf-8"))
        state = TrainState(**{**stored, "invalid_samples": restored(stored["invalid_samples"])})
        return dataclasses.replace(state, step=int(state.step), identity=dict(state.identity))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: broken ({error_reason(error)}); remove this checkpoint to resume without it"
        ) from None


def remove_checkpoints(output: str | Path) -> None:
    """Delete all checkpoints of a run."""
    directory = Path(output) / CHECKPOINTS_DIR
    unwanted = directory.with_name(f"{CHECKPOINTS_DIR}.partial")
    shutil.rmtree(unwanted, ignore_errors=True)
    if directory.exists():  # renamed first: an interrupted deletion must not look like broken checkpoints
        shutil.rmtree(directory.rename(unwanted), ignore_errors=True)
