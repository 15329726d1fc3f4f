"""The documentation's fenced blocks, and the commands in them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from clips.commandline.commands import Command

ROOT = Path(__file__).parents[1]
PROGRAMS = {"clips": "clips.cli", "llava-bridge": "llava_bridge.cli", "clips-bench": "benchmarks.cli"}
_MODULES = {"clips.cli": "clips", "clips": "clips", "llava_bridge": "llava-bridge", "benchmarks": "clips-bench"}
_SCRIPTS = {"scripts/slurm/train.sbatch": ["clips", "train"], "scripts/slurm/llava.sbatch": ["llava-bridge", "train"]}
"""SLURM's scripts, which hand their arguments on."""
_FENCE = re.compile(r"^( *)```(\S*)(.*)$")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: where it stands (``page:line``), what language, under which title, and its text."""

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclasses.dataclass(frozen=True)
class Shell:
    """A command of a shell block, on one line without its comment."""

    block: Block
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def called(self) -> list[str] | None:
        """The words of the suite's own command, program first, without a launcher; None for others."""
        return called(self.words)

    def __str__(self) -> str:
        return f"{self.block}: {self.text}"


def called(words: list[str]) -> list[str] | None:
    if words[0] in PROGRAMS:
        return words
    if words[0] == "sbatch":
        script = next(number for number, word in enumerate(words) if word.endswith(".sbatch"))
        return [*_SCRIPTS[words[script]], *words[script + 1 :]]
    if words[0] in {"torchrun", "deepspeed"}:
        module = next(number for number, word in enumerate(words) if word in {"-m", "--module"})
        return [_MODULES[words[module + 1]], *words[module + 2 :]]
    return None


def pages() -> list[str]:
    """The pages, as paths below the root."""
    written = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *written]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    found: list[Block] = []
    opened: tuple[int, re.Match[str]] | None = None
    inside: list[str] = []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and opened is None:
            opened, inside = (number, fence), []
        elif fence and opened:
            began, match = opened
            title = re.search(r'title="(.*?)"', match[3])
            found.append(Block(page, began, match[2], title[1] if title else "", "\n".join(inside) + "\n"))
            opened = None
        else:
            inside.append(line)
    assert opened is None, f"{page}:{opened and opened[0]}: a fence that does not end"
    return found


def shell(block: Block) -> Iterator[Shell]:
    """The commands of a shell block."""
    pending = ""
    for line in block.text.replace("\\\n", " ").splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote that continues
            continue
        if words:
            yield Shell(block, _without_comment(pending))
        pending = ""
    assert not pending, f"{block}: a quote that does not end: {pending!r}"


def _without_comment(text: str) -> str:
    """``text`` without what a shell takes for a comment."""
    for place in (match.start() for match in re.finditer(r"(?<=\s)#", text)):
        try:
            if shlex.split(text[:place]) == shlex.split(text, comments=True):
                return " ".join(text[:place].split())
        except ValueError:
            continue
    return " ".join(text.split())


def transcript(block: Block) -> Iterator[Shell]:
    """The commands of a block that shows a terminal: lines that begin with ``$``."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield Shell(block, line[2:])


def commands(program: str) -> Mapping[str, Command]:
    """The commands of one of the suite's programs."""
    known: Mapping[str, Command] = importlib.import_module(PROGRAMS[program]).COMMANDS
    return known


def split(words: list[str]) -> tuple[str, Command, list[str]]:
    """A call → its command's name, the command, and its arguments."""
    known = commands(words[0])
    name = next((name for size in (2, 1) if (name := " ".join(words[1 : size + 1])) in known), None)
    assert name is not None, f"no command {' '.join(words[:3])}"
    return name, known[name], words[1 + len(name.split()) :]
