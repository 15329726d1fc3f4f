"""``clips-bench study run | plan | status STUDY.yaml``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.study.build_steps import StudyPlan, build_plan
from benchmarks.study.launchers import check_command, command_version, launch_command
from benchmarks.study.locks import locked
from benchmarks.study.parser import read_study
from benchmarks.study.resources import Resources, check_patterns, resolve_resources
from benchmarks.study.schema import Study
from benchmarks.study.shipped import resolve_study_file
from benchmarks.study.status import Progress, StudyWatch, step_state
from benchmarks.study.step_state import CONFIG_FILE, StepKey, is_done, step_directory, step_keys
from benchmarks.study.study_record import RECORD_FILE, StepPlan, StudyRecord, write_study_record
from benchmarks.study.trash import Replacement, check_costly, replaced_in_all, replacements, trash_words
from clips.core.artifact import git_state, library_versions, log_info
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from benchmarks.study.engine import Summary
    from benchmarks.study.steps import Share


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Run a study, or look at it. Finished steps are not run again; changed ones, and what depends on them, are.

    Args:
        study: the study file, or the name of a study that is shipped (``mini``).
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

    study: str
    output: str | None = None
    jobs: int | None = None
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    include: tuple[str, ...] = ()
    check: bool = True
    wait_for_lock: bool = False
    yes: bool = False
    confirm_hours: float | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"jobs: expected at least 1, got {self.jobs}")
        if self.confirm_hours is not None and not self.confirm_hours >= 0:
            raise UserError(f"confirm_hours: expected a number from 0 on, got {self.confirm_hours}")

    @property
    def file(self) -> str:
        """The study file; UserError where ``study`` is no file's nor a shipped study's name."""
        return resolve_study_file(self.study)

    def read(self) -> Study:
        """The study with the command line's changes."""
        study = read_study(self.file)
        for name in self.paths:
            if name not in study.paths:
                raise unknown_name_error(name, study.paths, "name in 'paths'")
        unknown = [name for name in self.include if not any(study.means(name, model) for model in study.models)]
        if unknown:
            raise unknown_name_error(unknown[0], study.models, "encoder in 'include'")
        return dataclasses.replace(
            study,
            seeds=self.seeds or study.seeds,
            include=self.include or study.include,
            output=self.output or study.output,
            jobs=self.jobs or study.jobs,
            confirm_hours=study.confirm_hours if self.confirm_hours is None else self.confirm_hours,
            paths={**study.paths, **self.paths},
        )


@dataclass(frozen=True, kw_only=True)
class ResolvedStudy:
    """A plan with the key of each step, and the text of the study file that it was read from."""

    plan: StudyPlan
    keys: dict[str, StepKey]
    text: str

    @property
    def resources(self) -> dict[str, Resources]:
        """What each step is given."""
        return {step.name: resolve_resources(self.plan.study.resources, step) for step in self.plan.steps}

    @property
    def shares(self) -> dict[str, Share]:
        """How much of the study's executor each step takes."""
        return self.plan.study.executor.shares(self.resources, self.plan.study.jobs)

    @property
    def output(self) -> Path:
        """The study's directory."""
        return self.plan.study.directory

    def replaces(self, again: Collection[str] = ()) -> list[Replacement]:
        """What a run would make again, see ``trash.replacements``."""
        return replacements(self.plan.steps, self.keys, self.output, again=again)

    def reject_costly(self, config: StudyConfig, again: Collection[str] = ()) -> None:
        """Raise UserError where a run without ``yes`` would make again what took long, see ``trash.check_costly``."""
        if not config.yes:
            check_costly(self.replaces(again), hours=self.plan.study.confirm_hours, study=config.study)

    def watch(self) -> StudyWatch:
        """What tells how far the study is."""
        return StudyWatch(self.plan.steps, self.keys, self.output, self.shares)


def resolve_study(config: StudyConfig) -> ResolvedStudy:
    """Read a study and work out its steps and their keys.

    Raises:
        UserError: what is wrong with the study file.
    """
    plan = build_plan(config.read())
    text = Path(config.file).read_text(encoding="utf-8")  # now: while the study runs it may be edited for the next run
    check_patterns(plan.study.resources, plan.steps)
    for step in plan.steps:
        check_command(step.command)
        launch_command(step.command, Path(), resolve_resources(plan.study.resources, step))
    return ResolvedStudy(plan=plan, keys=current_keys(plan), text=text)


def current_keys(plan: StudyPlan) -> dict[str, StepKey]:
    """The keys of a plan's steps, with the files outside as they are now."""
    return step_keys(plan.steps, plan.study.directory, version=command_version)


