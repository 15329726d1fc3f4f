"""``clips-bench study run | plan | status | rerun STUDY.yaml``: execute a study, preview it, print its progress."""

from __future__ import annotations

import fnmatch
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.results.formatting import format_duration
from benchmarks.study.launch import check_command, launch_command
from benchmarks.study.locks import locked
from benchmarks.study.preflight import check_configs, check_input_files, plan_warnings
from benchmarks.study.run import LOG, run_steps
from benchmarks.study.schema import Study, read_study
from benchmarks.study.state import (
    CONFIG_FILE,
    LOG_FILE,
    Step,
    describe_machine,
    read_record,
    state_of,
    step_directory,
    write_record,
)
from benchmarks.study.status import STATE_STYLES, follow_progress, progress_display, progress_view, read_statuses
from benchmarks.study.step_kinds import STEP_KINDS
from benchmarks.study.steps import StudyPlan, build_plan, resolve_resources, with_keys
from benchmarks.study.study_record import RECORD_FILE, StepPlan, StudyRecord, write_study_record
from benchmarks.study.trash import TRASH, check_costly, move, replacements, size_of
from benchmarks.tasks.output_cache import CACHE_DIR
from clips.core.artifact import git_state, library_versions
from clips.core.parent_death import usable_cores
from clips.errors import UserError, unknown_name_error
from clips.ranges import NonNegative, NonNegativeFloat, Positive, PositiveFloat
from clips.safe_text import log_info

_OVERRIDING = ("output", "seeds", "include", "jobs", "profile", "confirm_hours")  # fields of a study, if given


@dataclass(frozen=True, kw_only=True)
class StudySelection:
    """A study and a part of it: the settings of all study commands.

    Args:
        study: the study file.
        output: directory of the study, overriding the study file.
        paths: name → directory, overriding ``paths`` of the study file.
        seeds: overriding those of the study file.
        include: encoders, LLaVAs, entries or patterns such as ``photos.*``; default: those of the study file.
    """

    study: str
    output: str | None = None
    paths: dict[str, str] = field(default_factory=dict)
    seeds: tuple[NonNegative, ...] | None = None
    include: tuple[str, ...] = ()

    def read(self) -> Study:
        """The study with the overrides of the command line."""
        study = read_study(self.study)
        for name in self.paths:
            if name not in study.paths:
                raise unknown_name_error(name, study.paths, "name in 'paths'")
        unknown = [name for name in self.include if not any(study.matches(name, model) for model in study.models)]
        if unknown:
            raise unknown_name_error(unknown[0], study.models, "encoder in 'include'")
        fields: dict[str, Any] = {name: getattr(self, name, None) for name in _OVERRIDING}
        given = {name: value for name, value in fields.items() if value not in (None, (), "")}
        return replace(study, paths={**study.paths, **self.paths}, **given)


@dataclass(frozen=True, kw_only=True)
class ScheduledStudyConfig(StudySelection):
    """Settings of the commands that run steps, or print which would run.

    Args:
        jobs: maximum number of concurrent steps, overriding the study file.
        profile: of Snakemake, a directory: where and how steps run, as on a SLURM cluster; overriding the study file.
        check: before the first step starts, check every step's config and that all input files exist.
        confirm_hours: overriding that of the study file.
    """

    jobs: Positive | None = None
    profile: str | None = None
    check: bool = True
    confirm_hours: NonNegativeFloat | None = None


@dataclass(frozen=True, kw_only=True)
class StudyConfig(ScheduledStudyConfig):
    """Run the unfinished steps of a study: new and changed ones, and the steps that depend on them.

    Args:
        wait_for_lock: wait for another runner in the study's directory instead of raising an error.
        yes: recompute steps that took longer than ``confirm_hours`` in all, too; their outputs go to the study's trash.
    """

    wait_for_lock: bool = False
    yes: bool = False


def resolve_study(config: StudySelection) -> StudyPlan:
    """Read a study and derive its steps with their resources and keys; UserError if the study file is invalid."""
    plan = build_plan(config.read())
    text = Path(config.study).read_text(encoding="utf-8")  # now, because the file may be edited while the study runs
    steps = []
    for step, resources in zip(plan.steps, resolve_resources(plan.study.resources, plan.steps), strict=True):
        check_command(step.command)
        launch_command(step.command, Path(), resources)
        steps.append(replace(step, resources=resources))
    return replace(plan, steps=with_keys(steps), text=text)


