"""Checkpoints, from which a training goes on exactly: written in the background, whole or not at all, and checked.

All that training depends on is the weights, the optimizer's state and the number of steps done: the order of the
samples and every random draw are functions of (seed, step), so nothing else needs to be kept. torch's distributed
checkpointing writes each process's shards as safetensors and reads them into any other number of processes.
"""

from __future__ import annotations

import concurrent.futures
import copy
import datetime
import errno
import functools
import json
import os
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

from clips.core.artifact import atomic_write, file_hash, write_errors_as_user_errors
from clips.errors import UserError, error_reason
from clips.jsontext import safe_json_loads
from clips.parallel.distributed import DistributedContext, all_or_none, from_main, machine_group
from clips.redaction import redact
from clips.serialization import to_plain, to_yaml
from clips.training.train_state import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    TRAIN_STATE_FILE,
    TrainState,
    list_checkpoints,
    loop_text,
)

_HASHES = "hashes.json"
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # of directories, by file systems that know no such thing
_READ_AT_ONCE = 1 << 30  # bytes of tensors
_LONGEST_WRITING = datetime.timedelta(hours=2)


class Checkpointer:
    """Writes the checkpoints of one run while it goes on; all processes make the same calls.

    Args:
        output: the run's directory.
        processes: who trains.
        keep: how many checkpoints stay.
    """

    def __init__(self, output: str | Path, processes: DistributedContext, *, keep: int) -> None:
        self.folder, self.processes, self.keep = Path(output) / CHECKPOINTS_DIR, processes, keep
        # A group of its own: what the training exchanges meanwhile must not get in between.
        self._group = dist.new_group(backend="gloo", timeout=_LONGEST_WRITING)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None

    def save(self, tensors: Mapping[str, Tensor], loop: TrainState, config: Any) -> None:
        """Begin to write a checkpoint; returns once the tensors are copied.

        Args:
            tensors: what this process writes of them, shards or whole ones; no other is given these.
            loop: where the run stands, on the main process.
            config: the run's.

        Raises:
            UserError: the place cannot be written; also what went wrong with the checkpoint before.
        """
        self.wait()
        checkpoint = self.folder / f"step-{loop.step:08d}"
        partial = checkpoint.with_name(f".{checkpoint.name}.partial")
        from_main(lambda: self._make(partial))
        copied = {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
        config_text = to_yaml(redact(to_plain(config)))
        self._writing = self._thread.submit(self._write, partial, checkpoint, copied, config_text, copy.deepcopy(loop))

    def poll(self) -> None:
        """Raise what went wrong with a checkpoint whose writing has ended."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when the checkpoint is there; raise what went wrong."""
        if self._writing is None:
            return
        ended, self._writing = self._writing, None
        ended.result()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def _make(self, partial: Path) -> None:
        with write_errors_as_user_errors(partial):
            for leftover in self.folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)

    def _write(
        self, partial: Path, checkpoint: Path, tensors: dict[str, Tensor], config_text: str, loop: TrainState
    ) -> None:
        try:
            _save_tensors(partial, tensors, self._group)
            if self.processes.is_main:
                for name, text in {CONFIG_FILE: config_text, TRAIN_STATE_FILE: loop_text(loop)}.items():
                    atomic_write(partial / name, text)
                kept = [path for path in sorted(partial.iterdir()) if path.name != CONFIG_FILE]  # people may edit that
                hashes = {path.name: file_hash(path) for path in kept}
                atomic_write(partial / _HASHES, json.dumps(hashes, indent=2) + "\n")
                for path in (*partial.iterdir(), partial):  # on the disk before it has the name of a whole one
                    _sync(path)
                shutil.rmtree(checkpoint, ignore_errors=True)
                partial.replace(checkpoint)
                _sync(self.folder)
                for old in list_checkpoints(self.folder.parent)[: -self.keep]:
                    shutil.rmtree(old.rename(old.with_name(f".{old.name}.partial")))  # never half a checkpoint
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _sync(path: Path) -> None:
    """Return once what ``path`` holds, a file or a directory, outlives the machine's power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def _save_tensors(folder: Path, tensors: dict[str, Tensor], group: Any) -> None:
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group)
    except dcp.CheckpointException as error:
        raise _cause(error) from None


def _cause(error: dcp.CheckpointException) -> BaseException:
    """What went wrong in the process that failed first, where the system said it; else the whole story."""
    causes = [found[0] for _, found in sorted(error.failures.items())]
    return next((cause for cause in causes if isinstance(cause, OSError | UserError)), error)


def verify_checkpoint(checkpoint: Path) -> None:
    """Refuse a checkpoint of which a file is missing or has other content than was written; UserError names it."""
    advice = "remove this checkpoint to go on without it"
    path = checkpoint / _HASHES
    try:
        hashes = dict(safe_json_loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: broken ({error_reason(error)}); {advice}") from None
    for name, recorded in hashes.items():
        if not (checkpoint / name).is_file():
            raise UserError(f"{checkpoint / name}: missing; {advice}")
        if file_hash(checkpoint / name) != recorded:
            raise UserError(f"{checkpoint / name}: damaged, it is not what was written; {advice}")


def verify_checkpoint_distributed(checkpoint: Path) -> None:
    """`verify` by the main process; all processes raise what it finds."""
    from_main(lambda: verify_checkpoint(checkpoint))


def tensor_names(checkpoint: Path) -> set[str]:
    """Names of a checkpoint's tensors, which the main process reads. All processes of a training call it together."""
    return from_main(lambda: set(_Reader(checkpoint).read_metadata().state_dict_metadata))


