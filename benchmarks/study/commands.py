"""``clips-bench study run | plan | status STUDY.yaml``."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.study.lock import locked, runner_lives
from benchmarks.study.plan import Plan, make_plan
from benchmarks.study.programs import check_command, command_version, launched
from benchmarks.study.reading import read_study
from benchmarks.study.record import RECORD_FILE, StepPlan, StudyRecord, write_study_record
from benchmarks.study.resources import Resources, check_patterns, resources_of
from benchmarks.study.schema import Study
from benchmarks.study.shipped import study_file
from benchmarks.study.state import StepKey, is_done, read_record, step_keys
from benchmarks.study.trash import Replacement, check_costly, replaced_in_all, replacements, trash_words
from clips.core.artifact import git_state, say, versions
from clips.errors import UserError, suggest

if TYPE_CHECKING:
    from benchmarks.study.runner import Summary
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
        only: encoders, entries or patterns such as ``photos.*``, instead of all.
        check: check every step's config, and that the files it needs are there, before the first one runs.
        wait: for another runner that is at work in the study's directory, instead of refusing.
        yes: make again also what took longer than ``confirm_hours``; the former outputs go to the study's trash.
        confirm_hours: instead of the study's.
    """

    study: str
    output: str | None = None
    jobs: int | None = None
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    only: tuple[str, ...] = ()
    check: bool = True
    wait: bool = False
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
        return study_file(self.study)

    def read(self) -> Study:
        """The study with the command line's changes."""
        study = read_study(self.file)
        for name in self.paths:
            if name not in study.paths:
                raise suggest(name, study.paths, "name in 'paths'")
        unknown = [name for name in self.only if not any(study.means(name, model) for model in study.models)]
        if unknown:
            raise suggest(unknown[0], study.models, "encoder in 'only'")
        return dataclasses.replace(
            study,
            seeds=self.seeds or study.seeds,
            only=self.only or study.only,
            output=self.output or study.output,
            jobs=self.jobs or study.jobs,
            confirm_hours=study.confirm_hours if self.confirm_hours is None else self.confirm_hours,
            paths={**study.paths, **self.paths},
        )


@dataclass(frozen=True, kw_only=True)
class KeyedPlan:
    """A plan with the key of each step, and the text of the study file that it was read from."""

    plan: Plan
    keys: dict[str, StepKey]
    text: str

    @property
    def resources(self) -> dict[str, Resources]:
        """What each step is given."""
        return {step.name: resources_of(self.plan.study.resources, step) for step in self.plan.steps}

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

    def refuse_costly(self, config: StudyConfig, again: Collection[str] = ()) -> None:
        """Raise UserError where a run without ``yes`` would make again what took long, see ``trash.check_costly``."""
        if not config.yes:
            check_costly(self.replaces(again), hours=self.plan.study.confirm_hours, study=config.study)

    def state(self, name: str) -> str:
        """``done``, ``changed``, ``failed``, ``interrupted``, ``running``, ``new``, ``missing`` or ``stopped``.

        ``missing``: its outputs are gone. ``stopped``: it says that it runs, and no runner is there.
        """
        step = next(step for step in self.plan.steps if step.name == name)
        record = read_record(self.output, name)
        if record is None:
            return "new"
        if record.key != self.keys[name].key:
            return "changed"
        if record.outcome == "running" and not record.at_work and not runner_lives(self.output):
            return "stopped"
        return record.outcome if record.outcome != "done" or is_done(step, self.keys[name], self.output) else "missing"

    def told(self, name: str) -> str:
        """The state as users read it; of a changed step also what changed, such as ``changed: config, files``."""
        state, record = self.state(name), read_record(self.output, name)
        changes = self.keys[name].changes(record) if state == "changed" and record is not None else []
        return f"{state}: {', '.join(changes)}" if changes else state


