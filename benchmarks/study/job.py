"""One run of a step, as Snakemake starts it: ``python -m benchmarks.study.job PLAN STEP``.

It holds a lock on the step, so that two runners never run it at once; moves to the trash what another key made; starts
the command with GPUs of its own, and writes the step's record. When it is asked to end (SIGTERM, SIGINT), when its
parent dies, or when the plan has another key for the step, it has the command save and end; the next run of the step
goes on from there. On several nodes one such process runs on each, and the first one does all but start the command.
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
from benchmarks.study.gpus import gpu_environment, take_gpus
from benchmarks.study.launchers import launch_command, resolve_executable
from benchmarks.study.locks import LOCK, acquire
from benchmarks.study.machine import describe_machine
from benchmarks.study.resources import Resources
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
from benchmarks.study.trash import move_outputs
from clips.core.artifact import atomic_write, git_state, library_versions
from clips.errors import UserError
from clips.serialization import to_plain, to_yaml

PLAN = ".plan.json"
NOTE_SECONDS = 30.0
"""How often a step's time is noted: so much of it is lost when all are killed."""
_POLL_SECONDS = 0.1
_PORTS = range(20_000, 32_000)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a step.

    Args:
        step: the step.
        key: its current one.
        resources: what it is given.
        parents: the steps of this run that it waits for.
        threads: OMP_NUM_THREADS of each process.
        grace: seconds that the command has to save and end.
        devices: the machine's GPUs of which it takes its own; None where the executor or nobody hands them out.
        is_remote: whether it runs on a cluster, and outlives the runner; a runner may itself be a job of SLURM.
        is_adopted: whether a job of an earlier run is at work on the step, for whose end this one waits.
        demands: the ``resources`` of its rule.
        command_line: the line that Snakemake runs.
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
    """What a run of a study shall do: ``.plan.json`` in its directory.

    Args:
        run: names this run among all.
        output: the study's directory, as seen from ``folder``.
        folder: where the runner was started, against which the paths in configs stand.
        jobs: step → its run, parents first.
    """

    run: str
    output: str
    folder: str
    jobs: Mapping[str, Job]


def write_plan(plan: RunPlan) -> Path:
    """Write it to the study's directory."""
    path = Path(plan.output, PLAN).resolve()
    atomic_write(path, json.dumps(to_plain(plan)))
    return path


