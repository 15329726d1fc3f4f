"""A training run's directory: its identity, its config, and the progress that its checkpoints hold; without torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from clips.commandline.progress import log_if_slow
from clips.core.artifact import check_finished, check_overwritable
from clips.core.durable import atomic_write
from clips.core.identity import RUN, Identity, run_text
from clips.data.formats.rows import table_files
from clips.data.formats.source import SourceConfig
from clips.data.formats.webdataset import list_shards
from clips.data.remote_files import is_remote, local_files
from clips.data.sources import open_source
from clips.errors import UserError, error_reason
from clips.loader.invalid_samples import InvalidSamples, restored
from clips.safe_text import redact
from clips.text_files import safe_json_loads
from clips.training.train_config import EncoderTrainConfig, stage_configs
from clips.typed_data import to_plain, to_yaml

CONFIG_FILE = "config.yaml"
CHECKPOINTS_DIR = ".checkpoints"
TRAIN_STATE_FILE = "train_state.json"
KEPT_CHECKPOINTS = 2  # the one before the latest in case that a disk damages the latest


def check_files(config: EncoderTrainConfig) -> None:
    """Check output and data of all stages, of a local table also its columns, before torch is imported for seconds.

    Raises:
        UserError: the output would overwrite something else, or data do not exist, or lack a column.
    """
    for stage in stage_configs(config):
        if not (Path(stage.output) / CHECKPOINTS_DIR).exists():
            check_overwritable(stage.output, "encoder", trained=True)
        sources = {f"data.sources[{number}]": source for number, source in enumerate(stage.data.sources, 1)}
        for field, source in {**sources, "validation.source": stage.validation.source}.items():
            try:
                if source is not None:
                    _check_source(source)
            except UserError as error:
                raise UserError(f"{field}: {error}") from None


def _check_source(source: SourceConfig) -> None:
    if source.format == "webdataset":
        list_shards(source.path)
    elif source.format in {"table", "capsfusion"}:
        if not any(map(is_remote, table_files(source.path))):
            with log_if_slow(f"reading {source.path}"):
                open_source(source)  # converts a table once, which the training would have to do, too
    elif source.format != "datasets":  # which may be on the Hub
        local_files(source.path)


def check_trained(config: Any, run: Identity) -> bool:
    """Check that ``config.output`` is free or has this run, and return whether the run is finished.

    Raises:
        UserError: the directory contains something else, or a run of another config or other inputs.
    """
    output = Path(config.output)
    if check_finished(output, "encoder", run, work=output / CHECKPOINTS_DIR / RUN):
        return True
    for checkpoint in list_checkpoints(output)[-1:]:  # without a checkpoint the run may be overwritten
        recorded = read_train_state(checkpoint).identity
        run.reject_other(output, recorded, may_change=config.allow_changes_on_resume)
    return False


def create_run_dir(config: Any, run: Identity) -> None:
    """Create a run's directory with its identity and config; UserError if it cannot be written."""
    atomic_write(Path(config.output) / CHECKPOINTS_DIR / RUN, run_text(run))
    atomic_write(Path(config.output) / CONFIG_FILE, to_yaml(redact(to_plain(config))))


def read_run_config(directory: str | Path) -> dict[str, Any]:
    """Return the config of the run or checkpoint in ``directory`` as plain data; UserError if there is none."""
    path = Path(directory) / CONFIG_FILE
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; expected the output of `clips train` or one of its checkpoints") from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        raise UserError(f"{path}: not valid YAML") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected the config of a training run, a mapping of field names to values")
    return config


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """The progress of a training run."""

    step: int = 0  # number of completed steps
    samples_seen: int = 0  # over all processes
    seconds: float = 0.0  # training time without interruptions
    invalid_samples: InvalidSamples = dataclasses.field(default_factory=InvalidSamples)  # found by all processes
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # values of the run's identity
    precision: Literal["fp32", "bf16"] | None = None  # of activations; a run keeps it on other hardware
    preprocess: dict[str, Any] | None = None  # the encoder's preprocess_cfg; its initial weights' may be gone
    sources: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # path, size and hash of each
    changes: list[str] = dataclasses.field(default_factory=list)  # of settings when the run was resumed
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # of metrics since the last entry of the log,
    summed: int = 0  # over so many steps
    flops: list[float] = dataclasses.field(default_factory=list)  # per sample, of the batches counted so far

    def add(self, values: Mapping[str, float]) -> None:
        """Add the metrics of a step to the sums for the next entry of the log."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.summed += 1

    def take_means(self) -> dict[str, float]:
        """Return the mean of each metric since the last entry of the log, and reset the sums."""
        means = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return means


class ThroughputTimer:
    """Measures the total time of a training loop, its throughput, and the time spent waiting for data.

    Args:
        state: the run's state, whose ``seconds`` it continues.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state

    def __enter__(self) -> ThroughputTimer:
        self._started = time.perf_counter() - self.state.seconds
        self._read_at, self._read_samples, self._waited = self.state.seconds, self.state.samples_seen, 0.0
        return self

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
        self._read_at, self._read_samples, self._waited = self.state.seconds, self.state.samples_seen, 0.0
        return reading | {"time": self.state.seconds}


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
