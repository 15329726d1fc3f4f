"""The resources of steps: processes, nodes, cores, memory, hours, and the GPUs of this machine with their locks.

    resources:
      encoder: {processes: 8, time_limit_hours: 12}    # a type of step: data, encoder, llava, evaluation
      llava: {processes: 8, nodes: 2, time_limit_hours: 24}
      "encoder-huge*": {nodes: 4}                      # steps by name, which override their type's

Resources are not part of a step's key: the global batch of a training is the same for any number of processes, and so
are the scores of an evaluation. The order of summation differs, so that last digits may differ.
"""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field

from benchmarks.study.locks import acquire
from benchmarks.study.sweep import Settings
from clips.errors import unknown_name_error
from clips.gpus import VISIBLE
from clips.ranges import NonNegative, Positive

if TYPE_CHECKING:
    from benchmarks.study.steps import Step

StepKind = Literal["data", "encoder", "llava", "evaluation"]
STEP_KINDS = get_args(StepKind)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one step.

    Args:
        processes: on each node, under the launcher of the step's command.
        nodes: of the step; more than one under SLURM only.
        gpus: on each node, seen by the step alone; by default one per process, and none for ``data`` steps.
        cpus: cores per process; by default the study's ``threads``.
        memory_gb: on each node, for a cluster; not enforced on this machine.
        time_limit_hours: for SLURM; not enforced by others.
    """

    processes: Positive = 1
    nodes: Positive = 1
    gpus: NonNegative = 0
    cpus: Positive | None = None
    memory_gb: Annotated[float, Field(gt=0, lt=1e6)] | None = None
    time_limit_hours: Annotated[float, Field(gt=0, lt=1e6)] | None = None

    def snakemake(self) -> dict[str, Any]:
        """The ``resources`` of a step's rule on a cluster, for Snakemake's plugins for SLURM and Kubernetes."""
        demands: dict[str, Any] = {}
        if self.gpus and self.nodes == 1:
            demands |= {"gpu": self.gpus, "gpu_manufacturer": "nvidia"}  # the latter for Kubernetes
        elif self.gpus:  # of SLURM, whose `gpu` is the number of all nodes, in any distribution
            demands |= {"gres": f"gpu:{self.gpus}"}
        if self.cpus:
            demands |= {"threads": self.cpus * self.processes}
        if self.memory_gb:
            demands |= {"mem_mb": round(self.memory_gb * 1024)}
        if self.time_limit_hours:
            demands |= {"runtime": max(1, round(self.time_limit_hours * 60))}
        if self.nodes > 1:
            demands |= {"nodes": self.nodes, "tasks": self.nodes, "tasks_per_gpu": 0, "mpi": "srun"}
        return demands


def resolve_resources(resources: Mapping[str, Settings], steps: Sequence[Step]) -> list[Resources]:
    """The resources of each step: those of its type, overridden by every matching pattern in order.

    A step's config may set ``distributed.num_processes``, the default of ``processes``.

    Raises:
        UserError: a pattern that matches no step, with its close match.
    """
    names = [step.name for step in steps]
    for pattern in resources:
        if pattern not in STEP_KINDS and not fnmatch.filter(names, pattern):
            raise unknown_name_error(pattern, [*STEP_KINDS, *names], "kind or step in 'resources'")
    found = []
    for step in steps:
        distributed = step.config.get("distributed")
        processes = distributed.get("num_processes") if isinstance(distributed, Mapping) else None
        settings: dict[str, Any] = {"processes": processes} if isinstance(processes, int) else {}
        settings |= resources.get(step.kind, {})
        for pattern, override in resources.items():
            if pattern not in STEP_KINDS and fnmatch.fnmatchcase(step.name, pattern):
                settings |= override
        settings = {name: value for name, value in settings.items() if value is not None}
        gpus = 0 if step.kind == "data" else settings.get("processes", 1)
        found.append(Resources(**{"gpus": gpus, **settings}))
    return found


def take_gpus(devices: Sequence[str], count: int) -> tuple[list[str], list[int]] | None:
    """Lock ``count`` of ``devices``; None if fewer are free.

    Returns:
        the devices, and the descriptors of their locks; closing a descriptor frees its device.
    """
    folder = Path(tempfile.gettempdir()) / f"clips-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    mutex = acquire(folder / "all.lock", wait=True)  # else two processes might each lock a part of their devices
    assert mutex is not None
    locks: dict[str, int] = {}
    try:
        for device in devices:
            if len(locks) < count and (lock := acquire(folder / f"{device.replace('/', '_')}.lock")) is not None:
                locks[device] = lock
    finally:
        os.close(mutex)
    if len(locks) == count:
        return list(locks), list(locks.values())
    for lock in locks.values():
        os.close(lock)
    return None


def gpu_environment(devices: Sequence[str]) -> dict[str, str]:
    """The environment variables that make only ``devices`` visible."""
    order = {} if VISIBLE in os.environ else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # the order of nvidia-smi's indices
    return {VISIBLE: ",".join(devices), **order}
