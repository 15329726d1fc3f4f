"""Who works on a step: a job that was queued, or the runner that does not want it any more.

A queued job may begin when nobody watches. Before it does anything it claims its run, by creating a file that nobody
has created before, which one of two can do alone, on file systems that machines share as well. A runner that finds a
queued job of another one takes its claim away; a job that comes too late ends without having written anything.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from benchmarks.study.executors.base import Ended
from clips.core.artifact import partial_beside, write_file
from clips.plain import plain

_NOBODY = "nobody"


def claim(directory: Path, token: str, who: str) -> bool:
    """Whether the run ``token`` is ``who``'s, now or since before (a job that was queued again).

    Args:
        directory: of the step.
        token: of the run.
        who: the job's id.
    """
    path = _claim_file(directory, token)
    partial = partial_beside(path)
    try:
        partial.write_text(who, encoding="utf-8")
        os.link(partial, path)  # whole at once, and only if nothing is there
    except FileExistsError:
        return path.read_text(encoding="utf-8") == who
    finally:
        partial.unlink(missing_ok=True)
    return True


def take_away(directory: Path, token: str) -> bool:
    """Whether no job works on the run, nor ever will."""
    directory.mkdir(parents=True, exist_ok=True)
    return claim(directory, token, _NOBODY) or read_end(directory, token) is not None


def claimed_by(directory: Path, token: str) -> tuple[str, float] | None:
    """The id of the job that has begun, and when (seconds since the epoch); None where none has."""
    path = _claim_file(directory, token)
    try:
        who, began = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except FileNotFoundError:
        return None
    return None if who == _NOBODY else (who, began)


def write_end(directory: Path, token: str, ended: Ended) -> None:
    """Note how the job ended."""
    write_file(_end_file(directory, token), json.dumps(plain(ended)) + "\n")


def read_end(directory: Path, token: str) -> Ended | None:
    """How the job ended; None where it has not."""
    try:
        told = json.loads(_end_file(directory, token).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Ended(**told)


def write_seconds(directory: Path, token: str, seconds: float) -> None:
    """Note the job's wall time until now, should it be killed or queued again."""
    write_file(_seconds_file(directory, token), f"{json.dumps(seconds)}\n")


def read_seconds(directory: Path, token: str) -> float | None:
    """The job's wall time when it last noted that; None where it has not."""
    try:
        return float(_seconds_file(directory, token).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def forget(directory: Path, token: str) -> None:
    """Remove what is known of a run that has been recorded (of none where ``token`` is empty)."""
    for path in (each(directory, token) for each in (_claim_file, _seconds_file, _end_file)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _claim_file(directory: Path, token: str) -> Path:
    return directory / f".{token}.claim"


def _seconds_file(directory: Path, token: str) -> Path:
    return directory / f".{token}.seconds"


def _end_file(directory: Path, token: str) -> Path:
    return directory / f".{token}.end"
