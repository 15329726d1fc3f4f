"""``clips-bench study run | plan | status STUDY.yaml``: execute a study, preview it, print its progress."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.launchers import check_command, launch_command
from benchmarks.study.locks import locked
from benchmarks.study.resources import Resources, check_patterns, resolve_resources
from benchmarks.study.runner import LOG, Summary, run_steps
from benchmarks.study.schema import Study, read_study
from benchmarks.study.state import CONFIG_FILE, LOG_FILE, StepKey, is_done, step_directory, step_keys, step_state
from benchmarks.study.status import ProgressDisplay, StudyMonitor
from benchmarks.study.study_record import RECORD_FILE, StepPlan, StudyRecord, describe_machine, write_study_record
from benchmarks.study.trash import Replacement, check_costly, describe_trash, replacements, summarize_replacements
from clips.core.artifact import git_state, library_versions, log_info
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


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
    seeds: tuple[int, ...] | None = None
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
        return dataclasses.replace(
            study,
            seeds=self.seeds or study.seeds,
            include=self.include or study.include,
            output=self.output or study.output,
            paths={**study.paths, **self.paths},
        )


@dataclass(frozen=True, kw_only=True)
class ScheduledStudyConfig(StudySelection):
    """Settings of the commands that run steps, or print which would run.

    Args:
        jobs: maximum number of concurrent steps, overriding the study file.
        profile: of Snakemake, a directory: where and how steps run, as on a SLURM cluster; overriding the study file.
        check: before the first step starts, check every step's config and that all input files exist.
        confirm_hours: overriding that of the study file.
    """

    jobs: int | None = None
    profile: str | None = None
    check: bool = True
    confirm_hours: float | None = None

    def read(self) -> Study:
        """The study with the overrides of the command line."""
        study = super().read()
        return dataclasses.replace(
            study,
            jobs=study.jobs if self.jobs is None else self.jobs,
            profile=self.profile or study.profile,
            confirm_hours=study.confirm_hours if self.confirm_hours is None else self.confirm_hours,
        )


@dataclass(frozen=True, kw_only=True)
class StudyConfig(ScheduledStudyConfig):
    """Run the unfinished steps of a study: new and changed ones, and the steps that depend on them.

    Args:
        wait_for_lock: wait for another runner in the study's directory instead of raising an error.
        yes: recompute steps that took longer than ``confirm_hours`` in all, too; their outputs go to the study's trash.
    """

    wait_for_lock: bool = False
    yes: bool = False


@dataclass(frozen=True, kw_only=True)
class ResolvedStudy:
    """A plan with the key of each step and the text of the study file."""

    plan: StudyPlan
    keys: dict[str, StepKey]
    text: str

    @property
    def resources(self) -> dict[str, Resources]:
        """Step → its resources."""
        return {step.name: resolve_resources(self.plan.study.resources, step) for step in self.plan.steps}

    @property
    def output(self) -> Path:
        """The study's directory."""
        return self.plan.study.directory

    def replacements(self, rerun: Collection[str] = ()) -> list[Replacement]:
        """The finished steps that would be executed again, see ``trash.replacements``."""
        return replacements(self.plan.steps, self.keys, self.output, rerun=rerun)

    def reject_costly(self, config: StudyConfig, rerun: Collection[str] = ()) -> None:
        """Raise UserError if a costly step would be executed again without ``yes``, see ``trash.check_costly``."""
        if not config.yes:
            check_costly(self.replacements(rerun), hours=self.plan.study.confirm_hours, study=config.study)

    def monitor(self) -> StudyMonitor:
        """A monitor of the study's progress."""
        return StudyMonitor(self.plan.steps, self.keys, self.output, self.plan.study.jobs)


def resolve_study(config: StudySelection) -> ResolvedStudy:
    """Read a study and derive its steps and their keys.

    Raises:
        UserError: the study file is invalid.
    """
    plan = build_plan(config.read())
    text = Path(config.study).read_text(encoding="utf-8")  # now, because the file may be edited while the study runs
    check_patterns(plan.study.resources, plan.steps)
    for step in plan.steps:
        check_command(step.command)
        launch_command(step.command, Path(), resolve_resources(plan.study.resources, step))
    return ResolvedStudy(plan=plan, keys=step_keys(plan.steps, plan.study.directory), text=text)


def run_study_steps(config: StudyConfig, *, report: Callable[[Path], None]) -> None:
    """Run the unfinished steps and report, under one lock of the study's directory. Exit status 1 if a step failed.

    Raises:
        UserError: the study is invalid, or would recompute costly steps; then no step has started.
    """
    from benchmarks.results.formatting import format_duration
    from benchmarks.study.preflight import check_configs, check_input_files

    resolved = resolve_study(config)
    resolved.reject_costly(config)
    study, steps, output = resolved.plan.study, resolved.plan.steps, resolved.output
    missing = [step for step in steps if not is_done(step, resolved.keys[step.name], output)]
    log_info(f"{study.name}: {len(steps)} steps, {len(steps) - len(missing)} done before; output in {output}")
    if config.check and missing:
        check_input_files(missing, study)
        check_configs(missing)
    begun = time.monotonic()
    with locked(output, wait=config.wait_for_lock):
        if config.wait_for_lock:  # the study may have changed meanwhile
            resolved = resolve_study(config)
            resolved.reject_costly(config)
        summary = _run_locked(resolved, config)
        report(output)
    if missing:
        log_info(f"{study.name}: {format_duration(time.monotonic() - begun)} in total{describe_trash(output)}")
    if not summary.complete:
        names = ", ".join(summary.failed)
        log_info(f"{study.name}: failed: {names}; see {log_files(output, summary.failed)}. The same command resumes.")
        sys.exit(1)


