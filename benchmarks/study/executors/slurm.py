"""Steps as SLURM jobs, submitted by submitit: steps that become ready together and ask for the same make one array.

The jobs are SLURM's, not the runner's: they go on when it dies, and the next runner finds them again by the ids in
their records. A job writes itself how it begins and ends, beside the step's log (``job``, ``claims``); SLURM is asked
only whether it is still there. The study's directory, the code and the data lie where all nodes see them at the same
path. submitit hands a job over as a pickle in the study's directory (``.slurm``), which the node loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.study.executors import claims
from benchmarks.study.executors.base import Began, Ended, Executor, ExecutorConfig, Job, Site
from benchmarks.study.executors.job import StepJob
from benchmarks.study.resources import Resources
from benchmarks.study.steps import Share, Step
from clips.errors import UserError

_LOOK_SECONDS = 1.0  # for files that jobs write
_ASK_SECONDS = 15.0  # the controller is shared with everybody
_GONE_AFTER = 2  # asks in which a job was not there; its last file may come late over the network
_CANCEL_SECONDS = 180.0
_SIGNAL_SECONDS = 300  # before the end of its time a job is told, as by scripts/slurm/train.sbatch
_SIGNAL_SHARE = 0.2  # of its time at most


@dataclass(frozen=True, kw_only=True)
class SlurmConfig(ExecutorConfig):
    """Settings of the executor ``slurm``.

    Args:
        partition: where to run; SLURM's default where not given, as all that follows.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have.
        hours: time limit of steps whose ``resources`` say none.
        at_once: jobs of one array at the same time.
        requeues: how often a job whose time is over is queued again, to go on from its checkpoint. (One that was
            preempted always is.)
        setup: lines of shell before each job, ``module load cuda`` for instance.
        options: any other option of sbatch → its value, for instance ``{exclude: "node[7-9]", nice: 100}``.
        cancel: whether Ctrl-C cancels the jobs. Else they go on, and the next run finds them.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    hours: float = 24.0
    at_once: int = 256
    requeues: int = 3
    setup: tuple[str, ...] = ()
    options: Mapping[str, str | int] = field(default_factory=dict)
    cancel: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.hours < 1e5:
            raise UserError(f"hours: expected more than 0, got {self.hours}")
        if self.at_once < 1:
            raise UserError(f"at_once: expected at least 1, got {self.at_once}")
        if self.requeues < 0:
            raise UserError(f"requeues: expected 0 or more, got {self.requeues}")

    def shares(self, resources: Mapping[str, Resources], jobs: int) -> dict[str, Share]:
        """Each is one of ``at_once``, should the cluster be free; how long its queue is nobody knows."""
        return {name: {"jobs": 1 / self.at_once} for name in resources}

    def open(self, site: Site) -> Executor:
        """Jobs of SLURM's.

        Raises:
            UserError: submitit is not installed, or this is no machine from which jobs are submitted.
        """
        try:
            import submitit  # noqa: F401
        except ImportError:
            raise UserError("executor: slurm needs submitit; pip install 'clips-suite[slurm]'") from None
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise UserError(f"executor: slurm: no program '{program}' here; run the study where jobs are submitted")
        return Slurm(site, self)


@dataclasses.dataclass
class _Queued:
    """A job that was submitted: its SLURM id, whether it has begun, and in how many asks it was gone."""

    job: Job
    id: str
    began: float | None = None
    missed: int = 0

    def seconds(self) -> float:
        """The wall time it has noted, at most half a minute ago; before the first note the time since it began."""
        noted = claims.read_seconds(self.job.directory, self.job.token)
        return noted or (time.time() - self.began if self.began else 0.0)


