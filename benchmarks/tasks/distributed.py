"""Distributed evaluation over the processes of torchrun or accelerate: each computes its slice of the items.

    torchrun --nproc-per-node 8 -m benchmarks run --config row.yaml

In the end all processes have all results; only rank 0 writes files and logs. Several nodes need a shared results
directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from clips.errors import UserError

if TYPE_CHECKING:
    from clips.parallel.distributed import DistributedContext

Found = TypeVar("Found")
_PATIENCE = 43_200  # seconds: the first may wait for another run, or for a judge, while the others wait for it


def init_distributed() -> DistributedContext:
    """This process's rank among those that the launcher started, or a single process."""
    from clips.parallel.distributed import DistributedContext, start_processes

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return start_processes(timeout=_PATIENCE)
    return DistributedContext()


def run_on_all(processes: DistributedContext, work: Callable[[], Found]) -> Found:
    """Run this process's slice of the work, and return when all processes have finished.

    Raises:
        UserError: one of the processes raised it; all of them raise it.
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
    said = all_gather_objects(None if problem is None else (isinstance(problem, UserError), str(problem)))
    if problem is not None:
        raise problem
    for rank, theirs in enumerate(said):
        if theirs is not None:
            mistake, text = theirs
            raise UserError(text) if mistake else RuntimeError(f"process {rank} failed: {text}")
    return found


def run_on_main(processes: DistributedContext, find: Callable[[], Found]) -> Found:
    """What the first process finds, for all of them. Raises as `together` does."""
    found = run_on_all(processes, lambda: find() if processes.is_main else None)
    if processes.count == 1:
        return found  # type: ignore[return-value]
    from clips.parallel.distributed import all_gather_objects

    return all_gather_objects(found)[0]
