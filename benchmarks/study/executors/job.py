"""What a SLURM job does on its node: claim the step, run its command, and tell how that ended.

On every node of the job one such task starts the node's processes; the first one claims and tells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.study.executors import claims
from benchmarks.study.executors.base import NOTE_SECONDS, Ended, Job
from benchmarks.study.executors.children import child_environment, end_group, start_child, stop_children
from benchmarks.study.machine import cores, describe_machine
from benchmarks.study.state import LOG
from clips.errors import UserError

_WAIT_SECONDS = 1.0
_PORTS = range(20_000, 32_000)


class StepJob:
    """The callable that submitit carries to the node.

    Args:
        job: the step's run, its directory at the path that the nodes see it at.
        folder: where the runner was started, against which the paths in configs stand.
        saves: seconds that the step has to save when the job's time is over.
        again: whether it was queued again, after it had begun.
    """

    def __init__(self, job: Job, folder: str, saves: float, *, again: bool = False) -> None:
        self.job, self.folder, self.saves, self.again = job, folder, saves, again
        self.process: subprocess.Popen[bytes] | None = None
        self.note: Callable[[], float] = float

    @classmethod
    def of(cls, job: Job, saves: float) -> StepJob:
        """The job as it is submitted from here."""
        return cls(dataclasses.replace(job, directory=job.directory.resolve()), str(Path.cwd()), saves)

    def __call__(self) -> None:
        """Run the step; what it prints goes to its log."""
        from submitit import JobEnvironment

        place, job = JobEnvironment(), self.job
        first = place.node == 0
        os.chdir(self.folder)
        if first and not claims.claim(job.directory, job.token, place.job_id):
            print("the study does not want this run any more", file=sys.stderr)
            return
        append = job.append or self.again
        threads = job.threads or max(1, cores() // job.resources.processes)
        environment = child_environment(threads) | _rendezvous(place, job)
        if first:
            self.note = _noting(job)
        log = job.directory / (LOG if first else f"node-{place.node}.{LOG}")
        with log.open("ab" if append else "wb") as stream:
            self.process = start_child(job.words, stream, environment)
            status, peak_mb = self._wait()
        if first:
            ended = Ended(
                name=job.step.name,
                status=status,
                seconds=self.note(),
                peak_memory_mb=peak_mb,
                machine=describe_machine(),
            )
            claims.write_end(job.directory, job.token, ended)

    def _wait(self) -> tuple[int, float]:
        assert self.process is not None
        noted = time.monotonic()
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                end_group(self.process.pid, signal.SIGKILL)
                return self.process.returncode, round(usage.ru_maxrss / 1024, 1)
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                self.note()
            time.sleep(_WAIT_SECONDS)

    def checkpoint(self) -> Any:
        """The job's time is over, or its node is wanted: have the step save, and go on with it in another allocation.

        submitit calls it in its signal handler and queues what it returns.
        """
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            stop_children([self.process], self.saves)
            self.note()
        return DelayedSubmission(StepJob(self.job, self.folder, self.saves, again=True))


def _noting(job: Job) -> Callable[[], float]:
    """A function that notes the run's seconds until now, those of former allocations included, and returns them."""
    before, began = claims.read_seconds(job.directory, job.token) or 0.0, time.time()

    def note() -> float:
        now = before + time.time() - began
        with contextlib.suppress(UserError):  # a full disk is the step's to tell
            claims.write_seconds(job.directory, job.token, now)
        return now

    return note


def _rendezvous(place: Any, job: Job) -> dict[str, str]:
    """Where torchrun's processes of several nodes meet; it reads these where its command line does not say."""
    if job.resources.nodes == 1:
        return {}
    port = _PORTS[int(place.raw_job_id) % len(_PORTS)]
    return {
        "PET_NODE_RANK": str(place.node),
        "PET_RDZV_ID": str(place.raw_job_id),
        "PET_RDZV_ENDPOINT": f"{place.hostnames[0]}:{port}",
        "MASTER_PORT": str(port),
    }
