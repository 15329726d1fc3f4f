"""The trash of a study: outputs of a step that runs again move there, costly ones only with ``--yes``.

``trash/<time>-<step>/`` has the structure of the study's directory and contains the outputs with the step's record,
config and log. It is a directory: who needs its space removes it.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.formatting import format_duration
from benchmarks.study.state import (
    CONFIG_FILE,
    LOG_FILE,
    MODULE_PARTS,
    RECORD,
    Step,
    StepRecord,
    state_of,
    step_directory,
)
from clips.core.artifact import MANIFEST, STAGES_DIR
from clips.core.durable import UUID_PATTERN, temp_path_for, write_errors_as_user_errors
from clips.errors import UserError

TRASH = "trash"
_NAMED = 3  # of the costly steps, in messages


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """A finished step that would be executed again."""

    name: str
    paths: tuple[Path, ...]  # that would go to the trash
    seconds: float  # that they took, including the jobs that were resumed
    reason: str

    @property
    def size(self) -> int:
        """Bytes that would go to the trash."""
        return sum(map(size_of, self.paths))

    def describe(self, output: Path) -> str:
        """The reason, the time and the paths that go to the trash, as one line."""
        names = ", ".join(os.path.relpath(path, output) for path in self.paths) or "nothing"
        took = f"took {format_duration(self.seconds)}" if self.seconds else "its time is not recorded"
        return f"recomputed ({self.reason}; {took}); to the trash: {names} ({self.size / 1e6:,.1f} MB)"


def replacements(steps: Iterable[Step], rerun: Collection[str] = ()) -> list[Replacement]:
    """The finished steps that would be executed again, in the given order; those in ``rerun`` also without a change."""
    replacing = []
    for step in steps:
        state = state_of(step)
        reason = "rerun" if step.name in rerun else state.rerun_reason
        if not reason:
            continue
        replaced = list(step.outputs) if step.name in rerun else replaced_outputs(step, state.record)
        paths = tuple(path for output in replaced for path in paths_of_output(output))
        if paths or state.is_current:  # otherwise its outputs were deleted or are in the trash already
            # The step's last job, whose time the record has, may have written a new column only.
            recorded = state.record.seconds if state.record and len(replaced) == len(step.outputs) else 0.0
            seconds = max(recorded, sum(map(stated_seconds, replaced)))
            replacing.append(Replacement(name=step.name, paths=paths, seconds=seconds, reason=reason))
    return replacing


def check_costly(replacing: Sequence[Replacement], *, hours: float, study: str) -> None:
    """Reject replacements that took longer than ``hours`` in all.

    Raises:
        UserError: the longest steps with their times and reasons, and the alternatives.
    """
    total = sum(each.seconds for each in replacing)
    if total <= 3600 * hours:
        return
    longest = sorted((each for each in replacing if each.seconds), key=lambda each: -each.seconds)[:_NAMED]
    steps = ", ".join(f"{each.name} (took {format_duration(each.seconds)}; {each.reason})" for each in longest)
    more = f" and {len(replacing) - len(longest)} more" if len(replacing) > len(longest) else ""
    keep = (
        f", `clips-bench study accept {study} [STEP ...]` keeps them" if any(each.paths for each in replacing) else ""
    )
    raise UserError(
        f"would recompute steps that took {format_duration(total)}, more than {format_duration(3600 * hours)}: "
        f"{steps}{more}; --yes recomputes them (their outputs go to the trash first){keep}"
    )


def replaced_outputs(step: Step, before: StepRecord | None) -> list[Path]:
    """The outputs that the step's next job replaces: all but those whose own dependencies have not changed."""
    if before is None or before.accepted or not MODULE_PARTS.isdisjoint(step.key.changes(before)):
        return list(step.outputs)  # an evaluation would replace accepted results, which other code wrote
    current = {name for name, key in step.key.outputs.items() if before.outputs.get(name) == key}
    return [path for path in step.outputs if path.name not in current]


def paths_of_output(path: Path) -> list[Path]:
    """What exists of an output: itself, a result's items, the stages of a training and unfinished work."""
    items = [path.with_name(f"{path.stem}.items.parquet")] if path.suffix == ".json" else []
    paths = [path, *items, path.with_name(f"{path.name}{STAGES_DIR}"), *unfinished_work(path)]
    return [each for each in paths if os.path.lexists(each)]


def unfinished_work(path: Path) -> list[Path]:
    """The hidden paths of an interrupted command for an output ``a``, without those of an output ``a.b``."""
    names = re.compile(rf"\.{re.escape(path.name)}\.(?:replaced|work|(?:{UUID_PATTERN}\.)?partial)")
    with contextlib.suppress(OSError):  # no such directory, or an impossible name
        return [sibling for sibling in path.parent.iterdir() if names.fullmatch(sibling.name)]
    return []


def stated_seconds(path: Path) -> float:
    """The time that a result or an artifact states; 0 if it states none."""
    try:
        stated = json.loads((path / MANIFEST if path.is_dir() else path).read_text(encoding="utf-8")).get("seconds")
    except (OSError, ValueError, AttributeError):
        return 0.0
    return float(stated) if isinstance(stated, int | float) else 0.0


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory; symlinks are not followed."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def move(output: Path, name: str, paths: Sequence[Path]) -> None:
    """Move paths of a study into a new directory of its trash, with the record, config and log of the step ``name``.

    Each path moves by one rename, and a new record is written after the last one. A kill in between leaves some paths
    in the trash and the former record: the next job moves the others and starts.
    """
    now, trash = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ"), output / TRASH

    def place_of(path: Path) -> Path:
        place = target / (path.relative_to(output) if path.is_relative_to(output) else path.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    with write_errors_as_user_errors(trash):
        trash.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            target = trash / (f"{now}-{name}" if number == 1 else f"{now}-{name}-{number}")
            with contextlib.suppress(FileExistsError):
                target.mkdir()
                break
        else:
            raise UserError(f"{trash}: too many directories of {name}; remove some")
        for file in (step_directory(output, name) / each for each in (RECORD, CONFIG_FILE, LOG_FILE)):
            if file.is_file():
                place_of(file).write_bytes(file.read_bytes())
        for path in paths:
            rename_path(path, place_of(path))


def rename_path(path: Path, target: Path) -> None:
    """Rename a file or directory, also to another file system."""
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # a directory of the study may be a symlink to another file system
            raise
        # What a kill leaves of the copy, or of the removed original, must not have the output's name.
        copy, rest = temp_path_for(target), temp_path_for(path)
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, copy, symlinks=True)
            copy.rename(target)
            path.rename(rest)
            shutil.rmtree(rest)
        else:
            shutil.copy2(path, copy, follow_symlinks=False)
            copy.rename(target)
            path.unlink()
