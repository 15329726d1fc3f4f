"""A study deletes nothing that it made: outputs that are made again go to its trash, costly ones only when asked.

``trash/<time>-<step>/`` is laid out as the study's directory is, with the step's record, config and log beside the
outputs; ``study clean`` empties it. What took longer than the study's ``confirm_hours`` is replaced only with
``--yes``, or stays, when `accept` says that it is good as it is.

Each output moves by one rename, the record of the new run is written after the last. A kill in between leaves some
outputs in the trash and the former record: the next run moves the others and starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results.formatting import format_duration
from benchmarks.study.locks import is_at_work
from benchmarks.study.step_state import (
    CONFIG_FILE,
    LOG_FILE,
    RECORD,
    StepKey,
    StepRecord,
    is_done,
    read_record,
    relative_config,
    stage_directories,
    step_directory,
    write_record,
)
from benchmarks.study.steps import Step, topological_order
from clips.core.artifact import MANIFEST, UUID_PATTERN, write_errors_as_user_errors
from clips.errors import UserError
from clips.redaction import redact
from clips.serialization import flatten, to_plain

TRASH = "trash"


# ---------------------------------------------------------------- moving


def move_outputs(output: Path, step: Step, key: StepKey, before: StepRecord | None) -> None:
    """Move to the trash what was made under another key, so that old and new outputs never mix.

    Args:
        output: the study's directory.
        step: that is about to run.
        key: its current one.
        before: the record of its last run.

    Raises:
        UserError: the trash cannot be written.
    """
    for path in step.outputs:
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
    if found := replaced_paths(step, key, before):
        move(output, step.name, found)


def move(output: Path, name: str, paths: Sequence[Path]) -> Path:
    """Move paths of a study into a new directory of its trash.

    Args:
        output: the study's directory.
        name: of the step that made them, whose record, config and log are copied with them, if it has any.
        paths: below ``output``.

    Returns:
        the new directory.
    """
    with write_errors_as_user_errors(output / TRASH):
        target = _new_directory(output / TRASH, name)
        for file in (step_directory(output, name) / each for each in (RECORD, CONFIG_FILE, LOG_FILE)):
            if file.is_file():
                _place(target, output, file).write_bytes(file.read_bytes())
        for path in paths:
            _rename(path, _place(target, output, path))
    return target


def _new_directory(trash: Path, name: str) -> Path:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    trash.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        target = trash / (f"{now}-{name}" if number == 1 else f"{now}-{name}-{number}")
        try:
            target.mkdir()
        except FileExistsError:
            continue
        return target
    raise UserError(f"{trash}: too many directories of {name}; `clips-bench study clean` empties it")


def _place(target: Path, output: Path, path: Path) -> Path:
    """Where a path of the study goes in a directory of the trash; its parents are made."""
    place = target / (path.relative_to(output) if path.is_relative_to(output) else path.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _rename(path: Path, place: Path) -> None:
    try:
        path.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:  # a directory of the study may be a link to another file system
            raise
        shutil.move(path, place)


def replaced_paths(step: Step, key: StepKey, before: StepRecord | None) -> list[Path]:
    """What is there of a step's outputs, and beside them, that its next run would replace."""
    found: list[Path] = []
    for path in step.outputs:
        if not _stays(path, key, before):
            items = [path.with_name(f"{path.stem}.items.parquet")] if path.suffix == ".json" else []
            found += [path, *items, stage_directories(path), *_left_behind(path)]
    return [path for path in found if os.path.lexists(path)]


def _stays(path: Path, key: StepKey, before: StepRecord | None) -> bool:
    """Whether an output is not made again when its step is, for its own dependencies are as they were.

    An accepted one is: the command that evaluates would find that it was made by other code, and replace it.
    """
    if before is None or before.accepted:
        return False
    known = before.outputs.get(path.name)
    return known is not None and known == key.outputs.get(path.name)


def _left_behind(path: Path) -> Iterator[Path]:
    """What an interrupted command kept beside an output ``a``; that of an output ``a.b`` is not touched."""
    names = re.compile(rf"\.{re.escape(path.name)}\.(?:replaced|work|(?:{UUID_PATTERN}\.)?partial)")
    with contextlib.suppress(OSError):  # no such directory, or no such name is possible
        yield from [beside for beside in path.parent.iterdir() if names.fullmatch(beside.name)]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory; links are not followed."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


