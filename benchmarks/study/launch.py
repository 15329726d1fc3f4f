"""How a step is started: the programs that it may run, and the processes, nodes, GPUs and hours of its job.

    resources:
      encoder: {processes: 8, time_limit_hours: 12}    # a kind of step, see ``STEP_KINDS``
      llava: {processes: 8, nodes: 2, time_limit_hours: 24}
      "encoder-huge*": {nodes: 4}                      # steps by name, which override their kind's

Resources are not part of a step's key: the global batch of a training is the same for any number of processes, and so
are the scores of an evaluation. The order of summation differs, so that last digits may differ.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from benchmarks.study.step_kinds import kind_of
from clips.commandline.commands import Command
from clips.core.identity import result_settings, version_of
from clips.errors import UserError, unknown_name_error
from clips.ranges import NonNegative, Positive

CLI_ENTRY_POINTS: dict[str, str] = {  # program → the module whose ``COMMANDS`` lists its subcommands
    "clips": "clips.cli",
    "llava-bridge": "llava_bridge.cli",
    "clips-bench": "benchmarks.cli",
}
PYTHON_SCRIPT = "python"  # first word of a script of the user's: ``python path/to/script.py``
_DISTRIBUTED_DATA: Mapping[tuple[str, ...], str] = {  # command of data steps → the module that torchrun runs
    ("clips", "recaption"): "clips.cli",
}
_TORCHRUN = "torchrun"
_PORTS = range(20_000, 32_000)


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


def find_command(words: tuple[str, ...]) -> Command:
    """The command of words such as ``("clips", "train")``.

    Raises:
        UserError: not a program of the suite, or an unknown command of it.
    """
    program, name = words[0], " ".join(words[1:])
    if program not in CLI_ENTRY_POINTS:
        raise unknown_name_error(program, [*CLI_ENTRY_POINTS, PYTHON_SCRIPT], "program of a command")
    commands: Mapping[str, Command] = importlib.import_module(CLI_ENTRY_POINTS[program]).COMMANDS
    if name not in commands:
        raise unknown_name_error(f"{program} {name}", [f"{program} {known}" for known in commands], "command")
    return commands[name]


def check_command(words: tuple[str, ...]) -> None:
    """Raise UserError for an unknown command, or a script that is missing."""
    if words[0] != PYTHON_SCRIPT:
        find_command(words)
    elif len(words) != 2 or not Path(words[1]).is_file():
        raise UserError(f"{' '.join(words)}: expected 'python FILE' with a file that exists")


def command_version(words: tuple[str, ...]) -> int | str:
    """The version of a command's results; of a script a hash of its text."""
    if words[0] == PYTHON_SCRIPT:
        return hashlib.sha256(Path(words[1]).read_bytes()).hexdigest()
    return version_of(" ".join(words))


def script_modules(words: tuple[str, ...]) -> dict[str, str]:
    """Name → a hash of the text, for the modules next to a script that it imports; empty for other commands."""
    modules: dict[str, str] = {}
    scripts = [Path(words[1])] if words[0] == PYTHON_SCRIPT else []
    while scripts:
        try:
            imported = _imported_names(scripts.pop().read_bytes())
        except (OSError, SyntaxError, ValueError):  # what the script says about it is in its step's log
            continue
        for name in sorted(imported - modules.keys()):
            module = Path(words[1]).with_name(f"{name}.py")
            if module.is_file():
                modules[name] = hashlib.sha256(module.read_bytes()).hexdigest()
                scripts.append(module)
    return modules


@functools.cache  # a study asks for each step that runs the script
def _imported_names(code: bytes) -> frozenset[str]:
    nodes = [*ast.walk(ast.parse(code))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return frozenset(names)


def command_settings(words: tuple[str, ...], config: Any) -> Any:
    """The settings that a command's output depends on: of a training those that are not marked ``RUN_ONLY``."""
    kind = kind_of(words)
    if kind is not None and kind.trains:
        return result_settings(config, find_command(words).config_class())
    return config  # of an evaluation all: its identity has some of those marked (task, data, judge) in another form


def launch_command(words: tuple[str, ...], config: Path, resources: Resources) -> tuple[str, ...]:
    """A step's command with the launcher of its processes, as a user would type it.

    One process needs no launcher. ``llava-bridge train`` starts its own processes on one node. All others use torchrun,
    on several nodes started by srun on each.

    Raises:
        UserError: the command runs in one process only.
    """
    given, kind = ("--config", str(config)), kind_of(words)
    if kind is not None and kind.starts_processes and resources.nodes == 1:  # 1 as well: it would use all visible GPUs
        return (*words, *given, "--distributed.num_processes", str(resources.processes))
    if resources.processes == resources.nodes == 1:
        return (*words, *given)
    module = kind.module if kind is not None else _DISTRIBUTED_DATA.get(words)
    if not module:
        raise UserError(
            f"resources: '{' '.join(words)}' runs in one process; got processes: {resources.processes}, "
            f"nodes: {resources.nodes}"
        )
    timeout = ("--shutdown-timeout", "270")  # to save a checkpoint on SIGTERM; torchrun's default is 30 seconds
    count = ("--nproc-per-node", str(resources.processes))
    program = (*timeout, *count, "-m", module, *words[1:], *given)
    if resources.nodes == 1:
        return (_TORCHRUN, "--standalone", *program)
    tasks = (f"--nodes={resources.nodes}", f"--ntasks={resources.nodes}", "--kill-on-bad-exit")
    meeting: tuple[str, ...] = ("--nnodes", str(resources.nodes), "--rdzv-backend", "c10d")
    if job := os.environ.get("SLURM_JOB_ID"):  # not while a study is planned; torchrun numbers the nodes itself
        listed = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        host = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()[0]
        meeting += ("--rdzv-id", job, "--rdzv-endpoint", f"{host}:{_PORTS[int(job) % len(_PORTS)]}")
    return ("srun", *tasks, _TORCHRUN, *meeting, *program)


def resolve_executable(words: tuple[str, ...]) -> list[str]:
    """The words of ``launch_command`` with the path of the program: next to this Python, else on PATH.

    Raises:
        UserError: the program is not installed.
    """
    if _TORCHRUN in words:
        at = words.index(_TORCHRUN)
        return [*words[:at], sys.executable, "-m", "torch.distributed.run", *words[at + 1 :]]
    if words[0] == PYTHON_SCRIPT:
        return [sys.executable, *words[1:]]
    sibling = Path(sys.executable).with_name(words[0])
    program = str(sibling) if sibling.is_file() else shutil.which(words[0])
    if program is None:
        raise UserError(f"{words[0]}: no such program; install the suite with `pip install -e .`")
    return [program, *words[1:]]
