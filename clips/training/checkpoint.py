"""Checkpoints for an exact resume: written in the background, verified by hashes, read by any number of processes.

They need no random state: the sample order and all random numbers are functions of (seed, step).
"""

from __future__ import annotations

import concurrent.futures
import copy
import datetime
import itertools
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from clips.core import durable
from clips.core.durable import atomic_write, write_errors_as_user_errors
from clips.core.identity import file_hash
from clips.core.run_log import METRICS_FILE
from clips.errors import UserError, error_reason
from clips.parallel.distributed import DistributedContext, from_main
from clips.safe_text import redact
from clips.text_files import safe_json_loads
from clips.training.run_dir import (
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
_FILE_BYTES = 64 << 20


class Checkpointer:
    """Writes the checkpoints of a run while it trains; all processes make the same calls.

    Args:
        output: the run's directory.
        processes: the processes of the training.
    """

    def __init__(self, output: str | Path, processes: DistributedContext) -> None:
        self.folder, self.processes = Path(output) / CHECKPOINTS_DIR, processes
        # A separate group: the training communicates at the same time.
        self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(hours=2))
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

        def create() -> None:
            with write_errors_as_user_errors(partial):
                for leftover in self.folder.glob(".step-*.partial"):
                    shutil.rmtree(leftover)
                partial.mkdir(parents=True)

        from_main(create)
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

    def _write(
        self, partial: Path, checkpoint: Path, tensors: dict[str, Tensor], config_text: str, state: TrainState
    ) -> None:
        try:
            with write_errors_as_user_errors(checkpoint):
                save_tensors(partial, tensors, self._group)
                if not self.processes.is_main:
                    return
                atomic_write(partial / CONFIG_FILE, config_text)
                atomic_write(partial / TRAIN_STATE_FILE, train_state_text(state))
                files = sorted(path for path in partial.iterdir() if path.name != CONFIG_FILE)  # which users may edit
                hashes = {path.name: file_hash(path) for path in files}
                atomic_write(partial / _HASHES, json.dumps(hashes, indent=2) + "\n")
                # A resume from here keeps the log's entries up to this step.
                if (log := self.folder.parent / METRICS_FILE).is_file():
                    durable.sync(log)
                    durable.sync(log.parent)  # its name
                if checkpoint.exists():
                    _remove(checkpoint)
                durable.replace(partial, checkpoint)
                for old in list_checkpoints(self.folder.parent)[:-KEPT_CHECKPOINTS]:
                    _remove(old)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _remove(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old.partial")))  # deletion is not atomic


class _Writer(dcp.HuggingFaceStorageWriter):
    """Several files for each process: torch serializes a file in memory before it writes it."""

    def prepare_global_plan(self, plans: list[dcp.SavePlan]) -> list[dcp.SavePlan]:
        sizes: dict[str, int] = {}
        for item in itertools.chain.from_iterable(plan.items for plan in plans):
            sizes[item.index.fqn] = max(sizes.get(item.index.fqn, 0), item.tensor_storage_size() or 0)
        starts = itertools.accumulate(sizes.values(), initial=0)
        self.fqn_to_index_mapping = {name: 1 + start // _FILE_BYTES for name, start in zip(sizes, starts, strict=False)}
        return super().prepare_global_plan(plans)


def save_tensors(folder: Path, tensors: dict[str, Tensor], group: Any) -> None:
    """Write the tensors of all processes into ``folder``.

    Raises:
        OSError: the disk is full or fails.
    """
    writer = _Writer(str(folder), save_distributed=True)
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


def load_tensors(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``tensors`` with those of the same names in a checkpoint; a collective call with the same names everywhere.

    A checkpoint is read once, however many processes there are: each reads its own shards, and the main process reads
    the full tensors and broadcasts them.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))

    def check_shapes() -> None:
        stored: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
        for name, value in tensors.items():
            if name not in stored or stored[name].size != value.shape:
                raise UserError(
                    f"{checkpoint}: {name} is missing or has another shape; expected a checkpoint of this model"
                )

    from_main(check_shapes)
    full = {name: value for name, value in tensors.items() if not isinstance(value, DTensor)}
    is_main = not dist.is_initialized() or dist.get_rank() == 0
    with warnings.catch_warnings():  # of one process, and of processes with different names
        warnings.filterwarnings("ignore", message="torch.distributed is|Detected mismatched keys")
        dcp.load({name: value for name, value in tensors.items() if is_main or name not in full}, storage_reader=reader)
    for value in full.values() if dist.is_initialized() else ():
        dist.broadcast(value, 0)


def load_export_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the weights that a checkpoint exports into ``model``: their EMA, if it has one."""
    verify_checkpoint(checkpoint)
    names = dcp.HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    part = "average" if any(name.startswith("average.") for name in names) else "model"
    load_tensors(checkpoint, {f"{part}.{name}": value for name, value in model.state_dict().items()})
