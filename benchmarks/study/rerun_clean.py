"""``clips-bench study rerun``: make chosen steps again. ``study accept``: take outputs as they are, though something
has changed. ``study clean``: remove what no step of the study makes, and the trash."""

from __future__ import annotations

import dataclasses
import fnmatch
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.formatting import strip_control_chars
from benchmarks.study.locks import locked
from benchmarks.study.step_state import read_record, stage_directories, step_directory, write_record
from benchmarks.study.steps import Step, topological_order
from benchmarks.study.study_commands import ResolvedStudy, StudyConfig, resolve_study, run_study_steps, study_record
from benchmarks.study.study_record import RECORD_FILE, write_study_record
from benchmarks.study.trash import TRASH, accept, move, size_of
from benchmarks.tasks.output_cache import CACHE_DIR
from clips.core.artifact import log_info
from clips.errors import UserError, unknown_name_error

_MADE = (
    "data",
    "encoders",
    "llms",
    "llava",
    "results",
    "steps",
    TRASH,
)  # folders in which each entry belongs to a step


@dataclass(frozen=True, kw_only=True)
class RerunConfig(StudyConfig):
    """Make chosen steps of a study again, and all that depends on them.

    Args:
        study: the study file, or the name of a study that is shipped (``mini``).
        steps: names of steps, or patterns such as ``evaluate-*`` (``study plan`` shows them); where none is given, all
            that make and evaluate the rows of ``include``, but not their data and LLMs.
        output: another directory for what it makes.
        jobs: steps that run at the same time; as the study says where not given.
        paths: name → directory, instead of those in the study's ``paths``.
        seeds: instead of the study's.
        include: encoders, entries or patterns such as ``photos.*``, instead of all.
        check: check every step's config, and that the files it needs are there, before the first one runs.
        wait_for_lock: for another runner that is at work in the study's directory, instead of rejecting.
        yes: make again also what took longer than ``confirm_hours``; the former outputs go to the study's trash.
        confirm_hours: instead of the study's.
    """

    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steps and not self.include:
            raise UserError("steps: expected names of steps, or 'include' with those of rows")


def rerun_steps(config: RerunConfig, *, report: Callable[[Path], None]) -> None:
    """Forget that the steps were done, then run the study.

    Args:
        config: the study and its steps.
        report: is given the study's directory at the end.

    Raises:
        UserError: a name that no step has, another runner works in this directory, or what took long would be made
            again; then nothing is forgotten.
    """
    keyed = resolve_study(config)
    named = _matching(keyed.plan.steps, config.steps) if config.steps else _of_rows(keyed.plan.steps)
    chosen = _with_descendants(named, keyed.plan.steps)
    keyed.reject_costly(config, again={step.name for step in chosen})
    known = [step for step in chosen if step_directory(keyed.output, step.name).is_dir()]
    if known:
        with locked(keyed.output, wait=config.wait_for_lock):
            for step in known:
                _forget(keyed.output, step.name)
            kept = keyed.output / "results" / CACHE_DIR
            if kept.is_dir() and any(step.kind == "evaluation" for step in known):
                move(keyed.output, "kept", [kept])  # else they would find there what the models gave before
    log_info(f"{keyed.plan.study.name}: again {', '.join(step.name for step in chosen)}")
    run_study_steps(config, report=report)


def _forget(output: Path, name: str) -> None:
    """Have the runner make a step again. Its record stays: it tells what is in the trash, and of a job at work."""
    record = read_record(output, name)
    if record is not None:
        write_record(output, dataclasses.replace(record, key="", outputs={}))


def _matching(steps: Sequence[Step], patterns: Iterable[str]) -> set[str]:
    names = [step.name for step in steps]
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise unknown_name_error(pattern, names, "step in 'steps'")
        found |= set(matched)
    return found


def _of_rows(steps: Sequence[Step]) -> set[str]:
    """The steps of the rows alone, without what other rows share with them."""
    return {step.name for step in steps if step.kind not in {"data", "llm"}}


def _with_descendants(chosen: set[str], steps: Sequence[Step]) -> list[Step]:
    found = []
    for step in topological_order(steps):
        if step.name in chosen or chosen & set(step.parents):
            chosen = chosen | {step.name}
            found.append(step)
    return found


