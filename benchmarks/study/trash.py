"""The trash of a study: outputs of a step that runs again move there, costly ones only with ``--yes``.

``trash/<time>-<step>/`` has the structure of the study's directory and contains the outputs with the step's record,
config and log; ``study clean`` empties it, and moves outputs there that the study no longer has. Outputs that took
longer than ``confirm_hours`` in all are replaced only with ``--yes``, or stay after ``study accept``.

Each output moves by one rename, and the new record is written after the last one. A kill in between leaves some outputs
in the trash and the former record: the next job moves the others and starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results.formatting import format_duration
from benchmarks.study.state import (
    CONFIG_FILE,
    LOG_FILE,
    RECORD,
    StepKey,
    StepRecord,
    is_at_work,
    is_done,
    read_record,
    relative_config,
    step_directory,
    write_record,
)
from benchmarks.study.steps import Step
from clips.core.artifact import MANIFEST, STAGES_DIR, UUID_PATTERN, write_errors_as_user_errors
from clips.errors import UserError
from clips.safe_text import redact
from clips.typed_data import flatten, to_plain

TRASH = "trash"
_ENTRY = re.compile(r"\d{8}T\d{6}Z-(?P<step>.+?)(?:-\d+)?")
_NAMED = 3  # of the costly steps, in messages


def move_outputs(output: Path, step: Step, key: StepKey, before: StepRecord | None) -> None:
    """Move the outputs of another key to the trash, so that old and new outputs never mix.

    Raises:
        UserError: the trash cannot be written.
    """
    for path in step.outputs:
        path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
    if found := replaced_paths(step, key, before):
        move(output, step.name, found)


def move(output: Path, name: str, paths: Sequence[Path]) -> Path:
    """Move paths of a study into a new directory of its trash, with the record, config and log of the step ``name``.

    Returns:
        the new directory.
    """
    with write_errors_as_user_errors(output / TRASH):
        target = _new_directory(output / TRASH, name)
        for file in (step_directory(output, name) / each for each in (RECORD, CONFIG_FILE, LOG_FILE)):
            if file.is_file():
                _target_path(target, output, file).write_bytes(file.read_bytes())
        for path in paths:
            _rename(path, _target_path(target, output, path))
    return target


def trash_entries(output: Path) -> list[tuple[Path, float]]:
    """The directories that `move` created, each with the seconds that its outputs took; 0 if they are not recorded."""
    found = []
    for path in sorted((output / TRASH).iterdir()) if (output / TRASH).is_dir() else ():
        if (named := _ENTRY.fullmatch(path.name)) and path.is_dir() and not path.is_symlink():
            record = read_record(path, named["step"]) or read_record(path, path.name.partition("Z-")[2])
            found.append((path, record.seconds if record else 0.0))
    return found


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


def _target_path(target: Path, output: Path, path: Path) -> Path:
    """The location of a study's path in a directory of the trash; its parents are created."""
    moved = target / (path.relative_to(output) if path.is_relative_to(output) else path.name)
    moved.parent.mkdir(parents=True, exist_ok=True)
    return moved


def _rename(path: Path, target: Path) -> None:
    try:
        path.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # a directory of the study may be a symlink to another file system
            raise
        shutil.move(path, target)


def replaced_paths(step: Step, key: StepKey, before: StepRecord | None) -> list[Path]:
    """The existing outputs and unfinished work of a step that its next job would replace."""
    found: list[Path] = []
    for path in step.outputs:
        if not _is_current(path, key, before):
            found += paths_of_output(path)
    return found


def paths_of_output(path: Path) -> list[Path]:
    """What exists of an output: itself, a result's items, the stages of a training and unfinished work."""
    items = [path.with_name(f"{path.stem}.items.parquet")] if path.suffix == ".json" else []
    return [
        each
        for each in (path, *items, path.with_name(f"{path.name}{STAGES_DIR}"), *_unfinished_work(path))
        if os.path.lexists(each)
    ]


def _is_current(path: Path, key: StepKey, before: StepRecord | None) -> bool:
    """Whether an output stays when its step runs again, because its own dependencies have not changed."""
    if before is None or before.accepted:  # the evaluation would replace accepted results, which other code wrote
        return False
    output_key = before.outputs.get(path.name)
    return output_key is not None and output_key == key.outputs.get(path.name)


def _unfinished_work(path: Path) -> Iterator[Path]:
    """The hidden paths of an interrupted command for an output ``a``, without those of an output ``a.b``."""
    names = re.compile(rf"\.{re.escape(path.name)}\.(?:replaced|work|(?:{UUID_PATTERN}\.)?partial)")
    with contextlib.suppress(OSError):  # no such directory, or an impossible name
        yield from [sibling for sibling in path.parent.iterdir() if names.fullmatch(sibling.name)]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory; symlinks are not followed."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement:
    """A finished step that would be executed again.

    Args:
        name: of the step.
        paths: that would go to the trash.
        seconds: time that they took, including the jobs that were resumed.
        reason: why the step would be executed again.
    """

    name: str
    paths: tuple[Path, ...]
    seconds: float
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


def replacements(
    steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, *, rerun: Collection[str] = ()
) -> list[Replacement]:
    """The finished steps that would be executed again, in the given order; those in ``rerun`` also without a change."""
    found = []
    for step in steps:
        key, before = keys[step.name], read_record(output, step.name)
        current = before is not None and before.key == key.key
        if step.name in rerun:
            key, reason = StepKey(key="", outputs={}), "rerun"
        elif is_done(step, key, output) or (before is not None and current and before.status != "done"):
            continue  # done, or its next job resumes
        else:
            reason = _reason(key, before)
        paths = replaced_paths(step, key, before)
        if paths or current:  # otherwise its outputs were deleted or are in the trash already
            seconds = _cost(step, key, before)
            found.append(Replacement(name=step.name, paths=tuple(paths), seconds=seconds, reason=reason))
    return found


