"""The processes of a training, started by python, torchrun or deepspeed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from clips.errors import UserError, error_reason
from clips.safe_text import log_info

EXIT_HUNG = 70
"""Exit status of a process that waited in vain for another (EX_SOFTWARE of sysexits.h)."""

_OPEN_FILES = 65_536
_LIFE_SIGN = 5.0  # seconds; a hang of the others is noticed after much more

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """The processes of a training, as this one sees them."""

    rank: int = 0
    count: int = 1  # of all processes
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and log lines."""
        return self.rank == 0


def start_processes(*, timeout: float = 1800.0) -> DistributedContext:
    """Join the process group of the launcher's environment, or create one of this process; an existing one is reused.

    Args:
        timeout: seconds that processes wait for another in a collective call.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # gloo connects each process with each, in two groups: 512 of them need 1,538 sockets, and may open 1,024 files
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        # Checkpoints are written over gloo while nccl trains.
        backend, wait = "cpu:gloo,cuda:nccl" if cuda else "gloo", datetime.timedelta(seconds=timeout)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(backend, timeout=wait, device_id=device if cuda else None)
        else:
            dist.init_process_group(backend, timeout=wait, store=dist.HashStore(), rank=0, world_size=1)
    return DistributedContext(rank=dist.get_rank(), count=dist.get_world_size(), device=device)


@contextlib.contextmanager
def exit_if_others_hang() -> Iterator[None]:
    """End this process with one line if a collective call in this block times out.

    It ends without cleaning up: threads, such as that of the checkpoints, would wait for the other process as well.
    NCCL's timeout ends the process itself, with a message of its own.
    """
    try:
        yield
    except RuntimeError as error:
        # of gloo, and of the store before the group exists
        if not any(text in str(error) for text in ("Timed out waiting", "wait timeout after")):
            raise
        log_info(
            f"rank {os.environ.get('RANK', 0)} (host {socket.gethostname()}, process {os.getpid()}) waited in vain for "
            f"another process, which hangs or takes longer than distributed.hang_timeout ({error_reason(error)}); ended"
        )
        os._exit(EXIT_HUNG)


def all_reduce_mean(values: dict[str, float]) -> dict[str, float]:
    """Return the mean of each value over all processes."""
    gathered = all_gather_objects(values)
    return {name: sum(theirs[name] for theirs in gathered) / len(gathered) for name in values}


def all_gather_objects(value: Any) -> list[Any]:
    """Return ``value`` of every process in rank order, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_or_none(work: Callable[[], Result]) -> Result:
    """Return the result of ``work``; an error on any process is raised on all. A collective call.

    Raises:
        UserError, OSError: as ``work`` on any process.
        RuntimeError: for any other error on another process.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:  # the other processes would wait for this one until the timeout
        error = raised
    first_error = next(filter(None, all_gather_objects(_portable(error))), None)
    if error is not None:
        raise error
    if first_error is not None:
        raise first_error
    return result


def from_main(work: Callable[[], Result]) -> Result:
    """Run ``work`` on the main process only; all return its result or raise its error. A collective call.

    The work may take hours, in which the other processes wait: the main one tells them that it is alive.

    Raises:
        UserError, OSError: as ``work``.
        RuntimeError: for any other error, on the other processes.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work()
    on_gpu = dist.get_backend() == "nccl"  # which has no collective calls on the CPU
    signal = torch.zeros(1, device="cuda" if on_gpu else "cpu")
    if dist.get_rank():
        while not signal.item():
            dist.broadcast(signal, 0)
        answers: list[Any] = [None]
        dist.broadcast_object_list(answers, src=0)
        result, error = answers[0]
        if error is not None:
            raise error
        return result

    ended, raised = threading.Event(), None
    result, lost = None, list[Exception]()  # why another process cannot be reached

    def signal_life() -> None:
        if on_gpu:
            torch.cuda.set_device(signal.device)
        try:
            while not ended.wait(_LIFE_SIGN):
                dist.broadcast(signal, 0)
        except RuntimeError as error:
            lost.append(error)

    thread = threading.Thread(target=signal_life, daemon=True)
    thread.start()
    try:
        result = work()
    except Exception as error:
        raised = error
    finally:
        ended.set()
    thread.join()
    if lost:
        raise lost[0]
    dist.broadcast(signal.fill_(1), 0)
    dist.broadcast_object_list([(result, _portable(raised))], src=0)
    if raised is not None:
        raise raised
    return result


def _portable(error: Exception | None) -> Exception | None:
    """The error as another process may raise it."""
    if isinstance(error, UserError | OSError):
        with contextlib.suppress(Exception):  # of libraries' own errors, which may hold anything
            return copy.deepcopy(error)  # which needs what pickling needs
    return error and RuntimeError(error_reason(error))


def wait_for_main_process() -> None:
    """Wait until all processes have made this call."""
    if dist.is_initialized():
        dist.barrier()


def end_processes() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