@dataclass(frozen=True, kw_only=True)
class AcceptConfig(StudyConfig):
    """Record that outputs are good as they are, although settings, code or files have changed since they were made.

    Args:
        study: the study file, or the name of a study that is shipped (``mini``).
        steps: names of steps, or patterns such as ``encoder-*``; all that have changed where none is given. Steps that
            depend on them and of which nothing else has changed are accepted with them.
        output: another directory for what it makes.
        jobs: not used here.
        paths: name → directory, instead of those in the study's ``paths``.
        seeds: instead of the study's.
        include: encoders, entries or patterns such as ``photos.*``, instead of all.
        check: not used here.
        wait_for_lock: for another runner that is at work in the study's directory, instead of rejecting.
        yes: not used here.
        confirm_hours: not used here.
    """

    steps: tuple[str, ...] = ()


def accept_outputs(config: AcceptConfig) -> None:
    """Carry out ``config``, and print what differs of each accepted step.

    Raises:
        UserError: a name that no step has, a step that cannot be accepted, or another runner works in this directory.
    """
    keyed = resolve_study(config)
    chosen = _matching(keyed.plan.steps, config.steps) if config.steps else set[str]()
    if not keyed.output.is_dir():
        raise UserError(f"{keyed.output}: no study was run here")
    with locked(keyed.output, wait=config.wait_for_lock):
        keyed = resolve_study(config)
        told = accept(keyed.plan.steps, keyed.keys, keyed.output, chosen=chosen)
        if told and (keyed.output / RECORD_FILE).is_file():  # the report asks it for the keys
            write_study_record(keyed.output, study_record(keyed, config.file))
    for line in told or [f"{keyed.output}: nothing has changed since it was made"]:
        print(strip_control_chars(line))


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StudyConfig):
    """Remove from a study's directory its trash, and what none of its steps makes: of encoders that were renamed.

    Args:
        study: the study file, or the name of a study that is shipped (``mini``).
        force: remove; by default it is only listed.
        include_cache: remove also what models gave, kept next to the results so that evaluations resume and need not
        ask
            twice.
        output: another directory for what it makes.
        jobs: not used here.
        paths: name → directory, instead of those in the study's ``paths``.
        seeds: instead of the study's; those of others are removed.
        include: encoders, entries or patterns such as ``photos.*``, instead of all; what belongs to others is removed.
        check: not used here.
        wait_for_lock: for another runner that is at work in the study's directory, instead of rejecting.
        yes: not used here.
        confirm_hours: not used here.
    """

    force: bool = False
    include_cache: bool = False


def run_clean(config: CleanConfig) -> None:
    """List, or remove, what is left over.

    Raises:
        UserError: another runner works in this directory.
    """
    keyed = resolve_study(config)
    left = sorted(_left_over(keyed))
    if config.include_cache and (keyed.output / "results" / CACHE_DIR).is_dir():
        left.append(keyed.output / "results" / CACHE_DIR)
    total = sum(map(size_of, left))
    for path in left:
        print(f"{path.relative_to(keyed.output)}  {size_of(path) / 1e6:,.1f} MB")
    if not left:
        print(f"{keyed.output}: nothing that the study does not make")
    elif not config.force:
        print(f"{len(left)} of {total / 1e6:,.1f} MB would be removed; --really true does it")
    else:
        with locked(keyed.output, wait=config.wait_for_lock):
            for path in left:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        print(f"{len(left)} removed, {total / 1e6:,.1f} MB")


def _left_over(keyed: ResolvedStudy) -> Iterator[Path]:
    """Files and directories of former steps. Hidden ones and what lies outside of the study's own folders stay."""
    mine = {step_directory(keyed.output, step.name) for step in keyed.plan.steps}
    for step in keyed.plan.steps:
        mine |= {*step.outputs, *map(stage_directories, step.outputs)}
    mine |= {path.with_name(f"{path.stem}.items.parquet") for path in mine if path.suffix == ".json"}
    above = {parent for path in mine for parent in path.parents}
    waiting = [keyed.output / folder for folder in _MADE]
    while waiting:
        folder = waiting.pop()
        for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            if path.name.startswith(".") or path in mine:
                continue
            if path in above:
                waiting.append(path)
            else:
                yield path