# ---------------------------------------------------------------- what a run would replace


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement:
    """A step that would be made again although it has run before.

    Args:
        name: the step.
        paths: what would go to the trash.
        seconds: what making it has cost, runs that it went on from included.
        reason: why it would be made again.
    """

    name: str
    paths: tuple[Path, ...]
    seconds: float
    reason: str

    @property
    def size(self) -> int:
        """Bytes that would go to the trash."""
        return sum(map(size_of, self.paths))

    def words(self, output: Path) -> str:
        """For ``study plan``: what would be made again and what would go to the trash."""
        names = ", ".join(os.path.relpath(path, output) for path in self.paths) or "nothing"
        took = f"took {format_duration(self.seconds)}" if self.seconds else "its time is not recorded"
        return f"made again ({self.reason}; {took}); to the trash: {names} ({self.size / 1e6:,.1f} MB)"


def replacements(
    steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, *, again: Collection[str] = ()
) -> list[Replacement]:
    """The steps that a run would make again, in the order given.

    Args:
        steps: of the study.
        keys: step name → its current key.
        output: the study's directory.
        again: steps that are to be made again although nothing has changed.
    """
    found = []
    for step in steps:
        key, before = keys[step.name], read_record(output, step.name)
        current = before is not None and before.key == key.key
        if step.name in again:
            key, reason = StepKey(key="", outputs={}), "rerun"
        elif is_done(step, key, output) or (before is not None and current and before.status != "done"):
            continue  # present, or its next run goes on from what is there
        else:
            reason = _reason(key, before)
        paths = replaced_paths(step, key, before)
        if paths or current:  # else there is nothing to lose: it was deleted, or is in the trash
            seconds = _cost(step, key, before)
            found.append(Replacement(name=step.name, paths=tuple(paths), seconds=seconds, reason=reason))
    return found


def _reason(key: StepKey, before: StepRecord | None) -> str:
    if before is None:
        return "no record of its run"
    if before.key == key.key:
        return "outputs missing"
    changes = key.changes(before)
    return f"changed: {', '.join(changes)}" if changes else "changed" if before.key else "rerun"


def _cost(step: Step, key: StepKey, before: StepRecord | None) -> float:
    """Seconds that the outputs have cost which a run would make again.

    The step's record knows the time of the whole step. Of single results, and without a record, the files themselves
    tell: a step that ran for a new column alone has recorded no more than that.
    """
    again = [path for path in step.outputs if not _stays(path, key, before)]
    whole = before.seconds if before is not None and len(again) == len(step.outputs) else 0.0
    return max(whole, sum(map(_stated_seconds, again)))


def _stated_seconds(path: Path) -> float:
    """The time that a result or an artifact states; 0 where it states none."""
    try:
        stated = json.loads((path / MANIFEST if path.is_dir() else path).read_text(encoding="utf-8")).get("seconds")
    except (OSError, ValueError, AttributeError):
        return 0.0
    return float(stated) if isinstance(stated, int | float) else 0.0


def replaced_in_all(found: Sequence[Replacement], hours: float) -> str:
    """A line about everything that a run would make again, and whether it needs ``--yes``."""
    costly = sum(each.seconds > 3600 * hours for each in found)
    asks = f"; --yes is needed, since {costly} took more than {format_duration(3600 * hours)}" if costly else ""
    return f"{len(found)} made again, {sum(each.size for each in found) / 1e6:,.1f} MB to the trash{asks}"


def trash_words(output: Path) -> str:
    """What is in a study's trash, to follow a sentence; empty where nothing is."""
    trash = output / TRASH
    if not trash.is_dir() or not any(trash.iterdir()):
        return ""
    return f"; {trash} holds {size_of(trash) / 1e6:,.1f} MB, which `clips-bench study clean` removes"


def check_costly(found: Sequence[Replacement], *, hours: float, study: str) -> None:
    """Refuse to make again what took longer than ``hours``.

    Args:
        found: what would be made again.
        hours: the limit.
        study: as it is named on the command line.

    Raises:
        UserError: the steps, what each took, why it would be made again, and how to go on.
    """
    costly = [each for each in found if each.seconds > 3600 * hours]
    if not costly:
        return
    steps = ", ".join(f"{each.name} (took {format_duration(each.seconds)}; {each.reason})" for each in costly)
    there = any(each.paths for each in costly)
    keep = f", `clips-bench study accept {study} [STEP ...]` keeps the outputs as they are" if there else ""
    took = format_duration(3600 * hours)
    raise UserError(f"would make again what took more than {took}: {steps}; --yes does it (into the trash first){keep}")


# ---------------------------------------------------------------- accepting


