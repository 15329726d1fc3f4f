"""Checkpoints for an exact resume: written in the background, atomically, and verified by hashes.

They hold the weights, the optimizer's state and the number of steps: the sample order and all random numbers are
functions of (seed, step). torch's distributed checkpointing writes each process's shards as safetensors and reads them
into any number of processes.
"""

from __future__ import annotations

import concurrent.futures
import copy
import datetime
import functools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from clips.core import durable
from clips.core.artifact import atomic_write, write_errors_as_user_errors
from clips.core.content import file_hash
from clips.core.metrics_log import METRICS_FILE
from clips.errors import UserError, error_reason
from clips.parallel.distributed import DistributedContext, all_or_none, from_main, node_group
from clips.safe_text import redact
from clips.text_files import safe_json_loads
from clips.training.train_state import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    KEPT_CHECKPOINTS,
    TRAIN_STATE_FILE,
    TrainState,
    list_checkpoints,
    train_state_text,
)
from clips.typed_data import to_plain, to_yaml

_HASHES = "hashes.json"
_MAX_READ_BYTES = 1 << 30
_MAX_WRITE_TIME = datetime.timedelta(hours=2)


class Checkpointer:
    """Writes the checkpoints of a run while it trains; all processes make the same calls.

    Args:
        output: the run's directory.
        processes: the processes of the training.
    """

    def __init__(self, output: str | Path, processes: DistributedContext) -> None:
        self.folder, self.processes = Path(output) / CHECKPOINTS_DIR, processes
        # A separate group: the training communicates at the same time.
        self._group = dist.new_group(backend="gloo", timeout=_MAX_WRITE_TIME)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None

    def save(self, tensors: Mapping[str, Tensor], state: TrainState, config: Any) -> None:
        """Start to write a checkpoint; returns once the tensors are copied.

        Args:
            tensors: the shards or full tensors that this process writes, and no other.
            state: the run's state, on the main process.
            config: the run's.

        Raises:
            UserError: the directory cannot be written, or the previous checkpoint could not be.
        """
        self.wait()
        checkpoint = self.folder / f"step-{state.step:08d}"
        partial = checkpoint.with_name(f".{checkpoint.name}.partial")
        from_main(lambda: self._create(partial))
        copied = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        config_text = to_yaml(redact(to_plain(config)))
        self._writing = self._thread.submit(self._write, partial, checkpoint, copied, config_text, copy.deepcopy(state))

    def poll(self) -> None:
        """Raise the error of a checkpoint whose writing has ended."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when the checkpoint is written; raise its error."""
        if self._writing is not None:
            pending, self._writing = self._writing, None
            pending.result()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def _create(self, partial: Path) -> None:
        with write_errors_as_user_errors(partial):
            for leftover in self.folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)

    def _write(
        self, partial: Path, checkpoint: Path, tensors: dict[str, Tensor], config_text: str, state: TrainState
    ) -> None:
        try:
            with write_errors_as_user_errors(checkpoint):
                _save_tensors(partial, tensors, self._group)
                if self.processes.is_main:
                    self._publish(
                        partial, checkpoint, {CONFIG_FILE: config_text, TRAIN_STATE_FILE: train_state_text(state)}
                    )
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _publish(self, partial: Path, checkpoint: Path, texts: Mapping[str, str]) -> None:
        """Complete a checkpoint, all of it flushed to the disk, and delete older ones."""
        for name, text in texts.items():
            atomic_write(partial / name, text)
        hashes = {path.name: file_hash(path) for path in sorted(partial.iterdir()) if path.name != CONFIG_FILE}
        atomic_write(partial / _HASHES, json.dumps(hashes, indent=2) + "\n")  # users may edit the config
        durable.sync_tree(partial)
        if (log := self.folder.parent / METRICS_FILE).is_file():  # a resume from here keeps its entries up to this step
            durable.sync(log)
        if checkpoint.exists():
            _remove(checkpoint)
        durable.replace(partial, checkpoint)
        for old in list_checkpoints(self.folder.parent)[:-KEPT_CHECKPOINTS]:
            _remove(old)