def resolve(config: StudyConfig) -> KeyedPlan:
    """Read a study and work out its steps and their keys.

    Raises:
        UserError: what is wrong with the study file.
    """
    plan = make_plan(config.read())
    text = Path(config.file).read_text(encoding="utf-8")  # now: while the study runs it may be edited for the next run
    check_patterns(plan.study.resources, plan.steps)
    for step in plan.steps:
        check_command(step.command)
        launched(step.command, Path(), resources_of(plan.study.resources, step))
    return KeyedPlan(plan=plan, keys=current_keys(plan), text=text)


def current_keys(plan: Plan) -> dict[str, StepKey]:
    """The keys of a plan's steps, with the files outside as they are now."""
    return step_keys(plan.steps, plan.study.directory, version=command_version)


def run_study(config: StudyConfig, *, report: Callable[[Path], None]) -> None:
    """Run what is missing, then report it, before another runner may begin. Exit status 1 where a step failed.

    Args:
        config: the study.
        report: is given the study's directory.

    Raises:
        UserError: the study cannot be run, or would make again what took long; then nothing has been started.
    """
    from benchmarks.study.check import check_configs, check_files
    from benchmarks.wording import duration

    keyed = resolve(config)
    keyed.refuse_costly(config)
    study, steps, output = keyed.plan.study, keyed.plan.steps, keyed.output
    missing = [step for step in steps if not is_done(step, keyed.keys[step.name], output)]
    say(f"{study.name}: {len(steps)} steps, {len(steps) - len(missing)} done before; output in {output}")
    if config.check and missing:
        check_files(missing, study)
        check_configs(missing)
    begun = time.monotonic()
    with locked(output, wait=config.wait) as lock:
        if config.wait:  # the study or its code may have changed meanwhile
            keyed = resolve(config)
            keyed.refuse_costly(config)
        summary = _run_locked(keyed, config, lock)
        report(output)
    if missing:
        say(f"{study.name}: {duration(time.monotonic() - begun)} in all{trash_words(output)}")
    if not summary.complete:
        names = ", ".join(summary.failed)
        say(f"{study.name}: failed: {names}; the logs are {output}/steps/<step>/log.txt. Run it again to go on.")
        sys.exit(1)


def _run_locked(keyed: KeyedPlan, config: StudyConfig, lock: int) -> Summary:
    """Run what is missing, with a record of the study before, for those who look on, and after."""
    from benchmarks.study.progress import Progress
    from benchmarks.study.runner import run_steps

    study, steps, output = keyed.plan.study, keyed.plan.steps, keyed.output
    if not (output / RECORD_FILE).is_file() or not all(is_done(step, keyed.keys[step.name], output) for step in steps):
        write_study_record(output, study_record(keyed, config.file))
    with Progress(steps, output, shares=keyed.shares) as progress:
        summary = run_steps(
            steps,
            lambda: current_keys(keyed.plan),
            output,
            lock=lock,
            jobs=study.jobs,
            threads=study.threads,
            executor=study.executor,
            resources=keyed.resources,
            observer=progress,
            confirm_hours=math.inf if config.yes else study.confirm_hours,
            study=config.study,
        )
    now = dataclasses.replace(keyed, keys=current_keys(keyed.plan))
    write_study_record(output, study_record(now, config.file))
    return summary


def study_record(keyed: KeyedPlan, file: str) -> StudyRecord:
    """What ``study.json`` says about a plan."""
    from benchmarks.study.machine import describe_machine
    from benchmarks.study.runner import command_line

    study = keyed.plan.study
    steps = {
        step.name: StepPlan(
            kind=step.kind,
            command=command_line(step, keyed.output, keyed.resources[step.name]),
            key=keyed.keys[step.name].key,
            parents=step.parents,
            share=keyed.shares[step.name],
        )
        for step in keyed.plan.steps
    }
    return StudyRecord(
        name=study.name,
        title=study.title or study.name,
        question=study.question,
        notes=study.notes,
        published=study.published,
        file=file,
        text=keyed.text,
        rows=keyed.plan.rows,
        benchmarks=keyed.plan.benchmarks,
        steps=steps,
        figures=study.figures,
        machine=describe_machine(),
        versions=versions(),
        git=git_state(),
    )


