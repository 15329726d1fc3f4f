"""What the runner knows of an executor: it is given jobs, and tells when they begin and end."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share, Step

NOTE_SECONDS = 30.0
"""How often it is noted what a job has taken: so much of it is lost when all are killed."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a step.

    Args:
        step: the step.
        resources: that it is given.
        words: the command, its launcher and config included.
        directory: of the step, where its config, log and record lie.
        append: whether the log goes on, as the step does.
        threads: OMP_NUM_THREADS of each process; None: an equal share of the cores.
        token: names this run among all runs of all steps.
    """

    step: Step
    resources: Resources
    words: tuple[str, ...]
    directory: Path
    append: bool
    threads: int | None
    token: str


@dataclass(frozen=True, kw_only=True)
class Began:
    """A job that was queued has begun, at ``started`` (seconds since the epoch)."""

    name: str
    started: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job has ended.

    Args:
        name: of the step.
        status: exit status of its command; None where nobody could see it.
        seconds: wall time.
        peak_memory_mb: largest resident memory of one of its processes, MiB; None where unknown.
        machine: where it ran, see ``machine.describe_machine``.
        problem: why there is no status.
    """

    name: str
    status: int | None
    seconds: float
    peak_memory_mb: float | None = None
    machine: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Site:
    """What an executor is opened on.

    Args:
        output: the study's directory.
        jobs: of the study: steps at the same time.
        lock: file descriptor of the directory's lock, for children to share.
        resources: step → what it is given.
    """

    output: Path
    jobs: int
    lock: int
    resources: Mapping[str, Resources]


class Executor(Protocol):
    """Runs jobs. The runner calls it from one thread."""

    queues: bool
    """Whether a job that was started may have to wait, and outlives the runner."""

    def choose(self, ready: Sequence[Step]) -> list[Step]:
        """Those that can be started now, in the order of the study; room for them is taken."""

    def release(self, step: Step) -> None:
        """A step that was chosen is not started after all: the room for it is free again."""

    def start(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        """Start jobs that were chosen; step → id, of those that outlive the runner."""

    def adopt(self, job: Job, known: str) -> bool:
        """Whether a job that an earlier runner started (``known``: its id, or empty) is at work or has ended unseen.

        It is then told of by ``poll`` as if it had been started here.
        """

    def abandon(self, job: Job, known: str) -> None:
        """See to it that a job of an earlier runner, which is not wanted any more, writes nothing.

        Raises:
            UserError: it is at work and cannot be ended from here.
        """

    def poll(self) -> list[Began | Ended]:
        """What has happened since it was last asked; does not wait."""

    def seconds(self) -> Mapping[str, float]:
        """Step → wall time of its job until now, of jobs that end with the runner; others note it themselves."""

    def stop(self) -> list[Ended]:
        """The runner was interrupted: end what shall not go on without it."""


@dataclass(frozen=True, kw_only=True)
class ExecutorConfig(ABC):
    """Settings of an executor: a frozen dataclass that checks itself."""

    @abstractmethod
    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Step → how much of the executor it takes while it runs; for estimates.

        Args:
            resources: step → what it is given.
            jobs: of the study: steps at the same time.
        """

    @abstractmethod
    def open(self, site: Site) -> Executor:
        """The executor.

        Raises:
            UserError: a step asks for what it cannot give, or what it needs is not installed.
        """