def run_study_steps(config: StudyConfig, *, report: Callable[[Path], None]) -> None:
    """Run what is missing, then report it, before another runner may begin. Exit status 1 where a step failed.

    Args:
        config: the study.
        report: is given the study's directory.

    Raises:
        UserError: the study cannot be run, or would make again what took long; then nothing has been started.
    """
    from benchmarks.results.formatting import format_duration
    from benchmarks.study.preflight import check_configs, check_input_files

    keyed = resolve_study(config)
    keyed.reject_costly(config)
    study, steps, output = keyed.plan.study, keyed.plan.steps, keyed.output
    missing = [step for step in steps if not is_done(step, keyed.keys[step.name], output)]
    log_info(f"{study.name}: {len(steps)} steps, {len(steps) - len(missing)} done before; output in {output}")
    if config.check and missing:
        check_input_files(missing, study)
        check_configs(missing)
    begun = time.monotonic()
    with locked(output, wait=config.wait_for_lock):
        if config.wait_for_lock:  # the study or its code may have changed meanwhile
            keyed = resolve_study(config)
            keyed.reject_costly(config)
        summary = _run_locked(keyed, config)
        report(output)
    if missing:
        log_info(f"{study.name}: {format_duration(time.monotonic() - begun)} in all{trash_words(output)}")
    if not summary.complete:
        names = ", ".join(summary.failed)
        log_info(f"{study.name}: failed: {names}; the logs are {output}/steps/<step>/log.txt. Run it again to go on.")
        sys.exit(1)


def _run_locked(keyed: ResolvedStudy, config: StudyConfig) -> Summary:
    """Run what is missing, with a record of the study before, for those who look on, and after."""
    from rich.console import Console

    from benchmarks.study.engine import run_steps

    study, steps, output = keyed.plan.study, keyed.plan.steps, keyed.output
    if not (output / RECORD_FILE).is_file() or not all(is_done(step, keyed.keys[step.name], output) for step in steps):
        write_study_record(output, study_record(keyed, config.file))
    with Progress(keyed.watch(), Console(file=sys.stderr, highlight=False)) as progress:
        summary = run_steps(
            steps,
            keyed.keys,
            output,
            jobs=study.jobs,
            threads=study.threads,
            executor=study.executor,
            resources=keyed.resources,
            show=progress.show,
        )
    now = dataclasses.replace(keyed, keys=current_keys(keyed.plan))
    write_study_record(output, study_record(now, config.file))
    return summary


def study_record(keyed: ResolvedStudy, file: str) -> StudyRecord:
    """What ``study.json`` says about a plan."""
    from benchmarks.study.machine import describe_machine

    study = keyed.plan.study
    steps = {
        step.name: StepPlan(
            kind=step.kind,
            command=" ".join(
                launch_command(
                    step.command, step_directory(keyed.output, step.name) / CONFIG_FILE, keyed.resources[step.name]
                )
            ),
            key=keyed.keys[step.name].key,
            parents=step.parents,
            executor_share=keyed.shares[step.name],
        )
        for step in keyed.plan.steps
    }
    return StudyRecord(
        name=study.name,
        title=study.title or study.name,
        question=study.question,
        notes=study.notes,
        reference_results=study.reference_results,
        file=file,
        text=keyed.text,
        rows=keyed.plan.rows,
        benchmarks=keyed.plan.benchmarks,
        steps=steps,
        figures=study.figures,
        machine=describe_machine(),
        versions=library_versions(),
        git=git_state(),
    )


@dataclass(frozen=True, kw_only=True)
class StudyPlanConfig(StudyConfig):
    """Look at a study before it runs: its steps, which of them are done, and what the others will take.

    Args:
        study: the study file.
        gpu: kind of GPU to assume (a100-80, h100, h200 …), instead of the study's.
        estimates: say what each step will take: time, memory, disk, GPU hours.
        output: another directory for what it makes.
        jobs: steps that run at the same time; as the study says where not given.
        paths: name → directory, instead of those in the study's ``paths``.
        seeds: instead of the study's.
        include: encoders, entries or patterns such as ``photos.*``, instead of all.
        check: check that the files that steps need are there.
        wait_for_lock: not used here.
        yes: not used here.
        confirm_hours: instead of the study's.
    """

    gpu: str | None = None
    estimates: bool = True

    def read(self) -> Study:
        """The study with the command line's changes."""
        study = super().read()
        return dataclasses.replace(study, gpu=self.gpu or study.gpu)


