"""One step of a study, as Snakemake starts it: ``python -m benchmarks.study.run_step PLAN STEP``.

It locks the step, moves outputs of another key to the trash, starts the command on GPUs of its own and writes the
step's record. On SIGTERM or SIGINT, or when Snakemake dies, the command is signaled to save and end; its next job
resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.study.launchers import launch_command, resolve_executable
from benchmarks.study.locks import LOCK, acquire
from benchmarks.study.resources import gpu_environment, take_gpus
from benchmarks.study.state import CONFIG_FILE, LOG_FILE, StepRecord, is_done, log_tail, read_record, write_record
from benchmarks.study.steps import Step
from benchmarks.study.study_record import describe_machine
from benchmarks.study.trash import move_outputs
from clips.core.artifact import atomic_write, git_state, library_versions
from clips.core.parent_death import end_with_parent
from clips.errors import UserError
from clips.typed_data import from_plain, to_yaml

GRACE_SECONDS, CLUSTER_GRACE_SECONDS = 20.0, 240.0
"""What a command has to save and end; SLURM signals a job before its time limit, see the profile in scripts/slurm."""
_POLL_SECONDS = 0.1
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The job of one step in ``.plan.json``.

    Args:
        step: the step.
        parents: the unfinished steps that it waits for.
        threads: OMP_NUM_THREADS of each process.
        priority: of jobs that could start; the highest starts first.
        command_line: for Snakemake.
        demands: the ``resources`` of its rule.
    """

    step: Step
    parents: tuple[str, ...]
    threads: int
    priority: int
    command_line: str
    demands: dict[str, Any]


def run_step(plan_file: Path, name: str, stopped: Sequence[int] = ()) -> bool:
    """Run a step of a plan unless it is done; returns whether it is done afterwards.

    Args:
        plan_file: ``.plan.json`` of the study.
        name: of the step.
        stopped: gets an item when the step shall save and end.

    Raises:
        UserError: the trash or the record cannot be written.
    """
    plan, parent = json.loads(plan_file.read_text(encoding="utf-8")), os.getppid()
    job = from_plain(Job, plan["jobs"][name])
    step = job.step

    def is_stopping() -> bool:
        return bool(stopped) or os.getppid() != parent

    def wait_for(take: Callable[[], Found | None]) -> Found | None:
        while (found := take()) is None and not is_stopping():
            time.sleep(_POLL_SECONDS)
        return found

    with contextlib.ExitStack() as locks:
        step.directory.mkdir(parents=True, exist_ok=True)
        lock = wait_for(lambda: acquire(step.directory / LOCK))  # of a job that outlived its runner
        if lock is None:
            return False
        locks.callback(os.close, lock)
        before = read_record(step.study, name)
        if is_done(step):
            return True
        if before is not None and before.status == "failed" and before.started >= plan["began"]:
            return False  # Snakemake's retries are for interrupted jobs
        environment, held = dict[str, str](), [lock]
        if plan["devices"]:  # of the runner's machine; a step without GPUs sees none, and a cluster assigns its own
            taken = wait_for(lambda: take_gpus(plan["devices"], step.resources.gpus))
            if taken is None:
                return False
            environment, held = gpu_environment(taken[0]), [lock, *taken[1]]
            for gpu in taken[1]:
                locks.callback(os.close, gpu)

        resumed = before if before and step.key.matches(before) and before.status != "done" else None
        log_file = step.directory / LOG_FILE
        seconds = resumed.seconds if resumed else 0.0
        if resumed and resumed.status == "running" and log_file.is_file():  # killed: it took until it last wrote
            seconds += max(0.0, log_file.stat().st_mtime - resumed.started)
        if resumed is None:
            move_outputs(step, before)
            log_file.unlink(missing_ok=True)
        atomic_write(step.directory / CONFIG_FILE, to_yaml(step.config))
        words = launch_command(step.command, step.directory / CONFIG_FILE, step.resources)
        former = [path for path in (before.output_paths if before else ()) if (step.study / path).exists()]
        record = StepRecord(
            name=name,
            kind=step.kind,
            command=" ".join(words),
            key=step.key.key,
            status="running",
            started=time.time(),
            seconds=seconds,
            parts=step.key.parts,
            outputs=step.key.outputs,
            output_paths=tuple(dict.fromkeys([*step.output_paths(), *former])),  # former ones for `clean`
            machine=describe_machine(),
            git=git_state(),
            versions=library_versions(),
            accepted=resumed.accepted if resumed else (),
        )
        write_record(step.study, record)
        with log_file.open("ab") as log:
            process = subprocess.Popen(
                resolve_executable(words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": str(job.threads),
                    "TOKENIZERS_PARALLELISM": "false",
                    "PYTHONUNBUFFERED": "1",
                    "MPLBACKEND": "Agg",
                    **environment,
                },
                start_new_session=True,
                pass_fds=held,  # until the command has ended, even if this process is killed
                preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
            )
            exit_status, peak_mb = _wait(process, is_stopping)
        problems = step.problems() if exit_status == 0 else []
        status: Any = "done" if exit_status == 0 and not problems else "interrupted" if is_stopping() else "failed"
        ended = dataclasses.replace(
            record,
            status=status,
            seconds=record.seconds + time.time() - record.started,
            exit_status=None if status == "interrupted" else exit_status,
            peak_memory_mb=peak_mb,
            log_tail=(*log_tail(step.directory), *problems) if status == "failed" else (),
        )
        write_record(step.study, ended)
        return status == "done"


def _wait(process: subprocess.Popen[bytes], is_stopping: Callable[[], bool]) -> tuple[int, float | None]:
    """The exit status of a command, and the peak memory of its largest process in MiB."""
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            _signal_group(pid, signal.SIGKILL)  # workers that outlived their launcher
            return process.returncode, round(usage.ru_maxrss / 1024, 1)
        if is_stopping():
            is_cluster = {"SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST"} & os.environ.keys()
            stop(process, CLUSTER_GRACE_SECONDS if is_cluster else GRACE_SECONDS)
            return process.returncode, None
        time.sleep(_POLL_SECONDS)


def stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """Send SIGTERM to a command's group, and SIGKILL to all its descendants after ``grace`` seconds or at its end."""
    started = _descendants(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        started += _descendants(process.pid)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    for descendant in started:  # torchrun's workers have their own sessions
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main(arguments: Sequence[str]) -> int:
    """Run a step of a plan; the exit status is 0 if it is done afterwards."""
    plan, name = Path(arguments[0]), arguments[1]
    os.chdir(json.loads(plan.read_text(encoding="utf-8"))["folder"])  # of the runner, for relative paths
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    try:
        return 0 if run_step(plan, name, stopped) else 1
    except UserError as error:
        with (plan.parent / "steps" / name / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
