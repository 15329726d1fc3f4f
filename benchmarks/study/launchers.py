"""The programs that steps may start, their commands, and the version of each command."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.study.resources import Resources
from clips.commandline.commands import Command
from clips.core.identity import result_settings, version_of
from clips.errors import UserError, unknown_name_error

CLI_ENTRY_POINTS: dict[str, str] = {
    "clips": "clips.cli",
    "llava-bridge": "llava_bridge.cli",
    "clips-bench": "benchmarks.cli",
}
"""Program → the module whose ``COMMANDS`` lists its subcommands."""
PYTHON_SCRIPT = "python"
"""The first word of a command that is a script of the user's: ``python path/to/script.py``."""

_SELF_LAUNCHING = ("llava-bridge", "train")
_DISTRIBUTED = {
    ("clips", "train"): "clips.cli",
    ("clips", "recaption"): "clips.cli",
    ("clips-bench", "run"): "benchmarks",
    _SELF_LAUNCHING: "llava_bridge",
}
"""Command that runs in several processes → the module that torchrun runs in each."""
_TRAININGS = {("clips", "train"), ("llava-bridge", "train")}
_TORCHRUN = "torchrun"
_PORTS = range(20_000, 32_000)


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
    """Check that a command exists.

    Raises:
        UserError: an unknown command, or a script that is missing.
    """
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
    found: dict[str, str] = {}
    scripts = [Path(words[1])] if words[0] == PYTHON_SCRIPT else []
    while scripts:
        try:
            nodes = [*ast.walk(ast.parse(scripts.pop().read_bytes()))]
        except (OSError, SyntaxError, ValueError):  # what the script says about it is in its step's log
            continue
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
        for name in sorted(names):
            module = Path(words[1]).with_name(f"{name}.py")
            if name not in found and module.is_file():
                found[name] = hashlib.sha256(module.read_bytes()).hexdigest()
                scripts.append(module)
    return found


def command_settings(words: tuple[str, ...], config: Any) -> Any:
    """The settings that a command's output depends on: of a training those that are not marked ``RUN_ONLY``.

    Of an evaluation all: its identity has some of those marked (task, data, judge) in another form.
    """
    return result_settings(config, find_command(words).config_class()) if words in _TRAININGS else config


def launch_command(words: tuple[str, ...], config: Path, resources: Resources) -> tuple[str, ...]:
    """A step's command with the launcher of its processes, as a user would type it.

    One process needs no launcher. ``llava-bridge train`` starts its own processes on one node. All others use torchrun,
    on several nodes started by srun on each.

    Raises:
        UserError: the command runs in one process only.
    """
    given = ("--config", str(config))
    if words == _SELF_LAUNCHING and resources.nodes == 1:  # 1 as well: it would use all visible GPUs
        return (*words, *given, "--distributed.num_processes", str(resources.processes))
    if resources.processes == resources.nodes == 1:
        return (*words, *given)
    if words not in _DISTRIBUTED:
        raise UserError(
            f"resources: '{' '.join(words)}' runs in one process; got processes: {resources.processes}, "
            f"nodes: {resources.nodes}"
        )
    timeout = ("--shutdown-timeout", "270")  # to save a checkpoint on SIGTERM; torchrun's default is 30 seconds
    count = ("--nproc-per-node", str(resources.processes))
    program = (*timeout, *count, "-m", _DISTRIBUTED[words], *words[1:], *given)
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
