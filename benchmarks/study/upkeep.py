"""``clips-bench study accept | clean STUDY.yaml``: keep outputs despite a change, remove what belongs to no step."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.results.formatting import format_duration
from benchmarks.study.commands import StudySelection, matching_steps, resolve_study, study_record
from benchmarks.study.locks import locked
from benchmarks.study.state import (
    CONFIG_FILE,
    PARENT_MODULES,
    RECORD,
    Step,
    StepRecord,
    StepState,
    describe_acceptance,
    is_at_work,
    read_record,
    state_of,
    step_directory,
    write_record,
)
from benchmarks.study.steps import StudyPlan, relative_config
from benchmarks.study.study_record import RECORD_FILE, read_study_record, write_study_record
from benchmarks.study.trash import move, paths_of_output, size_of, stated_seconds, trash_entries, unfinished_work
from benchmarks.tasks.output_cache import CACHE_DIR
from clips.core.artifact import STAGES_DIR
from clips.errors import UserError
from clips.safe_text import redact, strip_control_chars
from clips.typed_data import flatten, to_plain


@dataclass(frozen=True, kw_only=True)
class AcceptConfig(StudySelection):
    """Record that outputs are still valid, although settings, files or the command's version have changed.

    Args:
        steps: names or patterns such as ``encoder-*``; default: all changed steps. Steps that depend on them and have
            no other change are accepted with them.
        wait_for_lock: wait for another runner in the study's directory instead of raising an error.
    """

    steps: tuple[str, ...] = ()
    wait_for_lock: bool = False


def accept_outputs(config: AcceptConfig) -> None:
    """Accept outputs, and print the differences of each accepted step.

    Raises:
        UserError: an unknown step, a step that cannot be accepted, or another runner in this directory.
    """
    plan = resolve_study(config)
    chosen = matching_steps(plan.steps, config.steps)
    output = plan.study.directory
    if not output.is_dir():
        raise UserError(f"{output}: no study was run here")
    with locked(output, wait=config.wait_for_lock):
        plan = resolve_study(config)
        lines = _accept(plan.steps, chosen)
        if not lines:
            read_study_record(output)  # which rejects a directory of no study
        if lines and (output / RECORD_FILE).is_file():  # the report reads the keys there
            write_study_record(output, study_record(plan, config.study))
    for line in lines or [f"{output}: no step has changed"]:
        print(strip_control_chars(line))


def _accept(steps: Iterable[Step], chosen: Collection[str]) -> list[str]:
    """Record that outputs are valid under the current keys of their steps; all changed ones if none is chosen.

    Dependent steps without another change are accepted with them. The record of how and when the outputs were made
    stays; ``StepRecord.accepted`` lists the differences. If a chosen step cannot be accepted, none is.

    Returns:
        a line for each accepted step and, without ``chosen``, for each changed step that was not accepted.
    """
    current: set[str] = set()
    accepted: list[tuple[Step, StepRecord]] = []
    lines: list[str] = []
    for step in steps:
        state = state_of(step)
        before = state.record
        if state.is_current:
            current.add(step.name)
            continue
        changes = step.key.changes(before) if before is not None else []
        follows = changes and {"parents", PARENT_MODULES}.issuperset(changes) and current.issuperset(step.parents)
        if chosen and step.name not in chosen and not follows:
            continue
        if problem := _not_acceptable(step, state, current):
            if step.name in chosen:
                raise UserError(f"{step.name}: cannot be accepted: {problem}")
            lines += [f"not {step.name}: {problem}"] if before is not None else []
            continue
        before = before or StepRecord(
            name=step.name,
            kind=step.kind,
            command="",
            key="",
            status="done",
            started=min(path.stat().st_mtime for path in step.outputs),
            seconds=sum(map(stated_seconds, step.outputs)),
            output_paths=step.output_paths(),
        )
        changes = changes if before.parts else ["not recorded"]
        entry = {
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "key": before.key,
            "changed": changes,
            "settings": _changed_settings(step) if "config" in changes else {},
        }
        accepted.append((step, replace(before, accepted=(*before.accepted, entry))))
        current.add(step.name)
        lines.append(f"{step.name}: {describe_acceptance(entry)}")
    for step, record in accepted:
        key = step.key
        write_record(step.study, replace(record, key=key.key, parts=key.parts, outputs=key.outputs))
    return lines


def _not_acceptable(step: Step, state: StepState, current: Collection[str]) -> str | None:
    """Why the outputs of a step cannot be accepted, or None."""
    if outdated := [parent for parent in step.parents if parent not in current]:
        return f"it depends on {outdated[0]}, which would be recomputed; accept that too"
    if is_at_work(step.directory):
        return "a job is at work on it"
    if state.record is None or state.record.status == "done":
        return next(iter(step.problems()), None)
    if step.parts:
        return "it is unfinished, and would replace its results"
    for path in step.outputs:  # an interrupted training resumes
        if path.exists() or path.with_name(f"{path.name}{STAGES_DIR}").exists() or unfinished_work(path):
            return None
    return "it has no unfinished work to resume from"


def _changed_settings(step: Step) -> dict[str, list[Any]]:
    """Dotted setting → [value in the config that made the outputs, current value], for settings that differ."""
    try:
        made_with = yaml.safe_load((step.directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    if not isinstance(made_with, dict):
        return {}
    # The study may have been moved since: its former directory follows from the config's ``output``.
    former, current = (str(config.get("output")) for config in (made_with, step.config))
    inside = f"/{os.path.relpath(current, step.study)}"
    directory = Path(former.removesuffix(inside)) if former.endswith(inside) else step.study
    then = dict(flatten(redact(relative_config(to_plain(made_with), directory))))
    now = dict(flatten(redact(relative_config(to_plain(step.config), step.study))))
    names = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    return {name: [then.get(name), now.get(name)] for name in names}


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StudySelection):
    """Empty the trash of a study, and move outputs of steps that the study no longer has there.

    Only outputs that the records of the study's own steps list are moved, as of a renamed encoder; the next ``clean``
    removes them.

    Args:
        yes: remove and move them; by default they are only listed, with the time that they took.
        include_cache: move the cached model outputs to the trash, too, which evaluations reuse.
        seeds: overriding those of the study file; outputs of other seeds are moved.
        include: encoders, LLaVAs, entries or patterns such as ``photos.*``; outputs of others are moved.
        wait_for_lock: wait for another runner in the study's directory instead of raising an error.
    """

    yes: bool = False
    include_cache: bool = False
    wait_for_lock: bool = False


class _Outdated(NamedTuple):
    """Outputs of a step that the study no longer has."""

    step: str  # ``kept`` for the cache
    paths: list[Path]
    seconds: float  # that they took, 0 if it is not recorded
    removed: bool  # the step itself has left the study, not only these outputs of it


def run_clean(config: CleanConfig) -> None:
    """List what belongs to no step, or remove the trash and move the rest there.

    Raises:
        UserError: no study or another one was run in this directory, or a runner is at work in it.
    """
    plan = resolve_study(config)
    output, name = plan.study.directory, plan.study.name
    recorded = read_study_record(output).name
    if recorded != name:
        raise UserError(f"output: expected the directory of the study '{name}', {output} is that of '{recorded}'")
    with locked(output, wait=config.wait_for_lock) if config.yes else contextlib.nullcontext():
        trash, outdated = trash_entries(output), [*_outdated_outputs(plan)]
        cache = output / "results" / CACHE_DIR
        if config.include_cache and cache.is_dir():
            outdated.append(_Outdated("kept", [cache], 0.0, False))
        for path, seconds in trash:
            print(f"{path.relative_to(output)}  {_size_and_time([path], seconds)}")
        for each in outdated:
            names = ", ".join(str(path.relative_to(output)) for path in each.paths) or "record"
            print(f"{names}  {_size_and_time(each.paths, each.seconds)}")
        removed = _size_and_time([path for path, _ in trash], sum(seconds for _, seconds in trash))
        moved = _size_and_time([path for each in outdated for path in each.paths], sum(e.seconds for e in outdated))
        if config.yes:
            for path, _ in trash:
                shutil.rmtree(path)
            for each in outdated:
                move(output, each.step, each.paths)
                if each.removed:
                    shutil.rmtree(step_directory(output, each.step))  # its record, config and log are in the trash
    if trash:
        print(f"{'removed' if config.yes else 'would be removed'} from the trash: {removed}")
    if outdated:
        print(f"{'moved' if config.yes else 'would move'} to the trash: {moved}")
    if not trash and not outdated:
        print(f"{output}: every recorded output belongs to a step")
    elif not config.yes:
        print("--yes removes and moves them; the next `study clean --yes` removes what has moved")


def _size_and_time(paths: Sequence[Path], seconds: float) -> str:
    took = f"took {format_duration(seconds)}" if seconds else "its time is not recorded"
    return f"{sum(map(size_of, paths)) / 1e6:,.1f} MB, {took}"


def _outdated_outputs(plan: StudyPlan) -> Iterator[_Outdated]:
    """The outputs that records of steps list and no step of the study has; those of a job at work stay."""
    output, current = plan.study.directory, {step.name for step in plan.steps}
    kept = {path for step in plan.steps for path in step.outputs}
    for file in sorted((output / "steps").glob(f"*/{RECORD}")):
        record = read_record(output, file.parent.name)
        if record is None or record.name != file.parent.name or is_at_work(file.parent):
            continue
        listed = [output / path for path in record.output_paths if ".." not in Path(path).parts]
        gone = [path for path in listed if path.is_relative_to(output) and path not in kept]
        paths = [each for path in gone for each in paths_of_output(path)]
        removed = record.name not in current
        if paths or (removed and listed):
            seconds = record.seconds if removed else sum(map(stated_seconds, gone))
            yield _Outdated(record.name, paths, seconds, removed)
