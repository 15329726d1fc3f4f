"""Distributed evaluation over the processes of torchrun or accelerate: each computes its slice of the items.

    torchrun --nproc-per-node 8 -m benchmarks run --config model.yaml

At the end all processes have all results; only rank 0 writes files and logs. Several nodes need a shared results
directory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar
from unittest import mock

from clips.errors import UserError

if TYPE_CHECKING:
    from clips.parallel.distributed import DistributedContext

Found = TypeVar("Found")
_TIMEOUT = 43_200  # seconds: rank 0 may wait for another run or a judge while the others wait for it


def init_distributed() -> DistributedContext:
    """The launcher's process group, or a single process."""
    from clips.parallel.distributed import DistributedContext, start_processes

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return start_processes(timeout=_TIMEOUT)
    return DistributedContext()


def run_on_all(processes: DistributedContext, work: Callable[[], Found]) -> Found:
    """Run this process's slice of the work, and return when all processes have finished.

    Raises:
        UserError: a process raised it; all of them do.
        RuntimeError: another process failed.
    """
    if processes.count == 1:
        return work()
    from clips.parallel.distributed import all_gather_objects

    problem: BaseException | None = None
    try:
        found = work()
    except Exception as error:
        problem = error
    problems = all_gather_objects(None if problem is None else (isinstance(problem, UserError), str(problem)))
    if problem is not None:
        raise problem
    for rank, other in enumerate(problems):
        if other is not None:
            is_user_error, text = other
            raise UserError(text) if is_user_error else RuntimeError(f"process {rank} failed: {text}")
    return found


def run_on_main(processes: DistributedContext, work: Callable[[], Found]) -> Found:
    """Run ``work`` on rank 0 and return its result on all processes. Raises as `run_on_all`."""
    if processes.count == 1:
        return work()
    found = run_on_all(processes, lambda: work() if processes.is_main else None)
    from clips.parallel.distributed import all_gather_objects

    return all_gather_objects(found)[0]


@contextlib.contextmanager
def as_single_process() -> Iterator[None]:
    """Hide the process group from libraries that would wait for other processes (lmms-eval's evaluator)."""
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        yield