def run_study_steps(config: StudyConfig, *, report: Callable[[Path], None]) -> None:
    """Run the unfinished steps and report, under one lock of the study's directory. Exit status 1 if a step failed.

    Raises:
        UserError: the study is invalid, or would recompute costly steps; then no step has started.
    """
    from rich.console import Console

    plan = resolve_study(config)
    _reject_costly(plan, config)
    study, output = plan.study, plan.study.directory
    missing = [step for step in plan.steps if not state_of(step).is_done]
    log_info(f"{study.name}: {len(plan.steps)} steps, {len(plan.steps) - len(missing)} done before; output in {output}")
    _check(config, missing, plan)
    begun = time.monotonic()
    with locked(output, wait=config.wait_for_lock):
        if config.wait_for_lock:  # the study may have changed meanwhile
            plan = resolve_study(config)
            _reject_costly(plan, config)
            study = plan.study
        if not all(state_of(step).is_done for step in plan.steps) or not (output / RECORD_FILE).is_file():
            write_study_record(output, study_record(plan, config.study))  # for `study status`
        with progress_display(plan, Console(file=sys.stderr, highlight=False)) as show:
            summary = run_steps(
                plan.steps, output, jobs=study.jobs, threads=study.threads, profile=study.profile, show=show
            )
        plan = replace(plan, steps=with_keys(plan.steps))
        write_study_record(output, study_record(plan, config.study))
        report(output)
    if missing:
        total, trash = f"{study.name}: {format_duration(time.monotonic() - begun)} in total", output / TRASH
        if trash.is_dir() and any(trash.iterdir()):
            total += f"; {trash} holds {size_of(trash) / 1e6:,.1f} MB of replaced outputs"
        log_info(total)
    if not summary.complete:
        names = ", ".join(summary.failed)
        log_info(f"{study.name}: failed: {names}; see {log_files(output, summary.failed)}. The same command resumes.")
        sys.exit(1)


def _reject_costly(plan: StudyPlan, config: StudyConfig, rerun: Collection[str] = ()) -> None:
    if not config.yes:
        check_costly(replacements(plan.steps, rerun), hours=plan.study.confirm_hours, study=config.study)


def _check(config: ScheduledStudyConfig, steps: Sequence[Step], plan: StudyPlan) -> None:
    study, lines = plan.study, [*plan_warnings(plan), *filter(None, (state_of(step).damage for step in steps))]
    if study.baseline is None and len({row.model for row in plan.rows}) > 1:
        lines.append("baseline: not set, so the report compares models with the best of each column only")
    if not study.profile and study.jobs > usable_cores():
        lines.append(f"jobs: up to {study.jobs} steps at a time share {usable_cores()} cores")
    for line in lines:
        log_info(f"warning: {line}")
    if config.check:
        check_input_files(steps, plan.study)
        check_configs(steps)


def log_files(output: Path, failed: Sequence[str]) -> str:
    """The logs that say why steps failed: their own, and Snakemake's for steps that it could not start."""
    not_started = [name for name in failed if not (step_directory(output, name) / LOG_FILE).exists()]
    logs = [f"{output}/steps/<step>/{LOG_FILE}"] if len(not_started) < len(failed) else []
    if not_started:
        logs.append(f"{output / LOG} (not started: {', '.join(not_started)})")
    return " and ".join(logs)


def study_record(plan: StudyPlan, file: str) -> StudyRecord:
    """The content of ``study.json``."""
    study = plan.study
    steps = {}
    for step in plan.steps:
        words = launch_command(step.command, step.directory / CONFIG_FILE, step.resources)
        steps[step.name] = StepPlan(
            kind=step.kind, command=" ".join(words), key=step.key.key, parents=step.parents, parts=step.key.parts
        )
    return StudyRecord(
        name=study.name,
        title=study.title or study.name,
        question=study.question,
        notes=(*study.notes, *plan_warnings(plan)),
        reference_results=study.reference_results,
        display=study.display,
        file=file,
        text=plan.text,
        rows=plan.rows,
        benchmarks=plan.benchmarks,
        steps=steps,
        figures=study.figures,
        machine=describe_machine(),
        versions=library_versions(),
        git=git_state(),
    )


@dataclass(frozen=True, kw_only=True)
class StudyPlanConfig(ScheduledStudyConfig):
    """Print the steps of a study, their states, and those that would run.

    Args:
        check: check every unfinished step's config and that all input files exist.
    """


