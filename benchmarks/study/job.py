"""One job of a step, as Snakemake starts it: ``python -m benchmarks.study.job PLAN STEP``.

It locks the step, so that only one job runs it; moves outputs of another key to the trash; starts the command on its
own GPUs; and writes the step's record. On SIGTERM or SIGINT, when its parent dies, or when the plan has another key for
the step, it signals the command to save and end; the next job of the step resumes. A step on several nodes has one such
process on each. All of them start the command, and the first one does everything else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.children import end_group, start_child, stop_child
from benchmarks.study.launchers import launch_command, resolve_executable
from benchmarks.study.locks import LOCK, acquire
from benchmarks.study.resources import Resources, gpu_environment, take_gpus
from benchmarks.study.step_state import (
    CONFIG_FILE,
    LOG_FILE,
    StepKey,
    StepRecord,
    is_done,
    log_tail,
    read_record,
    step_directory,
    write_record,
)
from benchmarks.study.steps import Step
from benchmarks.study.study_record import describe_machine
from benchmarks.study.trash import move_outputs
from clips.core.artifact import atomic_write, git_state, library_versions
from clips.errors import UserError
from clips.typed_data import from_plain, to_plain, to_yaml

PLAN = ".plan.json"
NOTE_SECONDS = 30.0
"""Interval between updates of a step's recorded time: the most that is lost if all processes are killed."""
_POLL_SECONDS = 0.1
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of one step.

    Args:
        step: the step.
        key: its current key.
        resources: its resources.
        parents: the unfinished steps that it waits for.
        threads: OMP_NUM_THREADS of each process.
        grace: seconds that the command has to save and end.
        devices: the GPUs of this machine to choose from; None if the job assigns no GPUs.
        is_remote: whether it runs on a cluster and outlives the runner; a runner may itself be a SLURM job.
        is_adopted: whether an earlier job still runs the step; this one waits for its end.
        demands: the ``resources`` of its rule.
        command_line: for Snakemake.
    """

    step: Step
    key: StepKey
    resources: Resources
    parents: tuple[str, ...] = ()
    threads: int = 1
    grace: float = 20.0
    devices: tuple[str, ...] | None = None
    is_remote: bool = False
    is_adopted: bool = False
    demands: Mapping[str, Any] = field(default_factory=dict)
    command_line: str = ""


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """``.plan.json`` in the study's directory: the jobs of one ``study run``.

    Args:
        run: unique id of this ``study run``.
        output: the study's directory, relative to ``folder``.
        folder: working directory of the runner, which paths in configs are relative to.
        jobs: step → its job, parents first.
    """

    run: str
    output: str
    folder: str
    jobs: Mapping[str, Job]


def write_plan(plan: RunPlan) -> Path:
    """Write a plan to its study's directory."""
    path = Path(plan.output, PLAN).resolve()
    atomic_write(path, json.dumps(to_plain(plan)))
    return path


def read_plan(path: Path) -> RunPlan:
    """Read a plan of ``write_plan``."""
    return from_plain(RunPlan, json.loads(path.read_text(encoding="utf-8")))