def log_files(output: Path, failed: Sequence[str]) -> str:
    """The logs that say why steps failed: their own, and Snakemake's for steps that it could not start."""
    not_started = [name for name in failed if not (step_directory(output, name) / LOG_FILE).exists()]
    logs = [f"{output}/steps/<step>/{LOG_FILE}"] if len(not_started) < len(failed) else []
    if not_started:
        logs.append(f"{output / LOG} (not started: {', '.join(not_started)})")
    return " and ".join(logs)


def _run_locked(resolved: ResolvedStudy, config: StudyConfig) -> Summary:
    """Run the unfinished steps, and write ``study.json`` before (for `study status`) and after them."""
    from rich.console import Console

    study, steps, output = resolved.plan.study, resolved.plan.steps, resolved.output
    done = all(is_done(step, resolved.keys[step.name], output) for step in steps)
    if not done or not (output / RECORD_FILE).is_file():
        write_study_record(output, study_record(resolved, config.study))
    with ProgressDisplay(resolved.monitor(), Console(file=sys.stderr, highlight=False)) as display:
        summary = run_steps(
            steps,
            resolved.keys,
            output,
            jobs=study.jobs,
            threads=study.threads,
            profile=study.profile,
            resources=resolved.resources,
            show=display.show,
        )
    now = dataclasses.replace(resolved, keys=step_keys(steps, output))
    write_study_record(output, study_record(now, config.study))
    return summary


def study_record(resolved: ResolvedStudy, file: str) -> StudyRecord:
    """The content of ``study.json``."""
    study, resources = resolved.plan.study, resolved.resources
    steps = {}
    for step in resolved.plan.steps:
        config_file = step_directory(resolved.output, step.name) / CONFIG_FILE
        steps[step.name] = StepPlan(
            kind=step.kind,
            command=" ".join(launch_command(step.command, config_file, resources[step.name])),
            key=resolved.keys[step.name].key,
            parents=step.parents,
        )
    return StudyRecord(
        name=study.name,
        title=study.title or study.name,
        question=study.question,
        notes=study.notes,
        reference_results=study.reference_results,
        display=study.display,
        file=file,
        text=resolved.text,
        rows=resolved.plan.rows,
        benchmarks=resolved.plan.benchmarks,
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

    from benchmarks.study.preflight import check_configs, check_input_files

    resolved = resolve_study(config)
    study, steps, output = resolved.plan.study, resolved.plan.steps, resolved.output
    states = {step.name: step_state(step, resolved.keys[step.name], output) for step in steps}
    would_run = [step for step in steps if states[step.name] != "done"]
    replaced = {each.name: each for each in resolved.replacements()}
    console = Console(highlight=False)
    width = max(len(step.name) for step in steps)
    for step in steps:  # no table, whose columns would be too narrow for the names
        line = Text.assemble(f"{step.name:<{width}}  ", _colored(states[step.name]), "  ")
        console.print(line.append(" ".join(step.command), style="dim"), soft_wrap=True)
        if step.parents:
            console.print(Text(f"    after {', '.join(step.parents)}", style="dim"), soft_wrap=True)
        if step.hub:
            console.print(Text(f"    from the Hub {', '.join(map(_pinned, step.hub))}", style="dim"), soft_wrap=True)
        if step.name in replaced:
            console.print(Text(f"    {replaced[step.name].describe(output)}"), soft_wrap=True)
    rows = ", ".join(row.name for row in resolved.plan.rows)
    facts = f"models: {rows}\nbenchmarks: {', '.join(resolved.plan.benchmarks)}\noutput: {output}"
    console.print(Text(facts), soft_wrap=True)
    console.print(Text(f"{len(would_run)} of {len(steps)} steps would run"))
    if replaced:
        console.print(Text(summarize_replacements([*replaced.values()], study.confirm_hours)), soft_wrap=True)
    if config.check:
        check_input_files(would_run, study)
        check_configs(would_run)


def _pinned(name: str) -> str:
    """A Hub name, marked if it follows a branch, whose changes no key detects."""
    return name if "@" in name else f"{name} (not pinned: add @REVISION)"


@dataclass(frozen=True, kw_only=True)
class StatusConfig(StudySelection):
    """Print the progress of a study; no file is changed.

    Args:
        follow: redraw it in a terminal until no step runs, or Ctrl-C.
        every: seconds between two updates.
    """

    follow: bool = False
    every: float = 2.0

    def __post_init__(self) -> None:
        if not self.every > 0:
            raise UserError(f"every: expected more than 0 seconds, got {self.every:g}")


def study_status(config: StatusConfig) -> None:
    """Print state, progress, time and memory of each step, and the last log lines of running and failed ones."""
    from rich.console import Console

    console = Console(highlight=False)
    monitor = resolve_study(config).monitor()
    if config.follow and console.is_terminal:
        follow(monitor, console, wait=lambda: time.sleep(config.every))
    else:
        console.print(monitor.view(monitor.statuses(), console.width))


def follow(monitor: StudyMonitor, console: Console, wait: Callable[[], None]) -> None:
    """Redraw the progress of a study until no step runs; ``wait`` is called between two updates."""
    from rich.live import Live

    statuses = monitor.statuses()
    with Live(monitor.view(statuses, console.width), console=console, auto_refresh=False) as live:
        while any(status.state in {"waiting", "running"} for status in statuses):
            wait()
            statuses = monitor.statuses()
            live.update(monitor.view(statuses, console.width), refresh=True)


def _colored(state: str) -> Text:
    from rich.text import Text

    colors = {"done": "green", "failed": "red", "running": "cyan"}
    return Text(state, style=colors.get(state, "yellow"))
