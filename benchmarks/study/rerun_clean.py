"""``clips-bench study rerun | clean``: run chosen steps again, remove what belongs to no step."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.formatting import format_duration
from benchmarks.study.build_steps import StudyPlan
from benchmarks.study.locks import locked
from benchmarks.study.state import RECORD, is_at_work, read_record, write_record
from benchmarks.study.steps import Step, step_directory
from benchmarks.study.study_commands import (
    StudyConfig,
    StudySelection,
    matching_steps,
    reject_costly,
    resolve_study,
    run_study_steps,
)
from benchmarks.study.study_record import read_study_record
from benchmarks.study.trash import move, paths_of_output, size_of, stated_seconds, trash_entries
from benchmarks.tasks.output_cache import CACHE_DIR
from clips.core.artifact import log_info
from clips.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RerunConfig(StudyConfig):
    """Run chosen steps of a study again, and all steps that depend on them.

    Args:
        steps: names or patterns such as ``evaluate-*`` (``study plan`` lists the names); default: all steps that train
            and evaluate the models of ``include``, without data and LLMs.
    """

    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.steps and not self.include:
            raise UserError("steps: expected names of steps, or 'include' with those of models")


def rerun_steps(config: RerunConfig, *, report: Callable[[Path], None]) -> None:
    """Reset the keys of the chosen steps, run the study, and call ``report`` with its directory.

    Raises:
        UserError: an unknown step, another runner in this directory, or a costly step without ``yes``; then no key has
            been reset.
    """
    plan = resolve_study(config)
    output = plan.study.directory
    named = matching_steps(plan.steps, config.steps) or {step.name for step in plan.steps if step.kind != "data"}
    chosen: dict[str, Step] = {}
    for step in plan.steps:
        if step.name in named or not chosen.keys().isdisjoint(step.parents):
            chosen[step.name] = step
    reject_costly(plan, config, rerun=chosen)
    existing = [step for step in chosen.values() if step.directory.is_dir()]
    if existing:
        with locked(output, wait=config.wait_for_lock):
            for step in existing:
                if (record := read_record(output, step.name)) is not None:  # the rest of it stays, for the trash
                    write_record(output, dataclasses.replace(record, key="", outputs={}))
            cache = output / "results" / CACHE_DIR
            if cache.is_dir() and any(step.kind == "evaluation" for step in existing):
                move(output, "kept", [cache])  # evaluations would reuse these model outputs
    log_info(f"{plan.study.name}: again {', '.join(chosen)}")
    run_study_steps(config, report=report)


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


@dataclass(frozen=True, kw_only=True)
class _Outdated:
    """Outputs of a step that the study no longer has.

    Args:
        step: its name; ``kept`` for the cache.
        paths: its outputs.
        seconds: time that they took, 0 if it is not recorded.
        removed: whether the step itself has left the study, not only these outputs of it.
    """

    step: str
    paths: tuple[Path, ...]
    seconds: float = 0.0
    removed: bool = False


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
            outdated.append(_Outdated(step="kept", paths=(cache,)))
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
        paths = tuple(each for path in gone for each in paths_of_output(path))
        removed = record.name not in current
        if paths or (removed and listed):
            seconds = record.seconds if removed else sum(map(stated_seconds, gone))
            yield _Outdated(step=record.name, paths=paths, seconds=seconds, removed=removed)
