"""Run the unfinished steps of a study: Snakemake decides what starts when and where; each job is ``run_step``.

A job is ``python -m benchmarks.study.run PLAN STEP``. On SIGTERM or SIGINT, or when Snakemake dies, its command is
signaled to save and end; the step's next job resumes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil

from benchmarks.study.launch import launch_command, resolve_executable
from benchmarks.study.locks import LOCK, acquire, take_gpus
from benchmarks.study.state import (
    CONFIG_FILE,
    LOG_FILE,
    Step,
    StepRecord,
    StepState,
    describe_machine,
    is_at_work,
    log_tail,
    read_record,
    state_of,
    write_record,
)
from benchmarks.study.step_kinds import STEP_KINDS
from benchmarks.study.trash import move, paths_of_output, replaced_outputs
from clips.commandline.signals import STOP_SIGNALS, sigterm_interrupts
from clips.core.artifact import git_state, library_versions
from clips.core.durable import atomic_write
from clips.core.parent_death import end_with_parent, usable_cores
from clips.errors import UserError
from clips.gpus import visible_gpus
from clips.safe_text import log_info
from clips.typed_data import from_plain, to_plain, to_yaml

WORKFLOW = Path(__file__).with_name("study.smk")
LOG, PLAN = ".snakemake.log", ".plan.json"
MARKERS = ".markers"  # where Kubernetes keeps the markers of finished steps
# What a command has to save and end; SLURM signals a job before its time limit, see the profile in scripts/slurm.
GRACE_SECONDS, CLUSTER_GRACE_SECONDS = 20.0, 240.0
_RUNNER_POLL_SECONDS, _JOB_POLL_SECONDS = 0.2, 0.1
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of executing a study: names of steps by outcome."""

    present: tuple[str, ...]  # done before
    done: tuple[str, ...] = ()  # now
    failed: tuple[str, ...] = ()  # or interrupted
    blocked: tuple[str, ...] = ()  # not started, because a parent failed

    @property
    def complete(self) -> bool:
        """Whether every step is done."""
        return not self.failed and not self.blocked


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of one step in ``.plan.json``."""

    step: Step
    parents: tuple[str, ...]  # the unfinished steps that it waits for
    threads: int  # OMP_NUM_THREADS of each process
    priority: int  # of jobs that could start, the highest starts first
    command_line: str
    demands: dict[str, Any]  # the ``resources`` of its rule


def run_steps(
    steps: Sequence[Step],
    output: Path,
    *,
    jobs: int,
    profile: str | None = None,
    threads: int | None = None,
    show: Callable[[], None] = lambda: None,
) -> Summary:
    """Run every step that is not done. The caller holds the study's lock.

    Args:
        steps: with their keys, parents before children.
        output: the study's directory.
        jobs: maximum number of concurrent steps without a GPU, on this machine.
        profile: of Snakemake, for steps that run elsewhere; None for this machine.
        threads: OMP_NUM_THREADS of each process; by default an equal share of the cores.
        show: called about five times a second.

    Raises:
        UserError: a program is not installed, this machine lacks the resources of a step, or Snakemake cannot start.
        KeyboardInterrupt: after the steps on this machine have ended.
    """
    devices = [] if profile else visible_gpus()
    for step in steps:
        nodes, gpus = step.resources.nodes, step.resources.gpus
        if not profile and nodes > 1:
            raise UserError(f"resources: step {step.name} requests {nodes} nodes; expected a 'profile' of a cluster")
        if devices and gpus > len(devices):
            raise UserError(f"resources: step {step.name} requests {gpus} GPUs, and {len(devices)} are visible")
    present = tuple(step.name for step in steps if state_of(step).is_done)
    missing = [step for step in steps if step.name not in present]
    if not missing:
        return Summary(present=present)
    if not profile and not devices and any(step.resources.gpus for step in missing):
        log_info("no GPU is visible: the steps run on the CPU")
    for step in missing:
        resolve_executable(launch_command(step.command, Path(CONFIG_FILE), step.resources))
    began = time.time()
    plan_file = output.resolve() / PLAN
    shutil.rmtree(output / MARKERS, ignore_errors=True)
    unfinished = {step.name for step in missing}
    chains = chain_seconds(missing)
    planned: dict[str, Job] = {}
    for step in missing:
        step.directory.mkdir(parents=True, exist_ok=True)
        (step.directory / ".done").unlink(missing_ok=True)
        given = step.resources
        # Here a step takes GPUs or one of `jobs`: as Snakemake's threads its cores would limit the steps as well.
        here = {"gpu": given.gpus} if devices and given.gpus else {"jobs": 1}
        share = 1 if profile else max(1, usable_cores() // ((len(devices) or jobs) * given.processes))
        planned[step.name] = Job(
            step=step,
            parents=tuple(parent for parent in step.parents if parent in unfinished),
            threads=given.cpus or threads or share,
            priority=round(chains[step.name]),
            command_line=shlex.join([sys.executable, "-m", "benchmarks.study.run", str(plan_file), step.name]),
            demands=given.snakemake() if profile else here,
        )
    plan = {"began": began, "folder": str(Path.cwd()), "devices": devices}
    atomic_write(plan_file, json.dumps({**plan, "jobs": to_plain(planned)}))
    if profile:
        flags = ["--profile", profile, "--default-storage-prefix", str(output.resolve() / MARKERS)]
    else:
        flags = ["--cores", str(jobs + len(devices)), "--resources", f"jobs={jobs}"]
        flags += [f"gpu={len(devices)}"] if devices else []
    status = run_snakemake(output, flags, show)

    done, failed, blocked, has_started = list[str](), list[str](), list[str](), False
    for step in missing:
        state = state_of(step)
        if state.record is not None and state.record.started >= began:
            has_started = True
            if state.name == "stopped":
                tail = (*log_tail(step.directory), "its process was killed")
                write_record(output, replace(state.record, status="failed", log_tail=tail))
        if state.is_done:
            done.append(step.name)
        elif any(parent in failed or parent in blocked for parent in step.parents):
            blocked.append(step.name)
        else:
            failed.append(step.name)
    if (failed or status != 0) and not has_started:
        lines = (output / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["empty log"]
        reason = next((line.strip() for line in lines if "message:" in line or "rror:" in line), lines[-1])
        raise UserError(f"{output / LOG}: Snakemake could not run the steps: {reason:.300}")
    return Summary(present=present, done=tuple(done), failed=tuple(failed), blocked=tuple(blocked))


def chain_seconds(steps: Sequence[Step]) -> dict[str, float]:
    """Step → the time of the longest chain of steps that begins with it: what starts first ends a study first."""
    chains: dict[str, float] = {}
    behind: dict[str, float] = {}
    for step in reversed(steps):
        record = read_record(step.study, step.name)
        kind = STEP_KINDS[step.kind]
        own = record.seconds if record and record.status == "done" else kind.usual_seconds * kind.cost(step.config)
        chains[step.name] = own + behind.get(step.name, 0.0)
        for parent in step.parents:
            behind[parent] = max(behind.get(parent, 0.0), chains[step.name])
    return chains


def run_snakemake(output: Path, flags: Sequence[str], show: Callable[[], None]) -> int:
    """Run Snakemake on ``.plan.json`` and return its exit status; ``show`` is called while it runs."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW), "--directory", str(output)]
    words += ["--nolock", "--drop-metadata", "--keep-going", "--rerun-incomplete", "--scheduler", "greedy", "--nocolor"]
    words += [*flags, "--config", f"plan={output.resolve() / PLAN}"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    is_local = "--profile" not in flags
    with (output / LOG).open("wb") as log, sigterm_interrupts():
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
            preexec_fn=functools.partial(end_with_parent, signal.SIGKILL),  # local jobs notice it and end
        )
        try:
            while process.poll() is None:
                show()
                time.sleep(_RUNNER_POLL_SECONDS)
        finally:
            if process.poll() is None and is_local:
                process.kill()  # its jobs on this machine notice that and have their steps save
            elif process.poll() is None:
                process.send_signal(signal.SIGINT)  # Snakemake cancels its jobs on the cluster
            process.wait()
            while is_local and any(map(is_at_work, output.glob("steps/*"))):
                time.sleep(_RUNNER_POLL_SECONDS)
            show()
    return process.returncode