def accept(steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, *, chosen: Collection[str]) -> list[str]:
    """Record that outputs are good as they are: their key becomes the current one.

    With a step those that depend on it are accepted whose parents alone have changed. What was trained with other
    settings keeps its record of how and when; ``StepRecord.accepted`` tells what differs.

    Args:
        steps: of the study.
        keys: step name → its current key.
        output: the study's directory.
        chosen: names of steps; all that have changed where empty.

    Returns:
        what was accepted, and of all changed steps (without ``chosen``) which were not, a line each.

    Raises:
        UserError: a chosen step cannot be accepted; then none is.
    """
    current: set[str] = set()
    accepted: list[StepRecord] = []
    told: list[str] = []
    for step in topological_order(steps):
        key, before = keys[step.name], read_record(output, step.name)
        if before is not None and before.key == key.key:
            current.add(step.name)
            continue
        follows = before is not None and key.changes(before) == ["parents"] and current.issuperset(step.parents)
        if chosen and step.name not in chosen and not follows:
            continue
        if problem := _not_acceptable(step, before, current, output):
            if step.name in chosen:
                raise UserError(f"{step.name}: cannot be accepted: {problem}")
            if before is not None:
                told.append(f"not {step.name}: {problem}")
            continue
        before = before or _found(step, output)
        accepted.append(_accepted(step, key, before, output))
        current.add(step.name)
        told.append(f"{step.name}: {acceptance(accepted[-1].accepted[-1])}")
    for record in accepted:
        write_record(output, record)
    return told


def _not_acceptable(step: Step, before: StepRecord | None, current: Collection[str], output: Path) -> str | None:
    """Why the outputs of a step cannot be taken as they are; None where they can."""
    stale = [parent for parent in step.parents if parent not in current]
    if stale:
        return f"it depends on {stale[0]}, which would be made again; accept that too"
    if is_at_work(output, step.name):
        return "a job is at work on it"
    if before is not None and before.status != "done":  # a run that was interrupted goes on
        if step.parts:
            return "it has not ended, and would replace the results that it has"
        return None if any(map(os.path.lexists, _made_by(step))) else "it has left nothing to go on with"
    return next(iter(step.problems()), None)


def _made_by(step: Step) -> Iterator[Path]:
    for path in step.outputs:
        yield from (path, stage_directories(path), *_left_behind(path))


def _found(step: Step, output: Path) -> StepRecord:
    """A record of outputs that have none."""
    inside = [path.relative_to(output).as_posix() for path in step.outputs if path.is_relative_to(output)]
    return StepRecord(
        name=step.name,
        kind=step.kind,
        command="",
        key="",
        status="done",
        started=min(path.stat().st_mtime for path in step.outputs),
        seconds=sum(map(_stated_seconds, step.outputs)),
        output_paths=tuple(inside),
    )


def _accepted(step: Step, key: StepKey, before: StepRecord, output: Path) -> StepRecord:
    changes = key.changes(before) if before.parts else ["not recorded"]
    entry = {
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "key": before.key,
        "changed": changes,
        "settings": _changed_settings(step, output) if "config" in changes else {},
    }
    return dataclasses.replace(
        before, key=key.key, parts=key.parts, outputs=key.outputs, accepted=(*before.accepted, entry)
    )


def _changed_settings(step: Step, output: Path) -> dict[str, list[Any]]:
    """Dotted setting → [value in the config that made the outputs, current value], for settings that differ."""
    try:
        made_with = yaml.safe_load((step_directory(output, step.name) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(made_with, dict):
        return {}
    then, now = (
        dict(flatten(redact(relative_config(to_plain(config), directory))))
        for config, directory in ((made_with, _former_directory(made_with, step, output)), (step.config, output))
    )
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return {name: [then.get(name), now.get(name)] for name in names}


def _former_directory(made_with: Mapping[str, Any], step: Step, output: Path) -> Path:
    """The study's directory when a config was written, from the config's ``output``; it may have been moved since."""
    former, current = (str(config.get("output")) for config in (made_with, step.config))
    inside = f"/{os.path.relpath(current, output)}"
    return Path(former.removesuffix(inside)) if former.endswith(inside) else output


def acceptance(entry: Mapping[str, Any]) -> str:
    """An entry of ``StepRecord.accepted`` in words."""
    settings = [f"{name} {then!r:.60} → {now!r:.60}" for name, (then, now) in entry["settings"].items()]
    others = [name for name in entry["changed"] if name != "config" or not settings]
    differs = ", ".join([*settings, *others]) or "nothing"
    return f"accepted {entry['when']}; differs from what it was made with: {differs}"
