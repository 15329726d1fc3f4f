"""One process or many: the same training, started by python, torchrun or deepspeed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from clips.errors import UserError, error_reason

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """The processes of a training, from the view of one of them.

    Args:
        rank: its rank.
        count: number of processes.
        device: its device.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0


def start_processes(*, patience: float = 1800) -> DistributedContext:
    """Join the process group of the launcher's environment, or create one with this process alone.

    An existing group is used as it is.

    Args:
        patience: seconds that a process may hang; the group's timeout is longer, so that the watchdog can name the
            process.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # Checkpoints are written over gloo while nccl trains.
        backend, wait = "cpu:gloo,cuda:nccl" if cuda else "gloo", datetime.timedelta(seconds=2 * patience + 60)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=wait, device_id=device if cuda else None)
        else:
            dist.init_process_group(backend, timeout=wait, store=dist.HashStore(), rank=0, world_size=1)
    return DistributedContext(rank=dist.get_rank(), count=dist.get_world_size(), device=device)


def describe_process() -> str:
    """A description of this process, for users of a cluster."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return f"rank {rank} (host {socket.gethostname()}, process {os.getpid()})"


def all_reduce_mean(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over all processes; the values themselves where there is one."""
    everyone = all_gather_objects(values)
    return {name: sum(theirs[name] for theirs in everyone) / len(everyone) for name in values}


def all_gather_objects(value: Any) -> list[Any]:
    """``value`` of every process, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_or_none(work: Callable[[], Result]) -> Result:
    """What ``work`` returns; an error that it meets in any process is raised in all. All call it together.

    Raises:
        UserError, OSError: as ``work`` does in any process.
        RuntimeError: in the others, where it raises anything else in one.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:  # the others would wait for this process for ever
        error = raised
    told = error if error is None or isinstance(error, UserError | OSError) else RuntimeError(error_reason(error))
    found = next(filter(None, all_gather_objects(told)), None)
    if error is not None:
        raise error
    if found is not None:
        raise found
    return result


def from_main(work: Callable[[], Result]) -> Result:
    """What ``work`` returns in the main process, which alone does it; so with its errors. All call it together."""
    if not dist.is_initialized():
        return work()
    values: list[Any] = [all_or_none(lambda: work() if dist.get_rank() == 0 else None)]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def machine_group() -> Iterator[tuple[Any, int]]:
    """A process group of the processes on this node, and the rank of the first of them. A collective call."""
    if not dist.is_initialized():
        yield None, 0
        return
    hosts = all_gather_objects(socket.gethostname())
    ranks = [rank for rank, host in enumerate(hosts) if host == hosts[dist.get_rank()]]
    group = dist.new_group(ranks, use_local_synchronization=True)
    try:
        yield group, ranks[0]
    finally:
        dist.destroy_process_group(group)


def wait_for_main_process() -> None:
    """Return when all processes have arrived here."""
    if dist.is_initialized():
        dist.barrier()


def end_processes() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