def _remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old.partial")))  # deletion is not atomic


def _save_tensors(folder: Path, tensors: dict[str, Tensor], group: Any) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
    except dcp.CheckpointException as error:
        causes = [failure[0] for _, failure in sorted(error.failures.items())]
        raise next((cause for cause in causes if isinstance(cause, OSError | UserError)), error) from None


def verify_checkpoint(checkpoint: Path) -> None:
    """Raise a UserError that names a missing or changed file of a checkpoint."""
    advice = "remove this checkpoint to resume without it"
    path = checkpoint / _HASHES
    try:
        hashes = dict(safe_json_loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: broken ({error_reason(error)}); {advice}") from None
    for name, recorded in hashes.items():
        if not (checkpoint / name).is_file():
            raise UserError(f"{checkpoint / name}: missing; {advice}")
        if file_hash(checkpoint / name) != recorded:
            raise UserError(f"{checkpoint / name}: damaged, it has another hash than when it was written; {advice}")


def tensor_names(checkpoint: Path) -> set[str]:
    """Return the names of a checkpoint's tensors; a collective call, in which the main process reads."""
    return from_main(lambda: set(_Reader(checkpoint).read_metadata().state_dict_metadata))


def load_tensors(checkpoint: Path, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Fill ``tensors``, full or shards, from a checkpoint's tensors of the name ``prefix`` + name.

    A collective call with the same names on all processes: the first process of each node reads the files and
    broadcasts to the others.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    with node_group() as (group, first):
        reader = _Reader(checkpoint) if not dist.is_initialized() or dist.get_rank() == first else None
        shapes = {prefix + name: tuple(value.shape) for name, value in tensors.items()}
        all_or_none(lambda: None if reader is None else reader.check_shapes(shapes))
        for names in _groups(tensors):
            full = {prefix + name: _read_buffer(tensors[name]) for name in names}
            all_or_none(functools.partial(_read, reader, full))
            for name in names:
                if group is not None and dist.get_world_size(group) > 1:
                    dist.broadcast(full[prefix + name], first, group=group)
                _fill(tensors[name], full.pop(prefix + name))


class _Reader(dcp.HuggingFaceStorageReader):
    """Reads full tensors of a checkpoint and caches its metadata."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(str(checkpoint))
        self.checkpoint = checkpoint

    @functools.cached_property
    def _metadata(self) -> Any:
        return super().read_metadata()

    def read_metadata(self) -> Any:
        return self._metadata

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        stored: Mapping[str, Any] = self.read_metadata().state_dict_metadata
        for name, shape in shapes.items():
            if name not in stored or tuple(stored[name].size) != shape:
                raise UserError(
                    f"{self.checkpoint}: {name} is missing or has another shape; expected a checkpoint of this model"
                )


def _read(reader: _Reader | None, tensors: dict[str, Tensor]) -> None:
    if reader is None:  # another process of this node reads
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)


def _groups(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Group the names so that the full tensors of a group take at most ``_MAX_READ_BYTES``, or are one."""
    group: list[str] = []
    size = 0
    for name, value in tensors.items():
        if group and size + value.nbytes > _MAX_READ_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += value.nbytes
    if group:
        yield group


def _read_buffer(value: Tensor) -> Tensor:
    """Return a full contiguous tensor to read into: ``value`` itself if possible."""
    if isinstance(value, DTensor):
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return value if value.is_contiguous() else torch.empty_like(value, memory_format=torch.contiguous_format)


@torch.no_grad()
def _fill(value: Tensor, full: Tensor) -> None:
    """Copy ``full``, or this process's shard of it, into ``value`` without communication."""
    if isinstance(value, DTensor):
        mesh = value.device_mesh
        replicated = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
        value.to_local().copy_(replicated.redistribute(placements=value.placements).to_local())
    elif value is not full:
        value.copy_(full)


def load_export_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights that a checkpoint exports into ``model``: their EMA, if it has one."""
    verify_checkpoint(checkpoint)
    prefix = "average." if any(name.startswith("average.") for name in tensor_names(checkpoint)) else "model."
    load_tensors(checkpoint, model.state_dict(), prefix)
