"""Run what is missing of a study: every step a child process, independent ones at the same time.

Interrupted (Ctrl-C, SIGTERM), the runner ends its children and says so in their records; run again, it goes
on with the same outputs, so a training step resumes from its checkpoint. Killed with -9, its children are told
to end by the kernel (Linux), and the lock, which they share, keeps a second runner out until they are gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from benchmarks.output import writable_directory
from benchmarks.study.programs import executable
from benchmarks.study.state import (
    CONFIG,
    LOG,
    Outcome,
    StepKey,
    StepRecord,
    clear_outputs,
    is_done,
    read_record,
    step_directory,
    write_record,
)
from benchmarks.study.steps import Step, in_order
from clips.artifact import write_file
from clips.commandline.commands import to_yaml
from clips.errors import UserError

LOG_TAIL_LINES = 20
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 20.0
_LOCK = ".lock"


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


@dataclasses.dataclass
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    record: StepRecord
    earlier_seconds: float


def run_steps(
    steps: Sequence[Step],
    keys: Callable[[], Mapping[str, StepKey]],
    output: Path,
    *,
    jobs: int,
    observer: Observer,
    threads: int | None = None,
) -> Summary:
    """Run every step that is not done, parents first, at most ``jobs`` at once.

    Args:
        steps: of the study.
        keys: gives step name → key as things are now; asked again before each step, so that code that changes while
            the study runs is not taken for the code that it began with.
        output: the study's directory.
        jobs: children at the same time.
        observer: is told what happens.
        threads: OMP_NUM_THREADS of each child; the cores divided by ``jobs`` where None.

    Raises:
        UserError: another runner works in this directory, or a program is not installed.
        KeyboardInterrupt: after the children have been ended.
    """
    with locked(output) as lock, _sigterm_interrupts():
        waiting = {step.name: step for step in in_order(steps)}
        known = keys()
        present = [name for name, step in waiting.items() if is_done(step, known[name], output)]
        for name in present:
            observer.changed(waiting.pop(name), "present", read_record(output, name))
        state = _State(output, keys, observer, environment(jobs, threads), lock, finished=set(present))
        try:
            while waiting or state.running:
                state.start_ready(waiting, jobs)
                state.collect()
                observer.tick()
                if state.running:
                    time.sleep(_POLL_SECONDS)
        finally:
            state.stop_all()
    return Summary(
        present=tuple(present), done=tuple(state.done), failed=tuple(state.failed), blocked=tuple(state.blocked)
    )


class _State:
    """The children at work and what became of the others."""

    def __init__(
        self,
        output: Path,
        keys: Callable[[], Mapping[str, StepKey]],
        observer: Observer,
        environment: Mapping[str, str],
        lock: int,
        finished: set[str],
    ) -> None:
        self.output, self.keys, self.observer = output, keys, observer
        self.environment, self.lock, self.finished = environment, lock, finished
        self.running: list[_Running] = []
        self.done: list[str] = []
        self.failed: list[str] = []
        self.blocked: list[str] = []

    def start_ready(self, waiting: dict[str, Step], jobs: int) -> None:
        """Start steps whose parents are done, in the order of the study; set aside those that cannot run."""
        for name, step in list(waiting.items()):
            if any(parent in self.failed or parent in self.blocked for parent in step.parents):
                self.blocked.append(waiting.pop(name).name)
                self.observer.changed(step, "blocked", None)
            elif len(self.running) < jobs and self.finished.issuperset(step.parents):
                self.running.append(self._start(waiting.pop(name)))

    def _start(self, step: Step) -> _Running:
        directory = step_directory(self.output, step.name)
        before = read_record(self.output, step.name)
        key = self.keys()[step.name]
        goes_on = before is not None and before.key == key.key and before.outcome != "done"
        if not goes_on:
            clear_outputs(step, key, before)
        write_file(directory / CONFIG, to_yaml(step.config))
        record = StepRecord(
            name=step.name,
            kind=step.kind,
            command=command_line(step, self.output),
            key=key.key,
            outcome="running",
            started=time.time(),
            outputs=key.outputs,
        )
        write_record(self.output, record)
        log = (directory / LOG).open("ab" if goes_on else "wb")
        process = subprocess.Popen(
            [*executable(step.command), "--config", str(directory / CONFIG)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
            pass_fds=(self.lock,),
            preexec_fn=_end_with_parent,
        )
        self.observer.changed(step, "running", record)
        earlier = before.seconds if goes_on and before is not None and before.outcome == "interrupted" else 0.0
        return _Running(step, process, log, record, earlier)

    def collect(self) -> None:
        """Note the children that have ended."""
        for child in list(self.running):
            pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
            if pid:
                child.process.returncode = os.waitstatus_to_exitcode(status)
                self.running.remove(child)
                self._finish(child, child.process.returncode, usage.ru_maxrss / 1024)

    def _finish(self, child: _Running, status: int, peak_mb: float) -> None:
        child.log.close()
        step, tail = child.step, log_tail(self.output, child.step.name)
        problems = step.problems() if status == 0 else []
        outcome: Outcome = "failed" if status or problems else "done"
        _end_group(child.process.pid, signal.SIGKILL)  # workers that outlived their launcher
        record = dataclasses.replace(
            child.record,
            outcome=outcome,
            seconds=child.earlier_seconds + time.time() - child.record.started,
            peak_memory_mb=round(peak_mb, 1),
            exit_status=status,
            log_tail=(*tail, *problems) if outcome == "failed" else (),
        )
        write_record(self.output, record)
        (self.done if outcome == "done" else self.failed).append(step.name)
        if outcome == "done":
            self.finished.add(step.name)
        self.observer.changed(step, outcome, record)

    def stop_all(self) -> None:
        """End the children that still run (the runner was interrupted)."""
        for child in self.running:
            _end_group(child.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        for child in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            _end_group(child.process.pid, signal.SIGKILL)
            child.process.wait()
            child.log.close()
            seconds = child.earlier_seconds + time.time() - child.record.started
            record = dataclasses.replace(child.record, outcome="interrupted", seconds=seconds)
            write_record(self.output, record)
            self.observer.changed(child.step, "interrupted", record)
        self.running.clear()


def environment(jobs: int, threads: int | None) -> dict[str, str]:
    """The environment of a child: an equal share of the cores, no telemetry or network where a library offers that."""
    share = threads or max(1, cores() // jobs)
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(share),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
    }


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command_line(step: Step, output: Path) -> str:
    """The step as a user would type it."""
    return " ".join([*step.command, "--config", str(step_directory(output, step.name) / CONFIG)])


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
def locked(output: Path) -> Iterator[int]:
    """Hold the study's directory; yields the lock's file descriptor, for children to share.

    Raises:
        UserError: another runner, or a step that a killed runner left behind, is at work there; or it cannot be
            written.
    """
    path = writable_directory(output) / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = path.read_text(encoding="utf-8").strip() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"{output}: another runner (process {owner}) or a step it left behind is at work here; wait or end it"
        ) from None
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


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


def _end_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In a child, before its program starts: ask the kernel for SIGTERM when the runner dies."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
