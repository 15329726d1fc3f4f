"""``clips-bench study run | plan | status STUDY.yaml``: execute a study, preview it, print its progress."""

from __future__ import annotations

import dataclasses
import fnmatch
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.launchers import check_command, launch_command
from benchmarks.study.locks import locked
from benchmarks.study.resources import resolve_resources
from benchmarks.study.runner import LOG, run_steps
from benchmarks.study.schema import Study, read_study
from benchmarks.study.state import CONFIG_FILE, LOG_FILE, is_done, step_state, with_keys
from benchmarks.study.status import STATE_STYLES, ProgressDisplay, follow_progress, progress_view, read_statuses
from benchmarks.study.steps import Step, step_directory
from benchmarks.study.study_record import RECORD_FILE, StepPlan, StudyRecord, describe_machine, write_study_record
from benchmarks.study.trash import check_costly, describe_trash, replacements, summarize_replacements
from clips.core.artifact import git_state, library_versions, log_info
from clips.errors import unknown_name_error
from clips.ranges import NonNegative, NonNegativeFloat, Positive, PositiveFloat

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
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
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
        return dataclasses.replace(study, paths={**study.paths, **self.paths}, **given)


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
    """Read a study and derive its steps with their resources and keys.

    Raises:
        UserError: the study file is invalid.
    """
    plan = build_plan(config.read())
    text = Path(config.study).read_text(encoding="utf-8")  # now, because the file may be edited while the study runs
    steps = []
    for step, resources in zip(plan.steps, resolve_resources(plan.study.resources, plan.steps), strict=True):
        check_command(step.command)
        launch_command(step.command, Path(), resources)
        steps.append(dataclasses.replace(step, resources=resources))
    return dataclasses.replace(plan, steps=with_keys(steps), text=text)


def reject_costly(plan: StudyPlan, config: StudyConfig, rerun: Collection[str] = ()) -> None:
    """Raise UserError if costly steps would be executed again without ``yes``, see ``trash.check_costly``."""
    if not config.yes:
        check_costly(replacements(plan.steps, rerun), hours=plan.study.confirm_hours, study=config.study)


def run_study_steps(config: StudyConfig, *, report: Callable[[Path], None]) -> None:
    """Run the unfinished steps and report, under one lock of the study's directory. Exit status 1 if a step failed.

    Raises:
        UserError: the study is invalid, or would recompute costly steps; then no step has started.
    """
    from rich.console import Console

    from benchmarks.results.formatting import format_duration

    plan = resolve_study(config)
    reject_costly(plan, config)
    study, output = plan.study, plan.study.directory
    missing = [step for step in plan.steps if not is_done(step)]
    log_info(f"{study.name}: {len(plan.steps)} steps, {len(plan.steps) - len(missing)} done before; output in {output}")
    _check(config, missing, study)
    begun = time.monotonic()
    with locked(output, wait=config.wait_for_lock):
        if config.wait_for_lock:  # the study may have changed meanwhile
            plan = resolve_study(config)
            reject_costly(plan, config)
            study = plan.study
        if not all(map(is_done, plan.steps)) or not (output / RECORD_FILE).is_file():
            write_study_record(output, study_record(plan, config.study))  # for `study status`
        with ProgressDisplay(plan, Console(file=sys.stderr, highlight=False)) as display:
            summary = run_steps(
                plan.steps, output, jobs=study.jobs, threads=study.threads, profile=study.profile, show=display.show
            )
        plan = dataclasses.replace(plan, steps=with_keys(plan.steps))
        write_study_record(output, study_record(plan, config.study))
        report(output)
    if missing:
        log_info(f"{study.name}: {format_duration(time.monotonic() - begun)} in total{describe_trash(output)}")
    if not summary.complete:
        names = ", ".join(summary.failed)
        log_info(f"{study.name}: failed: {names}; see {log_files(output, summary.failed)}. The same command resumes.")
        sys.exit(1)


def _check(config: ScheduledStudyConfig, steps: Sequence[Step], study: Study) -> None:
    from benchmarks.study.preflight import check_configs, check_input_files

    if config.check:
        check_input_files(steps, study)
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
        steps[step.name] = StepPlan(kind=step.kind, command=" ".join(words), key=step.key.key, parents=step.parents)
    return StudyRecord(
        name=study.name,
        title=study.title or study.name,
        question=study.question,
        notes=study.notes,
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


def matching_steps(steps: Iterable[Step], patterns: Iterable[str]) -> set[str]:
    """The names of the steps that match any of ``patterns``.

    Raises:
        UserError: a pattern that matches none, with its close match.
    """
    names = [step.name for step in steps]
    found: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise unknown_name_error(pattern, names, "step in 'steps'")
        found |= set(matched)
    return found


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
    states = {step.name: step_state(step) for step in plan.steps}
    would_run = [step for step in plan.steps if states[step.name] != "done"]
    replaced = {each.name: each for each in replacements(plan.steps)}
    console = Console(highlight=False)
    width = max(len(step.name) for step in plan.steps)
    for step in plan.steps:  # no table, whose columns would be too narrow for the names
        state = Text(states[step.name], style=STATE_STYLES.get(states[step.name], "yellow"))
        line = Text.assemble(f"{step.name:<{width}}  ", state, "  ")
        console.print(line.append(" ".join(step.command), style="dim"), soft_wrap=True)
        if step.parents:
            console.print(Text(f"    after {', '.join(step.parents)}", style="dim"), soft_wrap=True)
        if step.hub:  # the changes of a branch are detected by no key
            pinned = (name if "@" in name else f"{name} (not pinned: add @REVISION)" for name in step.hub)
            console.print(Text(f"    from the Hub {', '.join(pinned)}", style="dim"), soft_wrap=True)
        if step.name in replaced:
            console.print(Text(f"    {replaced[step.name].describe(output)}"), soft_wrap=True)
    rows = ", ".join(row.name for row in plan.rows)
    facts = f"models: {rows}\nbenchmarks: {', '.join(plan.benchmarks)}\noutput: {output}"
    console.print(Text(facts), soft_wrap=True)
    console.print(Text(f"{len(would_run)} of {len(plan.steps)} steps would run"))
    if replaced:
        console.print(Text(summarize_replacements([*replaced.values()], study.confirm_hours)), soft_wrap=True)
    _check(config, would_run, study)


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
