"""An evaluation shared between the processes that torchrun or accelerate starts: each computes its part of the items.

    torchrun --nproc-per-node 8 -m benchmarks run --config row.yaml

All processes have all results in the end; the first alone writes and speaks. Several machines need a results directory
that they share.
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
    """This process's place among those that the launcher started, or alone."""
    from clips.parallel.distributed import DistributedContext, start_processes

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return start_processes(patience=_PATIENCE)
    return DistributedContext()


def run_on_all(processes: DistributedContext, work: Callable[[], Found]) -> Found:
    """Do this process's part of some work, and return when all have done theirs.

    Raises:
        UserError: one of the processes met with a mistake of the user's; all of them raise it.
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
