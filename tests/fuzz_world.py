"""Where broken input is given to a command in this process, and what must hold of its end."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import clips_world
import report_material
from PIL import Image

import benchmarks.cli
import clips.cli
import llava_bridge.cli
from clips.commandline.commands import Command, dispatch
from clips.safe_text import strip_control_chars

PROGRAMS = {
    "clips": ("", clips.cli.COMMANDS),
    "llava-bridge": (llava_bridge.cli.ABOUT, llava_bridge.cli.COMMANDS),
    "clips-bench": ("", benchmarks.cli.COMMANDS),
}
_MAX_SECONDS = 300
_LEFT_OVER = re.compile(r"\.(partial|replaced|added)$")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    def line(self) -> str:
        """The complaint."""
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


class HangError(BaseException):
    """Work waits, as for the other end of a pipe; no handler of other errors catches it."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise HangError in work that takes too long."""

    def give_up(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(program: str, words: list[str], commands: Mapping[str, Command] | None = None) -> Ended:
    """A command in this process; it may raise."""
    about, own = PROGRAMS[program]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
        status = dispatch(program, about, commands or own, words)
    return Ended(status, out.getvalue(), err.getvalue())


def attempt(work: Callable[[], Any], refusal: type[Exception]) -> tuple[Any, Any]:
    """The result of ``work``, or its expected error; any other exception is raised."""
    try:
        with limited():
            return work(), None
    except refusal as error:
        return None, error


def check_rejection(refused: Exception, *culprits: str) -> None:
    """An error names one of the culprits; `dispatch` prints it in one line."""
    assert any(_names(str(refused), culprit) for culprit in culprits), f"names none of {culprits}: {refused}"


def check_end(ended: Ended, program: str, *culprits: str, alone: bool = False) -> None:
    """A command did its work, or reported in one line what is wrong.

    Args:
        ended: how it ended.
        program: whose name begins the line.
        culprits: one of them must stand in the line.
        alone: whether nothing else may stand before it.
    """
    assert ended.status in {0, 2}, ended
    assert "Traceback" not in ended.err, ended.err
    assert not _CONTROL.search(ended.err.replace("\r", "")), ended.err
    if ended.status == 2:
        assert ended.line().startswith(program), ended.err
        assert len(ended.line()) > len(program) + 5, ended.err
        assert not alone or len(ended.err.strip().splitlines()) == 1, ended.err
        complaint = ended.line().removeprefix(program)
        assert not culprits or any(
            _names(complaint, strip_control_chars(" ".join(culprit.splitlines()))) for culprit in culprits
        ), f"names none of {culprits}: {ended.line()}"


def _names(complaint: str, culprit: str) -> bool:
    """Whether the whole name, not only a part of another word, stands in a complaint."""
    return bool(culprit) and re.search(rf"(?<!\w){re.escape(culprit)}(?!\w)", complaint) is not None


def check_nothing_left(folder: Path) -> None:
    """No half-written file or directory lies below ``folder``."""
    left = [path for path in folder.rglob("*") if _LEFT_OVER.search(path.name)]
    assert not left, left


class Parsing(Command):
    """A command that ends when its config is read and checked."""

    def function(self) -> Any:
        """One that takes the same config and does nothing."""
        kind = Command(**vars(self)).config_class()

        def nothing(config: Any) -> None:
            pass

        nothing.__annotations__ = {"config": kind, "return": None}
        return nothing


def parsing(program: str) -> dict[str, Command]:
    """A program's commands, of which none does its work."""
    return {name: Parsing(**vars(command)) for name, command in PROGRAMS[program][1].items()}


@dataclasses.dataclass
class World:
    """Material that is made once; each input gets a copy of what it changes."""

    folder: Path
    number: int = 0

    def __post_init__(self) -> None:
        self.shards = clips_world.write_shards(self.folder / "shards", (3, 2))
        self.results = report_material.put_results(self.folder / "results", {"clip": 0.4, "clips": 0.7})
        for kind, end in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("GIF", "gif"), ("TIFF", "tiff")):
            Image.effect_noise((24, 18), 50).convert("RGB").save(self.folder / f"picture.{end}", kind)
        self.pictures = [path.read_bytes() for path in sorted(self.folder.glob("picture.*"))]
        (self.folder / "images").mkdir()
        (self.folder / "images" / "a.png").write_bytes(clips_world.draw_image(1))

    def fresh(self) -> Path:
        """An empty directory."""
        self.number += 1
        shutil.rmtree(self.folder / f"input-{self.number - 1}", ignore_errors=True)
        place = self.folder / f"input-{self.number}"
        place.mkdir()
        return place