def read_plan(path: Path) -> RunPlan:
    """Read what ``write_plan`` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    jobs = {}
    for name, job in content["jobs"].items():
        step = {key: value for key, value in job["step"].items() if key != "parts"}
        step |= {key: tuple(step[key]) for key in ("command", "parents", "hub")}
        step |= {key: tuple(map(Path, step[key])) for key in ("outputs", "needs")}
        parts = {"step": Step(**step), "key": StepKey(**job["key"]), "resources": Resources(**job["resources"])}
        lists = {"parents": tuple(job["parents"]), "devices": job["devices"] and tuple(job["devices"])}
        jobs[name] = Job(**job | parts | lists)
    return RunPlan(**content | {"jobs": jobs})


class JobRun:
    """A job at work.

    Args:
        path: of the plan.
        name: of the step.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.plan = path, name, read_plan(path)
        self.job, self.step, self.output = self.plan.jobs[name], self.plan.jobs[name].step, Path(self.plan.output)
        self.directory = step_directory(self.output, name)
        self.parent = os.getppid()
        self.is_asked = False
        self._read = path.stat().st_mtime_ns
        self._looked = time.monotonic()

    def ask_to_end(self, *_signal: object) -> None:
        """Note that the job shall end; a signal handler."""
        self.is_asked = True

    def is_wanted(self) -> bool:
        """Whether the job shall go on: nobody asked it to end, its parent lives, its key is the plan's."""
        if os.getppid() != self.parent:
            self.is_asked = True
        if time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                if self.path.stat().st_mtime_ns != self._read:
                    self._read = self.path.stat().st_mtime_ns
                    now = read_plan(self.path).jobs.get(self.name)
                    self.is_asked |= now is not None and now.key != self.job.key
        return not self.is_asked

    def run(self) -> bool:
        """Run the step unless it is done; whether it is now."""
        self.directory.mkdir(parents=True, exist_ok=True)
        while (lock := acquire(self.directory / LOCK)) is None:
            if not self.is_wanted():
                return False
            time.sleep(_POLL_SECONDS)
        try:
            before = read_record(self.output, self.name)
            if is_done(self.step, self.job.key, self.output):
                return True
            if self.job.is_adopted or (before and before.run_id == self.plan.run and before.status == "failed"):
                return False  # submitted again, but only what was interrupted goes on
            return self._with_gpus(before, lock)
        finally:
            os.close(lock)

    def _with_gpus(self, before: StepRecord | None, lock: int) -> bool:
        environment, locks = {}, [lock]
        if self.job.devices is not None:
            while (taken := take_gpus(self.job.devices, self.job.resources.gpus)) is None:
                if not self.is_wanted():
                    return False
                time.sleep(_POLL_SECONDS)
            environment, locks = gpu_environment(taken[0]), [lock, *taken[1]]
        try:
            return self._run_command(self._begin(before), environment, locks)
        finally:
            for held in locks[1:]:
                os.close(held)

    def _begin(self, before: StepRecord | None) -> StepRecord:
        """Make room for the outputs, write the config, and a record that says so."""
        key = self.job.key
        goes_on = before is not None and before.key == key.key and before.status != "done"
        if not goes_on:
            move_outputs(self.output, self.step, key, before)
            (self.directory / LOG_FILE).unlink(missing_ok=True)
        atomic_write(self.directory / CONFIG_FILE, to_yaml(self.step.config))
        made = [path.relative_to(self.output) for path in self.step.outputs if path.is_relative_to(self.output)]
        record = StepRecord(
            name=self.name,
            kind=self.step.kind,
            command=" ".join(launch_command(self.step.command, self.directory / CONFIG_FILE, self.job.resources)),
            key=key.key,
            status="running",
            started=time.time(),
            seconds=before.seconds if goes_on and before else 0.0,
            previous_seconds=before.seconds if goes_on and before else 0.0,
            parts=key.parts,
            outputs=key.outputs,
            output_paths=tuple(path.as_posix() for path in made),
            run_id=self.plan.run,
            job=(os.environ.get("SLURM_JOB_ID") or socket.gethostname()) if self.job.is_remote else "",
            machine=describe_machine(),
            git=git_state(),
            versions=library_versions(),
            accepted=before.accepted if goes_on and before else (),
        )
        write_record(self.output, record)
        return record

    def _run_command(self, record: StepRecord, environment: Mapping[str, str], locks: Sequence[int]) -> bool:
        with (self.directory / LOG_FILE).open("ab") as log:
            process = start_child(self._words(), log, {**self._environment(), **environment}, locks=locks)
            status, peak_mb = self._wait(process, record)
        seconds = record.seconds + time.time() - record.started
        problems = self.step.problems() if status == 0 else []
        is_done = status == 0 and not problems
        tail = () if is_done or self.is_asked else (*log_tail(self.output, self.name), *problems)
        outcome: Any = "done" if is_done else "interrupted" if self.is_asked else "failed"
        told = None if outcome == "interrupted" else status
        ended = {"status": outcome, "exit_status": told, "peak_memory_mb": peak_mb, "log_tail": tail}
        write_record(self.output, dataclasses.replace(record, seconds=seconds, **ended))
        return is_done

    def _words(self) -> list[str]:
        return resolve_executable(launch_command(self.step.command, self.directory / CONFIG_FILE, self.job.resources))

    def _environment(self) -> dict[str, str]:
        """The environment of the command: its threads, no prompts, and where the processes of several nodes meet."""
        return {
            **os.environ,
            "OMP_NUM_THREADS": str(self.job.threads),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "Agg",
            **(rendezvous() if self.job.resources.nodes > 1 else {}),
        }

    def _wait(self, process: subprocess.Popen[bytes], record: StepRecord) -> tuple[int, float | None]:
        """The exit status of the command and its peak memory in MiB, where that is known; notes its time meanwhile."""
        noted = time.monotonic()
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                end_group(pid, signal.SIGKILL)  # workers that outlived their launcher
                return process.returncode, round(usage.ru_maxrss / 1024, 1)
            if not self.is_wanted():
                stop_child(process, self.job.grace)
                return process.returncode, None
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                with contextlib.suppress(UserError):  # a full disk is the step's to tell
                    now = record.seconds + time.time() - record.started
                    write_record(self.output, dataclasses.replace(record, seconds=now))
            time.sleep(_POLL_SECONDS)

    def follow_first_node(self) -> bool:
        """On another node than the first: start the command as soon as that one has prepared the step."""
        while (record := read_record(self.output, self.name)) is None or (
            (record.job, record.status) != (os.environ["SLURM_JOB_ID"], "running")
        ):
            if not self.is_wanted():
                return False
            time.sleep(_POLL_SECONDS)
        with (self.directory / f"node-{os.environ['SLURM_PROCID']}.{LOG_FILE}").open("ab") as log:
            process = start_child(self._words(), log, self._environment())
            while process.poll() is None:
                if not self.is_wanted():
                    stop_child(process, self.job.grace)
                time.sleep(_POLL_SECONDS)
        return process.returncode == 0


def rendezvous() -> dict[str, str]:
    """Where torchrun's processes of several nodes meet; it reads these where its command line does not say."""
    number, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
    names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True).stdout
    port = _PORTS[int(number) % len(_PORTS)]
    return {
        "PET_NODE_RANK": os.environ["SLURM_PROCID"],
        "PET_RDZV_ID": number,
        "PET_RDZV_ENDPOINT": f"{names.split()[0]}:{port}",
        "MASTER_PORT": str(port),
    }


def main(arguments: Sequence[str]) -> int:
    """Run the step that the command line names; 0 if it is done then."""
    path, name = arguments
    os.chdir(json.loads(Path(path).read_text(encoding="utf-8"))["folder"])
    run = JobRun(Path(path), name)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, run.ask_to_end)
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