def load_tensors(checkpoint: Path, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Fill ``tensors``, whole or shards, with those of ``checkpoint``, where they are called ``prefix`` + name.

    The first process of each machine reads the files, once, and broadcasts to the others of its machine. All processes
    of a training call it together, with the same names.

    Raises:
        UserError: one is missing or of another shape.
    """
    with machine_group() as (group, first):
        reader = _Reader(checkpoint) if not dist.is_initialized() or dist.get_rank() == first else None
        shapes = {prefix + name: tuple(value.shape) for name, value in tensors.items()}
        all_or_none(lambda: None if reader is None else reader.refuse_unlike(shapes))
        for part in _parts(tensors):
            filled = {prefix + name: _buffer(tensors[name]) for name in part}
            all_or_none(functools.partial(_read, reader, filled))
            for name in part:
                if group is not None and dist.get_world_size(group) > 1:
                    dist.broadcast(filled[prefix + name], first, group=group)
                _take(tensors[name], filled.pop(prefix + name))


class _Reader(dcp.HuggingFaceStorageReader):
    """Reads whole tensors of a checkpoint; what its files hold is looked up once."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(str(checkpoint))
        self.checkpoint = checkpoint

    @functools.cached_property
    def _known(self) -> Any:
        return super().read_metadata()

    def read_metadata(self) -> Any:
        """See torch."""
        return self._known

    def refuse_unlike(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError where a tensor is missing or of another shape."""
        stored: Mapping[str, Any] = self.read_metadata().state_dict_metadata
        for name, shape in shapes.items():
            if name not in stored or tuple(stored[name].size) != shape:
                raise UserError(
                    f"{self.checkpoint}: {name} is missing or has another shape; expected a checkpoint of this model"
                )


def _read(reader: _Reader | None, tensors: dict[str, Tensor]) -> None:
    """Fill ``tensors``, which are whole; without a reader another process does."""
    if reader is None:
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """The names in groups; the whole tensors of each take at most `_READ_AT_ONCE` bytes, or are one."""
    part: list[str] = []
    size = 0
    for name, value in tensors.items():
        whole_size = value.numel() * value.element_size()
        if part and size + whole_size > _READ_AT_ONCE:
            yield part
            part, size = [], 0
        part.append(name)
        size += whole_size
    if part:
        yield part


def _buffer(value: Tensor) -> Tensor:
    """Where the whole of ``value`` is read to: in place, if it is whole and its numbers follow one another."""
    if isinstance(value, DTensor):
        return torch.empty(value.shape, dtype=value.dtype, device=value.device)
    return value if value.is_contiguous() else torch.empty_like(value, memory_format=torch.contiguous_format)


@torch.no_grad()
def _take(value: Tensor, filled: Tensor) -> None:
    """Fill ``value`` with ``filled``, or its shard of it; no process sends anything."""
    if isinstance(value, DTensor):
        mesh = value.device_mesh
        everywhere = DTensor.from_local(filled, mesh, [Replicate()] * mesh.ndim, run_check=False)
        value.to_local().copy_(everywhere.redistribute(placements=value.placements).to_local())
    elif value is not filled:
        value.copy_(filled)


def load_export_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put what a checkpoint would export into ``model``: its average of the weights, where it keeps one."""
    verify_checkpoint(checkpoint)
    kept = "average." if any(name.startswith("average.") for name in tensor_names(checkpoint)) else "model."
    load_tensors(checkpoint, model.state_dict(), kept)