def plan_study(config: StudyPlanConfig) -> None:
    """Print the steps of a study with their dependencies and states.

    Raises:
        UserError: the study or a step's config is invalid, or input files are missing.
    """
    from rich.console import Console
    from rich.text import Text

    plan = resolve_study(config)
    study, output = plan.study, plan.study.directory
    states = {step.name: state_of(step).name for step in plan.steps}
    would_run = [step for step in plan.steps if states[step.name] != "done"]
    replaced = {each.name: each for each in replacements(plan.steps)}
    console = Console(highlight=False)
    width = max((len(step.name) for step in plan.steps), default=0)
    for step in plan.steps:  # no table, whose columns would be too narrow for the names
        state = Text(states[step.name], style=STATE_STYLES.get(states[step.name], "yellow"))
        line = Text.assemble(f"{step.name:<{width}}  ", state, "  ")
        console.print(line.append(" ".join(step.command), style="dim"), soft_wrap=True)
        if step.parents:
            console.print(Text(f"    after {', '.join(step.parents)}", style="dim"), soft_wrap=True)
        if step.hub:  # the changes of a branch are detected by no key
            how = "" if step.command == ("clips", "recaption") else ": add @REVISION"  # it takes no revision
            pinned = (name if "@" in name else f"{name} (not pinned{how})" for name in step.hub)
            console.print(Text(f"    from the Hub {', '.join(pinned)}", style="dim"), soft_wrap=True)
        if step.name in replaced:
            console.print(Text(f"    {replaced[step.name].describe(output)}"), soft_wrap=True)
    rows = ", ".join(row.name for row in plan.rows)
    facts = f"models: {rows}\nbenchmarks: {', '.join(plan.benchmarks)}\noutput: {output}"
    console.print(Text(facts), soft_wrap=True)
    console.print(Text(f"{len(would_run)} of {len(plan.steps)} steps would run"))
    if replaced:
        total = sum(each.seconds for each in replaced.values())
        confirm = f"; --yes is needed, since they took {format_duration(total)}"
        size = sum(each.size for each in replaced.values()) / 1e6
        needed = confirm if total > 3600 * study.confirm_hours else ""
        console.print(Text(f"{len(replaced)} recomputed, {size:,.1f} MB to the trash{needed}"), soft_wrap=True)
    _check(config, would_run, plan)


@dataclass(frozen=True, kw_only=True)
class StatusConfig(StudySelection):
    """Print the progress of a study; no file is changed.

    Args:
        follow: redraw it in a terminal until no step runs, or Ctrl-C.
        every: seconds between two updates.
    """

    follow: bool = False
    every: PositiveFloat = 2.0


def study_status(config: StatusConfig) -> None:
    """Print state, progress, time and memory of each step, and the last log lines of running and failed ones."""
    from rich.console import Console

    console, plan = Console(highlight=False), resolve_study(config)
    if config.follow and console.is_terminal:
        follow_progress(plan, console, wait=lambda: time.sleep(config.every))
    else:
        console.print(progress_view(plan, read_statuses(plan), console.width))


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
    named = matching_steps(plan.steps, config.steps)
    named = named or {step.name for step in plan.steps if STEP_KINDS[step.kind].is_rerun}
    chosen: dict[str, Step] = {}
    for step in plan.steps:
        if step.name in named or not chosen.keys().isdisjoint(step.parents):
            chosen[step.name] = step
    _reject_costly(plan, config, rerun=chosen)
    existing = [step for step in chosen.values() if step.directory.is_dir()]
    if existing:
        with locked(output, wait=config.wait_for_lock):
            for step in existing:
                if (record := read_record(output, step.name)) is not None:  # the rest of it stays, for the trash
                    write_record(output, replace(record, key="", outputs={}))
            cache = output / "results" / CACHE_DIR
            if cache.is_dir() and any(STEP_KINDS[step.kind].evaluates for step in existing):
                move(output, "kept", [cache])  # evaluations would reuse these model outputs
    log_info(f"{plan.study.name}: again {', '.join(chosen)}")
    run_study_steps(config, report=report)


def matching_steps(steps: Iterable[Step], patterns: Iterable[str]) -> set[str]:
    """The names of the steps that match any of ``patterns``; UserError for a pattern that matches none."""
    names = [step.name for step in steps]
    matching: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise unknown_name_error(pattern, names, "step in 'steps'")
        matching |= set(matched)
    return matching