@dataclass(frozen=True, kw_only=True)
class PlanConfig(StudyConfig):
    """Look at a study before it runs: its steps, which of them are done, and what the others will take.

    Args:
        study: the study file.
        gpu: kind of GPU to reckon with (a100-80, h100, h200 …), instead of the study's.
        estimates: say what each step will take: time, memory, disk, GPU hours.
        output: another directory for what it makes.
        jobs: steps that run at the same time; as the study says where not given.
        paths: name → directory, instead of those in the study's ``paths``.
        seeds: instead of the study's.
        only: encoders, entries or patterns such as ``photos.*``, instead of all.
        check: check that the files that steps need are there.
        wait: not used here.
        yes: not used here.
        confirm_hours: instead of the study's.
    """

    gpu: str | None = None
    estimates: bool = True

    def read(self) -> Study:
        """The study with the command line's changes."""
        study = super().read()
        return dataclasses.replace(study, gpu=self.gpu or study.gpu)


def plan_study(config: PlanConfig) -> None:
    """Print the steps of a study, what each depends on, what would run, and what that will take.

    Raises:
        UserError: a step's command would refuse its config, or files that steps need are missing.
    """
    from rich.console import Console
    from rich.text import Text

    from benchmarks.study.check import check_configs, check_files
    from benchmarks.study.estimate import in_all
    from benchmarks.study.estimates import estimate_steps

    keyed = resolve(config)
    study = keyed.plan.study
    would_run = [step for step in keyed.plan.steps if keyed.state(step.name) != "done"]
    replaced = {each.name: each for each in keyed.replaces()}
    estimates = {}
    if config.estimates:
        given = keyed.resources
        estimates = estimate_steps(keyed.plan.steps, keyed.output, resources=given, gpu=study.gpu)
    console = Console(highlight=False)
    width = max(len(step.name) for step in keyed.plan.steps)
    for step in keyed.plan.steps:  # names are long: no columns that would squeeze them
        line = Text.assemble(f"{step.name:<{width}}  ", _coloured(keyed.told(step.name)), "  ")
        console.print(line.append(" ".join(step.command), style="dim"), soft_wrap=True)
        if step.parents:
            console.print(Text(f"    after {', '.join(step.parents)}", style="dim"), soft_wrap=True)
        if step.hub:
            console.print(Text(f"    from the hub {', '.join(map(_pinned, step.hub))}", style="dim"), soft_wrap=True)
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
        console.print(Text(in_all(known, keyed.plan.steps, keyed.shares)), soft_wrap=True)
    if replaced:
        console.print(Text(replaced_in_all([*replaced.values()], study.confirm_hours)), soft_wrap=True)
    if config.check:
        check_files(would_run, study)
        check_configs(would_run)


def _pinned(name: str) -> str:
    """A name on the hub, and whether it is always the same: no key says what a branch holds today."""
    return name if "@" in name else f"{name} (not pinned: add @REVISION)"


def study_status(config: StudyConfig) -> None:
    """Print how far a study is: state, time and memory of each step, and the last line of those that failed."""
    from rich.text import Text

    from benchmarks.wording import duration, visible

    keyed = resolve(config)
    console, table = _table("step", "state", "time", "memory", "")
    for step in keyed.plan.steps:
        record, state = read_record(keyed.output, step.name), keyed.told(step.name)
        time = duration(record.seconds) if record and record.seconds else ""
        memory = f"{record.peak_memory_mb / 1024:.1f} GB" if record and record.peak_memory_mb else ""
        last = record.log_tail[-1] if record and record.log_tail else ""
        table.add_row(step.name, _coloured(state), time, memory, Text(visible(last, 100), style="red"))
    console.print(table)


def _table(*heads: str):  # rich is imported only when something is printed
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in heads:
        justify: Literal["left", "right"] = "right" if head in {"time", "memory"} else "left"
        table.add_column(head, justify=justify, overflow="fold", no_wrap=head in {"step", "time", "memory"})
    return Console(highlight=False), table


def _coloured(state: str):
    from rich.text import Text

    colours = {"done": "green", "failed": "red", "running": "cyan"}
    return Text(state, style=colours.get(state, "yellow"))
