"""Where a training run stands, as its checkpoints say; without torch, for those who only look."""

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
from clips.jsontext import safe_json_loads

CONFIG_FILE = "config.yaml"
CHECKPOINTS_DIR = ".checkpoints"
TRAIN_STATE_FILE = "loop.json"


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """Where a training run stands.

    Args:
        step: steps done.
        samples_seen: samples trained on, over all processes.
        seconds: time spent in training, interruptions left out.
        bad: invalid samples that all processes have met so far.
        identity: of the run (`clips.core.identity`).
        sources: what the data say of themselves: path, size, hash.
        norms: the gradient's norms of the latest steps.
        skipped: steps whose gradient was not followed because its norm stood out; ``spikes_in_a_row`` the latest.
        changes: fields of the config that became others on the way.
        sums: of the steps since the last entry of the log, each number added up; ``summed`` is how many they are.
        flops: FLOPs of a sample in the batches that were counted.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    bad: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)
    identity: Identity = dataclasses.field(default_factory=dict)
    sources: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    norms: list[float] = dataclasses.field(default_factory=list)
    skipped: int = 0
    spikes_in_a_row: int = 0
    changes: list[str] = dataclasses.field(default_factory=list)
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    summed: int = 0
    flops: list[float] = dataclasses.field(default_factory=list)

    def add(self, values: Mapping[str, float]) -> None:
        """Take the numbers of a step into account for the next entry of the log."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.summed += 1

    def take_means(self) -> dict[str, float]:
        """The means of the numbers over the steps since the last entry of the log, which is now."""
        means = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


def list_checkpoints(output: str | Path) -> list[Path]:
    """The checkpoints of a run, the latest last."""
    found = (Path(output) / CHECKPOINTS_DIR).glob(f"[!.]*/{TRAIN_STATE_FILE}")
    return [path.parent for path in sorted(found, key=lambda path: read_train_state(path.parent).step)]


def loop_text(loop: TrainState) -> str:
    """``loop`` as `read_loop` reads it."""
    fields = {field.name: getattr(loop, field.name) for field in dataclasses.fields(loop)}
    return json.dumps(fields | {"bad": loop.bad.stored()}, ensure_ascii=False)


def read_train_state(checkpoint: Path) -> TrainState:
    """Where the run stood at ``checkpoint``; UserError where its record is broken."""
    path = checkpoint / TRAIN_STATE_FILE
    try:
        stored = safe_json_loads(path.read_text(encoding="utf-8"))
        loop = TrainState(**{**stored, "bad": restored(stored["bad"])})
        return dataclasses.replace(loop, step=int(loop.step), identity=dict(loop.identity))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise UserError(f"{path}: broken ({error_reason(error)}); remove this checkpoint to go on without it") from None


def remove_checkpoints(output: str | Path) -> None:
    """Delete all checkpoints of a run."""
    shutil.rmtree(Path(output) / CHECKPOINTS_DIR, ignore_errors=True)