def _reason(key: StepKey, before: StepRecord | None) -> str:
    if before is None:
        return "no record"
    if before.key == key.key:
        return "outputs missing or incomplete"
    changes = key.changes(before)
    return f"changed: {', '.join(changes)}" if changes else "changed" if before.key else "rerun"


def _cost(step: Step, key: StepKey, before: StepRecord | None) -> float:
    """Seconds that the outputs to be replaced took, from the record or from the outputs themselves."""
    replaced = [path for path in step.outputs if not _is_current(path, key, before)]
    # the step's last job, whose time the record has, may have written a new column only
    recorded = before.seconds if before is not None and len(replaced) == len(step.outputs) else 0.0
    return max(recorded, sum(map(stated_seconds, replaced)))


def stated_seconds(path: Path) -> float:
    """The time that a result or an artifact states; 0 if it states none."""
    try:
        stated = json.loads((path / MANIFEST if path.is_dir() else path).read_text(encoding="utf-8")).get("seconds")
    except (OSError, ValueError, AttributeError):
        return 0.0
    return float(stated) if isinstance(stated, int | float) else 0.0


def summarize_replacements(found: Sequence[Replacement], hours: float) -> str:
    """The number and size of all replacements, and whether they need ``--yes``, as one line."""
    total = sum(each.seconds for each in found)
    confirm = f"; --yes is needed, since they took {format_duration(total)}" if total > 3600 * hours else ""
    return f"{len(found)} recomputed, {sum(each.size for each in found) / 1e6:,.1f} MB to the trash{confirm}"


def describe_trash(output: Path) -> str:
    """The size of a study's trash, as the end of a sentence; empty if the trash is."""
    trash = output / TRASH
    if not trash.is_dir() or not any(trash.iterdir()):
        return ""
    return f"; {trash} holds {size_of(trash) / 1e6:,.1f} MB, which `clips-bench study clean` removes"


def check_costly(found: Sequence[Replacement], *, hours: float, study: str) -> None:
    """Reject replacements that took longer than ``hours`` in all.

    Raises:
        UserError: the longest steps with their times and reasons, and the alternatives.
    """
    total = sum(each.seconds for each in found)
    if total <= 3600 * hours:
        return
    longest = sorted((each for each in found if each.seconds), key=lambda each: -each.seconds)[:_NAMED]
    steps = ", ".join(f"{each.name} (took {format_duration(each.seconds)}; {each.reason})" for each in longest)
    steps += f" and {len(found) - len(longest)} more" if len(found) > len(longest) else ""
    keep = f", `clips-bench study accept {study} [STEP ...]` keeps them" if any(each.paths for each in found) else ""
    took = f"{format_duration(total)}, more than {format_duration(3600 * hours)}"
    raise UserError(f"would recompute steps that took {took}: {steps}; --yes recomputes them (their outputs "
                    f"go to the trash first){keep}")  # fmt: skip


def accept(steps: Sequence[Step], keys: Mapping[str, StepKey], output: Path, *, chosen: Collection[str]) -> list[str]:
    """Record that outputs are valid under the current keys of their steps.

    Dependent steps without another change are accepted with them. The record of how and when the outputs were made
    stays; ``StepRecord.accepted`` lists the differences.

    Args:
        chosen: names of steps; all changed ones if empty.

    Returns:
        a line for each accepted step and, without ``chosen``, for each changed step that was not accepted.

    Raises:
        UserError: a chosen step cannot be accepted; then none is.
    """
    current: set[str] = set()
    accepted: list[StepRecord] = []
    lines: list[str] = []
    for step in steps:
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
                lines.append(f"not {step.name}: {problem}")
            continue
        before = before or _new_record(step, output)
        accepted.append(_accepted(step, key, before, output))
        current.add(step.name)
        lines.append(f"{step.name}: {describe_acceptance(accepted[-1].accepted[-1])}")
    for record in accepted:
        write_record(output, record)
    return lines


def _not_acceptable(step: Step, before: StepRecord | None, current: Collection[str], output: Path) -> str | None:
    """Why the outputs of a step cannot be accepted, or None."""
    outdated = [parent for parent in step.parents if parent not in current]
    if outdated:
        return f"it depends on {outdated[0]}, which would be recomputed; accept that too"
    if is_at_work(output, step.name):
        return "a job is at work on it"
    if before is not None and before.status != "done":  # an interrupted training resumes
        if step.parts:
            return "it is unfinished, and would replace its results"
        work = [[path, path.with_name(f"{path.name}{STAGES_DIR}"), *_unfinished_work(path)] for path in step.outputs]
        return None if any(map(os.path.lexists, itertools.chain(*work))) else "it has no unfinished work to resume from"
    return next(iter(step.problems()), None)


def _new_record(step: Step, output: Path) -> StepRecord:
    """A record for outputs without one."""
    return StepRecord(
        name=step.name,
        kind=step.kind,
        command="",
        key="",
        status="done",
        started=min(path.stat().st_mtime for path in step.outputs),
        seconds=sum(map(stated_seconds, step.outputs)),
        output_paths=step.output_paths(output),
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


def describe_acceptance(entry: Mapping[str, Any]) -> str:
    """An entry of ``StepRecord.accepted`` as one line."""
    settings = [f"{name} {then!r:.60} → {now!r:.60}" for name, (then, now) in entry["settings"].items()]
    others = [name for name in entry["changed"] if name != "config" or not settings]
    return f"accepted {entry['when']}; changed since creation: {', '.join([*settings, *others]) or 'nothing'}"