def main(plan_file: Path, name: str) -> int:
    """Run a step of a plan; the exit status is 0 if it is done afterwards."""
    os.chdir(json.loads(plan_file.read_text(encoding="utf-8"))["folder"])  # of the runner, for relative paths
    stopped: list[int] = []
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda received, _frame: stopped.append(received))
    try:
        return 0 if run_step(plan_file, name, stopped) else 1
    except UserError as error:
        with (plan_file.parent / "steps" / name / LOG_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{error}\n")
        return 1


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
        while (taken := take()) is None and not is_stopping():
            time.sleep(_JOB_POLL_SECONDS)
        return taken

    with contextlib.ExitStack() as locks:
        step.directory.mkdir(parents=True, exist_ok=True)
        lock = wait_for(lambda: acquire(step.directory / LOCK))  # of a job that outlived its runner
        if lock is None:
            return False
        locks.callback(os.close, lock)
        state = state_of(step)
        if state.is_done:
            return True
        if state.record is not None and state.record.status == "failed" and state.record.started >= plan["began"]:
            return False  # Snakemake's retries are for interrupted jobs
        environment, held = dict[str, str](), [lock]
        if plan["devices"]:  # of the runner's machine; a step without GPUs sees none, and a cluster assigns its own
            taken = wait_for(lambda: take_gpus(plan["devices"], step.resources.gpus))
            if taken is None:
                return False
            environment, held = taken[0], [lock, *taken[1]]
            for gpu in taken[1]:
                locks.callback(os.close, gpu)
        record = _begin(step, state)
        environment |= {"OMP_NUM_THREADS": str(job.threads)}
        exit_status, peak_mb = _execute(step, environment, held, is_stopping)
        problems = step.problems() if exit_status == 0 else []
        status: Literal["done", "interrupted", "failed"] = "interrupted" if is_stopping() else "failed"
        if exit_status == 0 and not problems:
            status = "done"
        ended = replace(
            record,
            status=status,
            seconds=record.seconds + time.time() - record.started,
            exit_status=None if status == "interrupted" else exit_status,
            peak_memory_mb=peak_mb,
            log_tail=(*log_tail(step.directory), *problems) if status == "failed" else (),
        )
        write_record(step.study, ended)
        return status == "done"


def _begin(step: Step, state: StepState) -> StepRecord:
    """Write the config and the record of a step that starts; unless it resumes, its old outputs go to the trash."""
    before = state.record
    resumed = None if state.rerun_reason else before
    log_file = step.directory / LOG_FILE
    seconds = resumed.seconds if resumed else 0.0
    if resumed and resumed.status == "running" and log_file.is_file():  # killed: it took until it last wrote
        seconds += max(0.0, log_file.stat().st_mtime - resumed.started)
    if resumed is None:  # old and new outputs never mix
        if old := [path for each in replaced_outputs(step, before) for path in paths_of_output(each)]:
            move(step.study, step.name, old)
        log_file.unlink(missing_ok=True)
    atomic_write(step.directory / CONFIG_FILE, to_yaml(step.config))
    former = [path for path in (before.output_paths if before else ()) if (step.study / path).exists()]
    record = StepRecord(
        name=step.name,
        kind=step.kind,
        command=" ".join(launch_command(step.command, step.directory / CONFIG_FILE, step.resources)),
        key=step.key.key,
        status="running",
        started=time.time(),
        seconds=seconds,
        parts=step.key.parts,
        outputs=step.key.outputs,
        output_paths=tuple(dict.fromkeys([*step.output_paths(), *former])),  # also what it wrote before
        machine=describe_machine(),
        git=git_state(),
        versions=library_versions(),
        accepted=resumed.accepted if resumed else (),
    )
    write_record(step.study, record)
    return record


def _execute(
    step: Step, environment: Mapping[str, str], held: Sequence[int], is_stopping: Callable[[], bool]
) -> tuple[int, float | None]:
    """Run a step's command; its exit status and the peak memory of its largest process in MiB.

    Args:
        step: whose config is written.
        environment: variables of the command.
        held: files with locks, which stay until the command has ended, even if this process is killed.
        is_stopping: whether the command shall save and end.
    """
    words = launch_command(step.command, step.directory / CONFIG_FILE, step.resources)
    fixed = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "Agg"}
    with (step.directory / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            resolve_executable(words),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **fixed, **environment},
            start_new_session=True,
            pass_fds=held,
            preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
        )
        return _wait(process, is_stopping)


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
        time.sleep(_JOB_POLL_SECONDS)


def stop(process: subprocess.Popen[bytes], grace: float) -> None:
    """Send SIGTERM to a command's group, and SIGKILL to all its descendants after ``grace`` seconds or at its end."""

    def descendants() -> list[psutil.Process]:
        try:
            return psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    started = descendants()
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=grace)
    except subprocess.TimeoutExpired:
        started += descendants()
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    for descendant in started:  # torchrun's workers have their own sessions
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
