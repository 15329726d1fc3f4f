"""Run what is missing of a study: parents before children, independent steps as the executor has room for them.

Interrupted (Ctrl-C, SIGTERM), the runner has the executor end its jobs and says so in their records; run again, it goes
on with the same outputs, so a training step resumes from its checkpoint. Killed with -9, its children are told
to end by the kernel (Linux), and the lock, which they share, keeps a second runner out until they are gone; jobs that
outlive it are found again by what their records say.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.study.executors import claims
from benchmarks.study.executors.base import NOTE_SECONDS, Began, Ended, Executor, ExecutorConfig, Job, Site
from benchmarks.study.executors.local import LocalConfig
from benchmarks.study.programs import executable, launched
from benchmarks.study.resources import Resources
from benchmarks.study.state import (
    CONFIG,
    LOG,
    Outcome,
    StepKey,
    StepRecord,
    is_done,
    read_record,
    step_directory,
    write_record,
)
from benchmarks.study.steps import Step, in_order
from benchmarks.study.trash import Replacement, check_costly, move_outputs, replacements
from clips.core.artifact import git_state, versions, write_file
from clips.errors import UserError
from clips.plain import to_yaml

LOG_TAIL_LINES = 20
_POLL_SECONDS = 0.1


class Observer(Protocol):
    """Told about every change, and regularly while steps run."""

    def changed(self, step: Step, outcome: Outcome | str, record: StepRecord | None) -> None:
        """A step has a new state: ``"present"``, ``"waiting"``, ``"blocked"`` or an ``Outcome``."""

    def tick(self) -> None:
        """Called about ten times a second."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run of a study ended: the names of its steps by what became of them."""

    present: tuple[str, ...]
    done: tuple[str, ...]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every step is done."""
        return not self.failed and not self.blocked


@dataclasses.dataclass(frozen=True)
class _Run:
    """A step at work, and its record, whose seconds are those of the runs that it goes on from."""

    step: Step
    record: StepRecord

    def after(self, seconds: float) -> StepRecord:
        """The record when this run has taken ``seconds``."""
        return dataclasses.replace(self.record, seconds=self.record.seconds + seconds)


def run_steps(
    steps: Sequence[Step],
    keys: Callable[[], Mapping[str, StepKey]],
    output: Path,
    *,
    lock: int,
    jobs: int,
    observer: Observer,
    executor: ExecutorConfig | None = None,
    resources: Mapping[str, Resources] | None = None,
    threads: int | None = None,
    confirm_hours: float = math.inf,
    study: str = "",
) -> Summary:
    """Run every step that is not done, parents first.

    Args:
        steps: of the study.
        keys: gives step name → key as things are now; asked again before each step, so that code that changes while
            the study runs is not taken for the code that it began with.
        output: the study's directory.
        lock: on it, see ``lock.locked``.
        jobs: steps at the same time, where the executor leaves that to the study.
        observer: is told what happens.
        executor: where they run; on this machine where None.
        resources: step name → what it is given; one process each where None.
        threads: OMP_NUM_THREADS of each process; None: an equal share of the cores.
        confirm_hours: a step whose key changed after the start, so that it would make again what took longer, fails.
        study: as it is named on the command line, for what is said of such a step.

    Raises:
        UserError: a program is not installed, or the executor cannot give what a step asks for.
        KeyboardInterrupt: after the executor has ended what it ends.
    """
    given = {step.name: (resources or {}).get(step.name, Resources()) for step in steps}
    opened = (executor or LocalConfig()).open(Site(output=output, jobs=jobs, lock=lock, resources=given))
    with _sigterm_interrupts():
        waiting = {step.name: step for step in in_order(steps)}
        known = keys()
        present = [name for name, step in waiting.items() if is_done(step, known[name], output)]
        for name in present:
            observer.changed(waiting.pop(name), "present", read_record(output, name))
        confirm = functools.partial(check_costly, hours=confirm_hours, study=study)
        state = _State(output, keys, observer, opened, given, threads, confirm, finished=set(present))
        try:
            state.find_again(waiting, known)
            while waiting or state.running:
                state.start_ready(waiting)
                state.note(opened.poll())
                state.note_seconds()
                observer.tick()
                if state.running:
                    time.sleep(_POLL_SECONDS)
        finally:
            state.stop()
    return Summary(
        present=tuple(present), done=tuple(state.done), failed=tuple(state.failed), blocked=tuple(state.blocked)
    )


class _State:
    """The steps at work and what became of the others."""

    def __init__(
        self,
        output: Path,
        keys: Callable[[], Mapping[str, StepKey]],
        observer: Observer,
        executor: Executor,
        resources: Mapping[str, Resources],
        threads: int | None,
        confirm: Callable[[Sequence[Replacement]], None],
        finished: set[str],
    ) -> None:
        self.output, self.keys, self.observer, self.executor = output, keys, observer, executor
        self.resources, self.threads, self.confirm, self.finished = resources, threads, confirm, finished
        self.running: dict[str, _Run] = {}
        self.done: list[str] = []
        self.failed: list[str] = []
        self.blocked: list[str] = []
        self.seconds_noted = time.monotonic()

    def find_again(self, waiting: dict[str, Step], keys: Mapping[str, StepKey]) -> None:
        """Take over the jobs of an earlier runner that still are what the study asks for."""
        for name, step in list(waiting.items()):
            record = read_record(self.output, name)
            if record is None or not record.at_work or record.key != keys[name].key:
                continue
            if self.executor.adopt(self._job(step, record.token, append=True), record.job):
                self.running[waiting.pop(name).name] = _Run(step, record)
                self.observer.changed(step, record.outcome, record)

    def start_ready(self, waiting: dict[str, Step]) -> None:
        """Start steps whose parents are done, in the order of the study; set aside those that cannot run."""
        ready = []
        for name, step in list(waiting.items()):
            if any(parent in self.failed or parent in self.blocked for parent in step.parents):
                self.blocked.append(waiting.pop(name).name)
                self.observer.changed(step, "blocked", None)
            elif self.finished.issuperset(step.parents):
                ready.append(step)
        chosen = [waiting.pop(step.name) for step in self.executor.choose(ready)] if ready else []
        jobs = [job for job in map(self._prepare, chosen) if job is not None]
        ids = self.executor.start(jobs) if jobs else {}
        for job in jobs:
            run = self.running[job.step.name]
            record = dataclasses.replace(run.record, job=ids.get(job.step.name, ""))
            self._noted(dataclasses.replace(run, record=record))

    def _prepare(self, step: Step) -> Job | None:
        """What a step needs before it starts: room for its outputs, its config, and a record that says so.

        None where it would make again what nobody has confirmed: its key may have changed since the start.
        """
        directory = step_directory(self.output, step.name)
        before = read_record(self.output, step.name)
        key = self.keys()[step.name]
        goes_on = before is not None and before.key == key.key and before.outcome != "done"
        try:
            self.confirm(replacements([step], {step.name: key}, self.output))
        except UserError as error:
            self._refuse(step, key, str(error))
            return None
        job = self._job(step, secrets.token_hex(8), append=goes_on)
        if before is not None and before.at_work:
            self.executor.abandon(self._job(step, before.token, append=goes_on), before.job)
        if not goes_on:
            move_outputs(self.output, step, key, before)
        write_file(directory / CONFIG, to_yaml(step.config))
        record = StepRecord(
            name=step.name,
            kind=step.kind,
            command=command_line(step, self.output, job.resources),
            key=key.key,
            outcome="queued" if self.executor.queues else "running",
            started=time.time(),
            seconds=before.seconds if goes_on and before else 0.0,
            earlier=before.seconds if goes_on and before else 0.0,
            parts=key.parts,
            outputs=key.outputs,
            made=tuple(
                made.relative_to(self.output).as_posix() for made in step.outputs if made.is_relative_to(self.output)
            ),
            token=job.token if self.executor.queues else "",
            git=git_state(),
            versions=versions(),
            accepted=before.accepted if goes_on and before else (),
        )
        write_record(self.output, record)
        self.running[step.name] = _Run(step, record)
        return job

    def _refuse(self, step: Step, key: StepKey, problem: str) -> None:
        """Fail a step before it starts. Its record stays as it is, so that it goes on if the change is undone."""
        self.executor.release(step)
        self.failed.append(step.name)
        command = command_line(step, self.output, self.resources[step.name])
        record = StepRecord(
            name=step.name,
            kind=step.kind,
            command=command,
            key=key.key,
            outcome="failed",
            started=time.time(),
            log_tail=(problem,),
        )
        self.observer.changed(step, "failed", record)

    def _job(self, step: Step, token: str, *, append: bool) -> Job:
        resources, directory = self.resources[step.name], step_directory(self.output, step.name)
        return Job(
            step=step,
            resources=resources,
            words=tuple(executable(launched(step.command, directory / CONFIG, resources))),
            directory=directory,
            append=append,
            threads=resources.cpus or self.threads,
            token=token,
        )

    def note(self, events: Sequence[Began | Ended]) -> None:
        """Note what has happened to the jobs."""
        for event in events:
            run = self.running[event.name]
            if isinstance(event, Began):
                record = dataclasses.replace(run.record, outcome="running", started=event.started)
                self._noted(dataclasses.replace(run, record=record))
            else:
                self._finish(self.running.pop(event.name), event)

    def note_seconds(self) -> None:
        """Record from time to time what the steps have taken, should the runner be killed."""
        if time.monotonic() - self.seconds_noted < NOTE_SECONDS:
            return
        self.seconds_noted = time.monotonic()
        for name, seconds in self.executor.seconds().items():
            with contextlib.suppress(UserError):  # a full disk is the step's to tell
                write_record(self.output, self.running[name].after(seconds))

    def _noted(self, run: _Run) -> None:
        self.running[run.step.name] = run
        write_record(self.output, run.record)
        self.observer.changed(run.step, run.record.outcome, run.record)

    def _finish(self, run: _Run, ended: Ended) -> None:
        step, tail = run.step, log_tail(self.output, run.step.name)
        problems = step.problems() if ended.status == 0 else [ended.problem] if ended.problem else []
        outcome: Outcome = "failed" if ended.status != 0 or problems else "done"
        record = dataclasses.replace(
            _with_end(run, ended), outcome=outcome, log_tail=(*tail, *problems) if outcome == "failed" else ()
        )
        write_record(self.output, record)
        claims.forget(step_directory(self.output, step.name), record.token)
        (self.done if outcome == "done" else self.failed).append(step.name)
        if outcome == "done":
            self.finished.add(step.name)
        self.observer.changed(step, outcome, record)

    def stop(self) -> None:
        """The runner ends, or was interrupted: jobs that do not go on without it are ended."""
        for ended in self.executor.stop():
            run = self.running.pop(ended.name)
            record = dataclasses.replace(_with_end(run, ended), outcome="interrupted")
            write_record(self.output, record)
            self.observer.changed(run.step, "interrupted", record)


def _with_end(run: _Run, ended: Ended) -> StepRecord:
    return dataclasses.replace(
        run.after(ended.seconds), peak_memory_mb=ended.peak_memory_mb, exit_status=ended.status, machine=ended.machine
    )


def command_line(step: Step, output: Path, resources: Resources | None = None) -> str:
    """The step as a user would type it."""
    return " ".join(launched(step.command, step_directory(output, step.name) / CONFIG, resources or Resources()))


def log_tail(output: Path, name: str) -> tuple[str, ...]:
    """The last lines of a step's log that say something."""
    try:
        with (step_directory(output, name) / LOG).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 20_000))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    lines = [line.split("\r")[-1].rstrip()[:400] for line in text.splitlines()]
    return tuple([line for line in lines if line][-LOG_TAIL_LINES:])


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the runner as Ctrl-C does. Only the main thread may set handlers."""

    def interrupt(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
