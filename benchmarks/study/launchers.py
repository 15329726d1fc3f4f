"""The programs that steps may start, their commands, and the version of each command."""

from __future__ import annotations

import hashlib
import importlib
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.study.resources import Resources
from clips.commandline.commands import Command
from clips.core.identity import version_of
from clips.errors import UserError, unknown_name_error

CLI_ENTRY_POINTS: dict[str, str] = {
    "clips": "clips.cli",
    "llava-bridge": "llava_bridge.cli",
    "clips-bench": "benchmarks.cli",
}
"""Program → the module whose ``COMMANDS`` lists its subcommands."""
PYTHON_SCRIPT = "python"
"""The first word of a command that is a script of the user's: ``python path/to/script.py``."""

_STARTS_ITSELF = ("llava-bridge", "train")
_SHARED = {
    ("clips", "train"): "clips.cli",
    ("clips", "recaption"): "clips.cli",
    ("clips-bench", "run"): "benchmarks",
    _STARTS_ITSELF: "llava_bridge",
}
"""Command that several processes can share → the module that torchrun runs in each."""
_TORCHRUN = "torchrun"


def commands_of(program: str) -> Mapping[str, Command]:
    """The subcommands of a program.

    Raises:
        UserError: not a program of the suite.
    """
    if program not in CLI_ENTRY_POINTS:
        raise unknown_name_error(program, [*CLI_ENTRY_POINTS, PYTHON_SCRIPT], "program")
    return importlib.import_module(CLI_ENTRY_POINTS[program]).COMMANDS


def find_command(words: tuple[str, ...]) -> Command:
    """The command that ``("clips", "train")`` names.

    Raises:
        UserError: there is none.
    """
    commands, name = commands_of(words[0]), " ".join(words[1:])
    if name not in commands:
        raise unknown_name_error(f"{words[0]} {name}", [f"{words[0]} {known}" for known in commands], "command")
    return commands[name]


def check_command(words: tuple[str, ...]) -> None:
    """Refuse a command that does not exist.

    Raises:
        UserError: naming it.
    """
    if words[0] != PYTHON_SCRIPT:
        find_command(words)
    elif len(words) != 2 or not Path(words[1]).is_file():
        raise UserError(f"{' '.join(words)}: expected 'python FILE' with a file that exists")


def command_version(words: tuple[str, ...]) -> int | str:
    """The command's version number, or the SHA-256 of a user's script, which has none."""
    if words[0] == PYTHON_SCRIPT:
        return hashlib.sha256(Path(words[1]).read_bytes()).hexdigest()
    return version_of(" ".join(words))


def launch_command(words: tuple[str, ...], config: Path, resources: Resources) -> tuple[str, ...]:
    """A step's command with the launcher that its processes need, as a user would type it.

    One process needs none. ``llava-bridge train`` starts its own on one machine; for the others it is torchrun, which
    on several machines is told the rest by its environment (PET_NODE_RANK, PET_RDZV_ENDPOINT).

    Raises:
        UserError: the command cannot be shared by processes.
    """
    given = ("--config", str(config))
    if resources.processes == resources.nodes == 1:
        return (*words, *given)
    if words not in _SHARED:
        raise UserError(
            f"resources: '{' '.join(words)}' runs in one process; got processes: {resources.processes}, "
            f"nodes: {resources.nodes}"
        )
    if words == _STARTS_ITSELF and resources.nodes == 1:
        return (*words, *given, "--launch.num_processes", str(resources.processes))
    # a training saves when it is asked to stop, which torchrun gives it half a minute for unless it is told otherwise
    saves = ("--shutdown-timeout", "270")
    nodes = ("--standalone",) if resources.nodes == 1 else ("--nnodes", str(resources.nodes), "--rdzv-backend", "c10d")
    count = ("--nproc-per-node", str(resources.processes))
    return (_TORCHRUN, *nodes, *saves, *count, "-m", _SHARED[words], *words[1:], *given)


def resolve_executable(words: tuple[str, ...]) -> list[str]:
    """How to start a command: the program installed beside this Python, else the one on the path.

    Args:
        words: of a step, or what ``launch_command`` made of them.

    Raises:
        UserError: it is not installed.
    """
    if words[0] == _TORCHRUN:
        return [sys.executable, "-m", "torch.distributed.run", *words[1:]]
    if words[0] == PYTHON_SCRIPT:
        return [sys.executable, *words[1:]]
    beside = Path(sys.executable).parent / words[0]
    found = str(beside) if beside.is_file() else shutil.which(words[0])
    if found is None:
        raise UserError(f"{words[0]}: no such program; install the suite with `pip install -e .`")
    return [found, *words[1:]]
