"""What steps are given to run on: processes, nodes, GPUs, cores, memory, hours.

    resources:
      encoder: {processes: 8, hours: 12}           # a kind of step: data, encoder, llm, llava, evaluation
      llava: {processes: 8, nodes: 2, hours: 24}
      "encoder-huge*": {nodes: 4}                  # steps by name; laid over their kind's

None of it is part of a step's key: a training takes the same samples in every step however many processes share its
batch, and a shared evaluation has the same scores. Sums come in another order, so that last digits may differ.
"""

from __future__ import annotations

import fnmatch
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.study.steps import Step, StepKind
from benchmarks.study.sweep import Settings
from clips.errors import UserError, unknown_name_error

STEP_KINDS: tuple[str, ...] = typing.get_args(StepKind)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one step runs on.

    Args:
        processes: on each node, started under the launcher that the step's command needs.
        nodes: machines that share the step; more than one under SLURM only.
        gpus: on each node, for executors that hand out GPUs (gpus, slurm). ``resolve_resources`` gives one for each
        process
            where the study says nothing, and none to steps of the kind ``data``.
        cpus: cores for each process; as the study's ``threads`` says where not given.
        memory_gb: on each node. Asked of SLURM; elsewhere nobody holds a step to it.
        time_limit_hours: at the longest. Asked of SLURM; elsewhere nobody holds a step to it.
    """

    processes: int = 1
    nodes: int = 1
    gpus: int = 0
    cpus: int | None = None
    memory_gb: float | None = None
    time_limit_hours: float | None = None

    def __post_init__(self) -> None:
        for name in ("processes", "nodes", "cpus"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name}: expected at least 1, got {value}")
        for name in ("memory_gb", "time_limit_hours"):
            if (value := getattr(self, name)) is not None and not 0 < value < 1e6:
                raise UserError(f"{name}: expected more than 0 and less than a million, got {value}")
        if self.gpus < 0:
            raise UserError(f"gpus: expected 0 or more, got {self.gpus}")


def resolve_resources(asked: Mapping[str, Settings], step: Step) -> Resources:
    """What a step is given: its kind's, over these every pattern's that fits its name, in their order.

    Args:
        asked: ``resources`` of the study, checked.
        step: a LLaVA's or LLM's may say ``launch.num_processes`` itself, which holds where ``asked`` is silent.
    """
    launch = step.config.get("launch")
    own = launch.get("num_processes") if isinstance(launch, Mapping) else None
    settings: dict[str, typing.Any] = {"processes": own} if isinstance(own, int) else {}
    settings |= asked.get(step.kind, {})
    for pattern, over in asked.items():
        if pattern not in STEP_KINDS and fnmatch.fnmatchcase(step.name, pattern):
            settings |= over
    settings = {name: value for name, value in settings.items() if value is not None}
    return Resources(**{"gpus": 0 if step.kind == "data" else settings.get("processes", 1), **settings})


def check_patterns(asked: Mapping[str, Settings], steps: Iterable[Step]) -> None:
    """Refuse resources for steps that the study does not have.

    Raises:
        UserError: naming the pattern, with the near miss.
    """
    names = [step.name for step in steps]
    for pattern in asked:
        if pattern not in STEP_KINDS and not fnmatch.filter(names, pattern):
            raise unknown_name_error(pattern, [*STEP_KINDS, *names], "kind or step in 'resources'")
