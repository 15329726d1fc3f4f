"""``clips-bench study rerun | accept | clean``: run chosen steps again, accept outputs after a change, remove files."""

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
from benchmarks.study.study_commands import (
    ResolvedStudy,
    StudyConfig,
    StudySelection,
    resolve_study,
    run_study_steps,
    study_record,
)
from benchmarks.study.study_record import RECORD_FILE, write_study_record
from benchmarks.study.trash import TRASH, accept, move, size_of
from benchmarks.tasks.output_cache import CACHE_DIR
from clips.core.artifact import log_info
from clips.errors import UserError, unknown_name_error

_STEP_FOLDERS = ("data", "encoders", "llms", "llava", "results", "steps", TRASH)  # every entry belongs to a step


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
    resolved = resolve_study(config)
    steps, output = resolved.plan.steps, resolved.output
    named = _matching(steps, config.steps) if config.steps else _training_and_evaluation(steps)
    chosen = _with_descendants(named, steps)
    resolved.reject_costly(config, rerun={step.name for step in chosen})
    existing = [step for step in chosen if step_directory(output, step.name).is_dir()]
    if existing:
        with locked(output, wait=config.wait_for_lock):
            for step in existing:
                _reset_key(output, step.name)
            cache = output / "results" / CACHE_DIR
            if cache.is_dir() and any(step.kind == "evaluation" for step in existing):
                move(output, "kept", [cache])  # evaluations would reuse these model outputs
    log_info(f"{resolved.plan.study.name}: again {', '.join(step.name for step in chosen)}")
    run_study_steps(config, report=report)


def _reset_key(output: Path, name: str) -> None:
    """Make a step outdated; the rest of its record stays for the trash and for a job at work."""
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


def _training_and_evaluation(steps: Sequence[Step]) -> set[str]:
    """The steps of single rows, without data and LLMs, which other rows may share."""
    return {step.name for step in steps if step.kind not in {"data", "llm"}}


def _with_descendants(names: set[str], steps: Sequence[Step]) -> list[Step]:
    found: dict[str, Step] = {}
    for step in topological_order(steps):
        if step.name in names or not found.keys().isdisjoint(step.parents):
            found[step.name] = step
    return list(found.values())


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
    resolved = resolve_study(config)
    chosen = _matching(resolved.plan.steps, config.steps) if config.steps else set[str]()
    output = resolved.output
    if not output.is_dir():
        raise UserError(f"{output}: no study was run here")
    with locked(output, wait=config.wait_for_lock):
        resolved = resolve_study(config)
        lines = accept(resolved.plan.steps, resolved.keys, output, chosen=chosen)
        if lines and (output / RECORD_FILE).is_file():  # the report reads the keys there
            write_study_record(output, study_record(resolved, config.file))
    for line in lines or [f"{output}: no step has changed"]:
        print(strip_control_chars(line))


@dataclass(frozen=True, kw_only=True)
class CleanConfig(StudySelection):
    """Remove the trash of a study, and outputs of steps that the study no longer has, as of a renamed encoder.

    Args:
        yes: remove them; by default they are only listed.
        include_cache: remove the cached model outputs, too, which evaluations reuse.
        seeds: overriding those of the study file; outputs of other seeds are removed.
        include: encoders, LLaVAs, entries or patterns such as ``photos.*``; outputs of others are removed.
        wait_for_lock: wait for another runner in the study's directory instead of raising an error.
    """

    yes: bool = False
    include_cache: bool = False
    wait_for_lock: bool = False


def run_clean(config: CleanConfig) -> None:
    """List or remove the files that belong to no step.

    Raises:
        UserError: another runner is at work in this directory.
    """
    resolved = resolve_study(config)
    output, cache = resolved.output, resolved.output / "results" / CACHE_DIR
    paths = sorted(_outdated_paths(resolved))
    if config.include_cache and cache.is_dir():
        paths.append(cache)
    total = sum(map(size_of, paths))
    for path in paths:
        print(f"{path.relative_to(output)}  {size_of(path) / 1e6:,.1f} MB")
    if not paths:
        print(f"{output}: every file belongs to a step")
    elif not config.yes:
        print(f"{len(paths)} of {total / 1e6:,.1f} MB would be removed; --yes removes them")
    else:
        with locked(output, wait=config.wait_for_lock):
            for path in paths:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        print(f"{len(paths)} removed, {total / 1e6:,.1f} MB")


def _outdated_paths(resolved: ResolvedStudy) -> Iterator[Path]:
    """Files and directories in the study's folders that belong to no step, except hidden ones."""
    current = {step_directory(resolved.output, step.name) for step in resolved.plan.steps}
    for step in resolved.plan.steps:
        current |= {*step.outputs, *map(stage_directories, step.outputs)}
    current |= {path.with_name(f"{path.stem}.items.parquet") for path in current if path.suffix == ".json"}
    parents = {parent for path in current for parent in path.parents}
    folders = [resolved.output / folder for folder in _STEP_FOLDERS]
    while folders:
        folder = folders.pop()
        for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
            if path.name.startswith(".") or path in current:
                continue
            if path in parents:
                folders.append(path)
            else:
                yield path