class JobRun:
    """The execution of a job.

    Args:
        path: of the plan.
        name: of the step.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.plan = path, name, read_plan(path)
        self.job, self.step, self.output = self.plan.jobs[name], self.plan.jobs[name].step, Path(self.plan.output)
        self.directory = step_directory(self.output, name)
        self.parent = os.getppid()
        self.is_stopping = False
        self._plan_mtime = path.stat().st_mtime_ns
        self._plan_checked = time.monotonic()

    def request_stop(self, *_signal: object) -> None:
        """Have the job end; a signal handler."""
        self.is_stopping = True

    def should_continue(self) -> bool:
        """Whether no stop was requested, the parent is alive, and the plan still has the job's key."""
        if os.getppid() != self.parent:
            self.is_stopping = True
        if time.monotonic() - self._plan_checked > 1:
            self._plan_checked = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                if self.path.stat().st_mtime_ns != self._plan_mtime:
                    self._plan_mtime = self.path.stat().st_mtime_ns
                    now = read_plan(self.path).jobs.get(self.name)
                    self.is_stopping |= now is not None and now.key != self.job.key
        return not self.is_stopping

    def run(self) -> bool:
        """Execute the step unless it is done; returns whether it is done afterwards."""
        self.directory.mkdir(parents=True, exist_ok=True)
        while (lock := acquire(self.directory / LOCK)) is None:
            if not self.should_continue():
                return False
            time.sleep(_POLL_SECONDS)
        try:
            before = read_record(self.output, self.name)
            if is_done(self.step, self.job.key, self.output):
                return True
            if self.job.is_adopted or (before and before.run_id == self.plan.run and before.status == "failed"):
                return False  # the executor retries interrupted steps only
            return self._run_with_gpus(before, lock)
        finally:
            os.close(lock)

    def _run_with_gpus(self, before: StepRecord | None, lock: int) -> bool:
        environment, locks = {}, [lock]
        if self.job.devices is not None:
            while (taken := take_gpus(self.job.devices, self.job.resources.gpus)) is None:
                if not self.should_continue():
                    return False
                time.sleep(_POLL_SECONDS)
            environment, locks = gpu_environment(taken[0]), [lock, *taken[1]]
        try:
            return self._run_command(self._begin(before), environment, locks)
        finally:
            for gpu_lock in locks[1:]:
                os.close(gpu_lock)

    def _begin(self, before: StepRecord | None) -> StepRecord:
        """Move outdated outputs away; write the config and the record of a running step."""
        key = self.job.key
        resumed = before if before and before.key == key.key and before.status != "done" else None
        if resumed is None:
            move_outputs(self.output, self.step, key, before)
            (self.directory / LOG_FILE).unlink(missing_ok=True)
        atomic_write(self.directory / CONFIG_FILE, to_yaml(self.step.config))
        record = StepRecord(
            name=self.name,
            kind=self.step.kind,
            command=" ".join(launch_command(self.step.command, self.directory / CONFIG_FILE, self.job.resources)),
            key=key.key,
            status="running",
            started=time.time(),
            seconds=resumed.seconds if resumed else 0.0,
            previous_seconds=resumed.seconds if resumed else 0.0,
            parts=key.parts,
            outputs=key.outputs,
            output_paths=tuple(dict.fromkeys([*self.step.output_paths(self.output), *self._former_outputs(before)])),
            run_id=self.plan.run,
            job=(os.environ.get("SLURM_JOB_ID") or socket.gethostname()) if self.job.is_remote else "",
            machine=describe_machine(),
            git=git_state(),
            versions=library_versions(),
            accepted=resumed.accepted if resumed else (),
        )
        write_record(self.output, record)
        return record

    def _former_outputs(self, before: StepRecord | None) -> list[str]:
        """Existing outputs of former jobs, such as results on a benchmark that the step no longer has, for `clean`."""
        return [path for path in (before.output_paths if before else ()) if (self.output / path).exists()]

    def _run_command(self, record: StepRecord, environment: Mapping[str, str], locks: Sequence[int]) -> bool:
        with (self.directory / LOG_FILE).open("ab") as log:
            process = start_child(self._command(), log, {**self._environment(), **environment}, locks=locks)
            exit_status, peak_mb = self._wait(process, record)
        problems = self.step.problems() if exit_status == 0 else []
        is_done = exit_status == 0 and not problems
        outcome: Any = "done" if is_done else "interrupted" if self.is_stopping else "failed"
        ended = dataclasses.replace(
            record,
            status=outcome,
            seconds=record.seconds + time.time() - record.started,
            exit_status=None if outcome == "interrupted" else exit_status,
            peak_memory_mb=peak_mb,
            log_tail=(*log_tail(self.output, self.name), *problems) if outcome == "failed" else (),
        )
        write_record(self.output, ended)
        return is_done

    def _command(self) -> list[str]:
        return resolve_executable(launch_command(self.step.command, self.directory / CONFIG_FILE, self.job.resources))

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(self.job.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            **(rendezvous() if self.job.resources.nodes > 1 else {}),
        }

    def _wait(self, process: subprocess.Popen[bytes], record: StepRecord) -> tuple[int, float | None]:
        """Record the elapsed time until the command ends; its exit status and its peak memory in MiB, if known."""
        recorded = time.monotonic()
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                end_group(pid, signal.SIGKILL)  # workers that outlived their launcher
                return process.returncode, round(usage.ru_maxrss / 1024, 1)
            if not self.should_continue():
                stop_child(process, self.job.grace)
                return process.returncode, None
            if time.monotonic() - recorded > NOTE_SECONDS:
                recorded = time.monotonic()
                with contextlib.suppress(UserError):  # the command itself reports a full disk
                    now = record.seconds + time.time() - record.started
                    write_record(self.output, dataclasses.replace(record, seconds=now))
            time.sleep(_POLL_SECONDS)

    def follow_first_node(self) -> bool:
        """Start the command on another node, as soon as the first node has prepared the step."""
        while (record := read_record(self.output, self.name)) is None or (
            (record.job, record.status) != (os.environ["SLURM_JOB_ID"], "running")
        ):
            if not self.should_continue():
                return False
            time.sleep(_POLL_SECONDS)
        with (self.directory / f"node-{os.environ['SLURM_PROCID']}.{LOG_FILE}").open("ab") as log:
            process = start_child(self._command(), log, self._environment())
            while process.poll() is None:
                if not self.should_continue():
                    stop_child(process, self.job.grace)
                time.sleep(_POLL_SECONDS)
        return process.returncode == 0


def rendezvous() -> dict[str, str]:
    """The environment variables of torchrun's rendezvous between the nodes of a SLURM job."""
    job_id, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
    hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True).stdout
    port = _PORTS[int(job_id) % len(_PORTS)]
    return {
        "PET_NODE_RANK": os.environ["SLURM_PROCID"],
        "PET_RDZV_ID": job_id,
        "PET_RDZV_ENDPOINT": f"{hosts.split()[0]}:{port}",
        "MASTER_PORT": str(port),
    }


def main(arguments: Sequence[str]) -> int:
    """Execute a step of a plan; the exit status is 0 if it is done afterwards."""
    path, name = arguments
    os.chdir(json.loads(Path(path).read_text(encoding="utf-8"))["folder"])
    run = JobRun(Path(path), name)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.request_stop)
    is_first = run.job.resources.nodes == 1 or os.environ.get("SLURM_PROCID", "0") == "0"
    try:
        done = run.run() if is_first else run.follow_first_node()
    except UserError as error:
        with (step_directory(run.output, name) / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{error}\n")
        done = False
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
