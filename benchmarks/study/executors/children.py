"""Steps as children of the runner: they end when it does, however it ends, and hold its lock until they have.

Interrupted, the runner sends them SIGTERM, on which a training saves and stops, and SIGKILL when their time is up.
Killed with -9, it leaves that to the kernel (Linux).
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Protocol

import psutil

from benchmarks.study.executors import claims
from benchmarks.study.executors.base import Began, Ended, Job, Site
from benchmarks.study.machine import cores, describe_machine
from benchmarks.study.state import LOG
from benchmarks.study.steps import Step
from clips.errors import UserError

_GRACE_SECONDS = 20.0


class Room(Protocol):
    """Who may start now."""

    def choose(self, ready: Sequence[Step]) -> Mapping[str, Mapping[str, str]]:
        """Step → what its environment has besides, of those that can start; their room is taken."""

    def give_back(self, name: str) -> None:
        """The step has ended."""


@dataclasses.dataclass
class Child:
    """A step at work."""

    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float

    def seconds(self) -> float:
        """Wall time until now."""
        return time.time() - self.began


class Children:
    """The executor behind ``local`` and ``gpus``.

    Args:
        site: of the study.
        room: who may start.
        width: how many run at the same time.
    """

    queues = False

    def __init__(self, site: Site, room: Room, *, width: int) -> None:
        self.site, self.room, self.width = site, room, width
        self.environments: dict[str, Mapping[str, str]] = {}
        self.running: list[Child] = []
        self.machine = describe_machine()

    def choose(self, ready: Sequence[Step]) -> list[Step]:
        """Those for which there is room."""
        chosen = self.room.choose(ready)
        self.environments |= chosen
        return [step for step in ready if step.name in chosen]

    def release(self, step: Step) -> None:
        """Its place or GPUs are free again."""
        self.environments.pop(step.name)
        self.room.give_back(step.name)

    def start(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        """Start each; none outlives the runner."""
        for job in jobs:
            own = self.environments.pop(job.step.name)
            share = max(1, cores() // (self.width * job.resources.processes))
            environment = {**child_environment(job.threads or share), **own}
            log = (job.directory / LOG).open("ab" if job.append else "wb")
            process = start_child(job.words, log, environment, lock=self.site.lock)
            self.running.append(Child(job, process, log, time.time()))
        return {}

    def adopt(self, job: Job, known: str) -> bool:
        """Nothing: who holds the lock knows that no child of an earlier runner is left."""
        return False

    def abandon(self, job: Job, known: str) -> None:
        """A job that another executor queued must not have begun.

        Raises:
            UserError: it is at work.
        """
        if not claims.take_away(job.directory, job.token):
            raise UserError(
                f"step {job.step.name}: another executor's job {known} is at work on it; "
                "run the study with that executor, or cancel the job and wait until it is gone"
            )

    def poll(self) -> list[Began | Ended]:
        """The children that have ended."""
        ended: list[Began | Ended] = []
        for child in list(self.running):
            pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
            if pid:
                child.process.returncode = os.waitstatus_to_exitcode(status)
                end_group(child.process.pid, signal.SIGKILL)  # workers that outlived their launcher
                ended.append(self._ended(child, child.process.returncode, usage.ru_maxrss / 1024))
        return ended

    def seconds(self) -> Mapping[str, float]:
        """Of each child."""
        return {child.job.step.name: child.seconds() for child in self.running}

    def stop(self) -> list[Ended]:
        """End all of them."""
        stop_children([child.process for child in self.running], _GRACE_SECONDS)
        return [self._ended(child, None, None) for child in list(self.running)]

    def _ended(self, child: Child, status: int | None, peak_mb: float | None) -> Ended:
        self.running.remove(child)
        self.room.give_back(child.job.step.name)
        child.log.close()
        return Ended(
            name=child.job.step.name,
            status=status,
            seconds=child.seconds(),
            peak_memory_mb=None if peak_mb is None else round(peak_mb, 1),
            machine=self.machine,
        )


def one_node(site: Site, executor: str) -> None:
    """Refuse steps that want several machines.

    Raises:
        UserError: one does.
    """
    for name, resources in site.resources.items():
        if resources.nodes > 1:
            raise UserError(f"resources: step {name} wants {resources.nodes} nodes, and executor {executor} has one; "
                            "expected executor: slurm")  # fmt: skip


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a step: its share of the cores, no telemetry or network where a library offers that."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
    }


def start_child(
    words: Sequence[str], log: IO[bytes], environment: Mapping[str, str], lock: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own that ends with this process; what it prints goes to ``log``."""
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
        preexec_fn=_end_with_parent,
    )


def stop_children(processes: Sequence[subprocess.Popen[bytes]], grace: float) -> None:
    """SIGTERM to their groups, SIGKILL to all that they have started when ``grace`` seconds are over."""
    started = [below for process in processes for below in _descendants(process.pid)]
    for process in processes:
        end_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            started += _descendants(process.pid)
    for process in processes:
        end_group(process.pid, signal.SIGKILL)
        process.wait()
    for below in started:  # torchrun's workers have sessions of their own
        try:
            below.kill()
        except psutil.NoSuchProcess:
            continue


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end_group(pid: int, number: int) -> None:
    """Send a signal to a process group that may be gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """In a child, before its program starts: ask the kernel for SIGTERM when the parent dies.

    SIGUSR2, by which SLURM announces the end of a job's time to all its processes, is for the parent alone.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