def plan_study(config: StudyPlanConfig) -> None:
    """Print the steps of a study, what each depends on, what would run, and what that will take.

    Raises:
        UserError: a step's command would refuse its config, or files that steps need are missing.
    """
    from rich.console import Console
    from rich.text import Text

    from benchmarks.study.estimate import total_cost
    from benchmarks.study.estimate_steps import estimate_steps
    from benchmarks.study.preflight import check_configs, check_input_files

    keyed = resolve_study(config)
    study = keyed.plan.study
    states = {step.name: step_state(step, keyed.keys[step.name], keyed.output) for step in keyed.plan.steps}
    would_run = [step for step in keyed.plan.steps if states[step.name] != "done"]
    replaced = {each.name: each for each in keyed.replaces()}
    estimates = {}
    if config.estimates:
        given = keyed.resources
        estimates = estimate_steps(keyed.plan.steps, keyed.output, resources=given, gpu=study.gpu)
    console = Console(highlight=False)
    width = max(len(step.name) for step in keyed.plan.steps)
    for step in keyed.plan.steps:  # names are long: no columns that would squeeze them
        line = Text.assemble(f"{step.name:<{width}}  ", _colored(states[step.name]), "  ")
        console.print(line.append(" ".join(step.command), style="dim"), soft_wrap=True)
        if step.parents:
            console.print(Text(f"    after {', '.join(step.parents)}", style="dim"), soft_wrap=True)
        if step.hub:
            console.print(Text(f"    from the Hub {', '.join(map(_pinned, step.hub))}", style="dim"), soft_wrap=True)
        if step.name in estimates:
            console.print(Text(f"    {estimates[step.name].words()}"), soft_wrap=True)
        if step.name in replaced:
            console.print(Text(f"    {replaced[step.name].words(keyed.output)}"), soft_wrap=True)
    rows = ", ".join(row.name for row in keyed.plan.rows)
    facts = f"rows: {rows}\ncolumns: {', '.join(keyed.plan.benchmarks)}\noutput: {keyed.output}"
    console.print(Text(facts), soft_wrap=True)
    console.print(Text(f"{len(would_run)} of {len(keyed.plan.steps)} steps would run"))
    if would_run and estimates:
        known = {step.name: estimates[step.name] for step in would_run}
        console.print(Text(total_cost(known, keyed.plan.steps, keyed.shares)), soft_wrap=True)
    if replaced:
        console.print(Text(replaced_in_all([*replaced.values()], study.confirm_hours)), soft_wrap=True)
    if config.check:
        check_input_files(would_run, study)
        check_configs(would_run)


def _pinned(name: str) -> str:
    """A name on the Hub, and whether it is always the same: no key says what a branch holds today."""
    return name if "@" in name else f"{name} (not pinned: add @REVISION)"


@dataclass(frozen=True, kw_only=True)
class StatusConfig(StudyConfig):
    """Tell how far a study is; what it reads stays as it is.

    Args:
        study: the study file, or the name of a study that is shipped (``mini``).
        follow: redraw it until nothing runs any more, or Ctrl-C.
        every: seconds between two looks.
        output: another directory for what it makes.
        jobs: steps that run at the same time; as the study says where not given.
        paths: name → directory, instead of those in the study's ``paths``.
        seeds: instead of the study's.
        include: encoders, entries or patterns such as ``photos.*``, instead of all.
        check: not used here.
        wait_for_lock: not used here.
        yes: not used here.
        confirm_hours: not used here.
    """

    follow: bool = False
    every: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.every > 0:
            raise UserError(f"every: expected more than 0 seconds, got {self.every:g}")


def study_status(config: StatusConfig) -> None:
    """Print how far a study is: state, progress, time and memory of each step, and the last lines of some logs."""
    from rich.console import Console

    console = Console(highlight=False)
    watch = resolve_study(config).watch()
    seen = watch.look()
    if not config.follow or not console.is_terminal:
        console.print(watch.view(seen, console.width))
        return
    follow(watch, console, wait=lambda: time.sleep(config.every))


def follow(watch: StudyWatch, console: Console, wait: Callable[[], None]) -> None:
    """Redraw how far a study is until nothing runs any more.

    Args:
        watch: the study.
        console: where to.
        wait: called between two looks.
    """
    from rich.live import Live

    seen = watch.look()
    with Live(watch.view(seen, console.width), console=console, auto_refresh=False) as live:
        while any(status.state in {"waiting", "running"} for status in seen):
            wait()
            seen = watch.look()
            live.update(watch.view(seen, console.width), refresh=True)


def _colored(state: str) -> Text:
    from rich.text import Text

    colors = {"done": "green", "failed": "red", "running": "cyan"}
    return Text(state, style=colors.get(state, "yellow"))
