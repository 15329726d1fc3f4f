"""``clips-bench study accept STUDY.yaml``: keep outputs despite a change."""

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.study.commands import StudySelection, matching_steps, resolve_study, study_record
from benchmarks.study.locks import locked
from benchmarks.study.state import (
    CONFIG_FILE,
    PARENT_MODULES,
    Step,
    StepRecord,
    StepState,
    describe_acceptance,
    is_at_work,
    state_of,
    write_record,
)
from benchmarks.study.steps import relative_config
from benchmarks.study.study_record import RECORD_FILE, read_study_record, write_study_record
from benchmarks.study.trash import stated_seconds, unfinished_work
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