class Slurm:
    """The executor ``slurm``.

    Args:
        site: of the study.
        config: its settings.
    """

    queues = True

    def __init__(self, site: Site, config: SlurmConfig) -> None:
        self.site, self.config = site, config
        self.folder = site.output.resolve() / ".slurm"
        self.queued: dict[str, _Queued] = {}
        self._looked = self._asked = 0.0

    def choose(self, ready: Sequence[Step]) -> list[Step]:
        """All: SLURM has the queue."""
        return list(ready)

    def release(self, step: Step) -> None:
        """Nothing: no room was taken."""

    def start(self, jobs: Sequence[Job]) -> Mapping[str, str]:
        """Submit them; those that ask for the same as one array.

        Raises:
            UserError: what sbatch says against it.
        """
        ids: dict[str, str] = {}
        ordered = sorted(jobs, key=lambda job: repr(job.resources))
        for resources, group in itertools.groupby(ordered, key=lambda job: job.resources):
            alike = list(group)
            for job, number in zip(alike, self._submit(resources, alike), strict=True):
                ids[job.step.name] = number
                self.queued[job.step.name] = _Queued(job, number)
        self._asked = time.monotonic()
        return ids

    def _submit(self, resources: Resources, jobs: Sequence[Job]) -> list[str]:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.SlurmExecutor(folder=self.folder / "%j", max_num_timeout=self.config.requeues)
        parameters = self.parameters(resources, self.site.output.resolve().name)
        executor.update_parameters(**parameters)
        try:
            with executor.batch():
                submitted = [executor.submit(StepJob.of(job, 0.8 * parameters["signal_delay_s"])) for job in jobs]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise UserError(f"executor: sbatch: {' '.join(str(error).split())[-300:]}") from None
        return [job.job_id for job in submitted]

    def parameters(self, resources: Resources, name: str) -> dict[str, Any]:
        """What submitit's SlurmExecutor is told: one task on each node, which starts the node's processes."""
        minutes = max(1, round((resources.hours or self.config.hours) * 60))
        asked = {
            "job_name": name,
            "nodes": resources.nodes,
            "ntasks_per_node": 1,
            "gpus_per_node": resources.gpus or None,
            "cpus_per_task": resources.cpus * resources.processes if resources.cpus else None,
            "mem": f"{resources.memory_gb * 1024:.0f}MB" if resources.memory_gb else None,
            "time": minutes,
            "partition": self.config.partition,
            "account": self.config.account,
            "qos": self.config.qos,
            "constraint": self.config.constraint,
            "array_parallelism": self.config.at_once,
            "signal_delay_s": min(_SIGNAL_SECONDS, round(_SIGNAL_SHARE * minutes * 60)),
            "setup": list(self.config.setup) or None,
            "additional_parameters": dict(self.config.options) or None,
            # Since SLURM 22.05 srun takes one core of a task's unless it is told (sbatch's manual, --cpus-per-task).
            "srun_args": [f"--cpus-per-task={resources.cpus * resources.processes}"] if resources.cpus else None,
        }
        return {key: value for key, value in asked.items() if value is not None}

    def adopt(self, job: Job, known: str) -> bool:
        """Whether it has ended, has begun or is in the queue. One that died unseen is adopted too, and told of."""
        claimed = claims.claimed_by(job.directory, job.token)
        number = known or (claimed[0] if claimed else "")
        ended = claims.read_end(job.directory, job.token) is not None
        if not ended and not number and claims.take_away(job.directory, job.token):
            return False  # the runner died before it knew whether it was submitted; should it be, it ends at once
        self.queued[job.step.name] = _Queued(job, number or claims.claimed_by(job.directory, job.token)[0])  # type: ignore[index]
        return True

    def abandon(self, job: Job, known: str) -> None:
        """Cancel it, and wait until it is gone.

        Raises:
            UserError: it does not go.
        """
        if claims.take_away(job.directory, job.token) and not known:
            return
        claimed = claims.claimed_by(job.directory, job.token)
        number = known or (claimed[0] if claimed else "")
        _cancel([number])
        deadline = time.monotonic() + _CANCEL_SECONDS
        while (there := _in_queue()) is None or number in there:
            if time.monotonic() > deadline:
                raise UserError(f"step {job.step.name}: its former job {number} does not end; scancel it and run again")
            time.sleep(_LOOK_SECONDS)

    def poll(self) -> list[Began | Ended]:
        """What jobs have written of themselves, and those that SLURM does not know any more."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return []
        self._looked = now
        there = None
        if now - self._asked > _ASK_SECONDS:
            self._asked, there = now, _in_queue()
        events: list[Began | Ended] = []
        for name, queued in list(self.queued.items()):
            event = self._event(queued, there)
            if event is not None:
                events.append(event)
            if isinstance(event, Ended):
                del self.queued[name]
        return events

    def _event(self, queued: _Queued, there: set[str] | None) -> Began | Ended | None:
        directory, token, name = queued.job.directory, queued.job.token, queued.job.step.name
        if there is not None:
            queued.missed = 0 if queued.id in there else queued.missed + 1
        ended = claims.read_end(directory, token)
        if ended is not None:
            return ended
        claimed = claims.claimed_by(directory, token)
        if claimed and queued.began is None:
            queued.began = claimed[1]
            return Began(name=name, started=claimed[1])
        if queued.missed < _GONE_AFTER:
            return None
        claims.take_away(directory, token)  # nothing comes after what is told now
        return Ended(name=name, status=None, seconds=queued.seconds(), problem=self._obituary(queued.id))

    def _obituary(self, number: str) -> str:
        """Why a job is gone that told nothing: what SLURM's accounting knows, and the end of what submitit wrote."""
        state = ""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            state = _output(["sacct", "--noheader", "--allocations", "--format=State%60", f"--jobs={number}"]).strip()
        said = ""
        for path in sorted((self.folder / number.partition("_")[0]).glob(f"{number}_*_log.err")):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), said)
        words = [f"SLURM job {number} is gone", *([f"it says {state}"] if state else []), *([said] if said else [])]
        return "; ".join(words)

    def seconds(self) -> Mapping[str, float]:
        """Nothing: jobs outlive the runner, and note it themselves."""
        return {}

    def stop(self) -> list[Ended]:
        """Cancel what is queued or at work, if the settings say so."""
        if not self.config.cancel or not self.queued:
            return []
        _cancel([queued.id for queued in self.queued.values()])
        ended = []
        for name, queued in self.queued.items():
            claims.take_away(queued.job.directory, queued.job.token)
            ended.append(Ended(name=name, status=None, seconds=queued.seconds()))
        self.queued.clear()
        return ended


def _in_queue() -> set[str] | None:
    """Ids of my jobs that wait or run, those of arrays one by one; None where the controller does not answer."""
    try:
        return set(_output(["squeue", "--me", "--noheader", "--array", "--format=%i"]).split())
    except (OSError, subprocess.SubprocessError):
        return None


def _cancel(numbers: Sequence[str]) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _output(["scancel", *numbers])


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
