"""Run the unfinished steps of a study: Snakemake starts a job for each of them, parents first.

The key of a step decides whether it is done. Snakemake gets the unfinished steps only and stores no state: its lock
and its metadata are off. It dies with the runner. Local jobs notice that and end; jobs on a cluster continue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.children import start_child
from benchmarks.study.executors import ExecutorConfig, GpusConfig, LocalConfig, SlurmConfig
from benchmarks.study.job import Job, RunPlan, write_plan
from benchmarks.study.launchers import launch_command, resolve_executable
from benchmarks.study.locks import is_at_work, left_behind
from benchmarks.study.resources import Resources
from benchmarks.study.step_state import (
    CONFIG_FILE,
    StepKey,
    is_done,
    log_tail,
    read_record,
    step_directory,
    write_record,
)
from benchmarks.study.steps import Step, topological_order
from benchmarks.study.study_record import available_cores
from clips.commandline.signals import sigterm_interrupts
from clips.errors import UserError
from clips.gpus import visible_gpus

WORKFLOW = Path(__file__).with_name("workflow.smk")
LOG = ".snakemake.log"
_ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of executing a study: names of steps by outcome.

    Args:
        present: done before.
        done: done now.
        failed: failed or interrupted.
        blocked: not started, because a parent failed.
    """

    present: tuple[str, ...]
    done: tuple[str, ...]
    failed: tuple[str, ...]
    blocked: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every step is done."""
        return not self.failed and not self.blocked


def run_steps(
    steps: Sequence[Step],
    keys: Mapping[str, StepKey],
    output: Path,
    *,
    jobs: int,
    executor: ExecutorConfig | None = None,
    resources: Mapping[str, Resources] | None = None,
    threads: int | None = None,
    show: Callable[[], None] = lambda: None,
) -> Summary:
    """Run every step that is not done, parents first. The caller holds the study's lock.

    Args:
        jobs: maximum number of concurrent steps, for executors without a limit of their own.
        executor: where the steps run; None for this machine.
        resources: step name → its resources; one process each by default.
        threads: OMP_NUM_THREADS of each process; by default an equal share of the cores.
        show: called about five times a second.

    Raises:
        UserError: a program is not installed, or the executor lacks the resources of a step.
        KeyboardInterrupt: after the steps on this machine have ended.
    """
    executor = executor or LocalConfig()
    given = {step.name: (resources or {}).get(step.name, Resources()) for step in steps}
    executor.check(given)
    ordered = topological_order(steps)
    present = [step.name for step in ordered if is_done(step, keys[step.name], output)]
    missing = [step for step in ordered if step.name not in present]
    if not missing:
        return Summary(present=tuple(present), done=(), failed=(), blocked=())
    for step in missing:
        resolve_executable(
            launch_command(step.command, step_directory(output, step.name) / CONFIG_FILE, given[step.name])
        )
    if isinstance(executor, SlurmConfig):
        _cancel_pending(executor.job_prefix(output))
    for name in left_behind(output, jobs=True):
        _end_outdated_job(output, name, keys.get(name))
    run_id = secrets.token_hex(8)
    write_jobs(missing, keys, output, run=run_id, jobs=jobs, executor=executor, resources=given, threads=threads)
    flags = [*executor.flags(jobs), *executor.study_flags(output)]
    status = run_engine(output, flags, show, leave=executor.leaves_jobs)
    return _summary(missing, present, output, run_id=run_id, status=status)


def write_jobs(
    missing: Sequence[Step],
    keys: Mapping[str, StepKey],
    output: Path,
    *,
    run: str,
    jobs: int,
    executor: ExecutorConfig,
    resources: Mapping[str, Resources],
    threads: int | None,
) -> Path:
    """Write ``.plan.json`` and remove Snakemake's markers of these steps; the arguments are those of ``run_steps``."""
    width = executor.limits(jobs).get("gpus") or jobs
    devices = (executor.devices or tuple(visible_gpus())) if isinstance(executor, GpusConfig) else None
    setup = "".join(f"{line}; " for line in executor.setup) if isinstance(executor, SlurmConfig) else ""
    names = {step.name for step in missing}
    path = output.resolve() / ".plan.json"
    planned = {}
    shutil.rmtree(output / ".markers", ignore_errors=True)
    for step in missing:
        given = resources[step.name]
        directory = step_directory(output, step.name)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".done").unlink(missing_ok=True)
        share = 1 if executor.remote else max(1, available_cores() // (width * given.processes))
        command = shlex.join([sys.executable, "-m", "benchmarks.study.job", str(path), step.name])
        spread = f"srun --nodes={given.nodes} --ntasks={given.nodes} --kill-on-bad-exit " if given.nodes > 1 else ""
        planned[step.name] = Job(
            step=step,
            key=keys[step.name],
            resources=given,
            parents=tuple(parent for parent in step.parents if parent in names),
            threads=given.cpus or threads or share,
            grace=executor.grace(given),
            devices=devices,
            is_remote=executor.remote,
            is_adopted=is_at_work(output, step.name),
            demands=executor.demands(given),
            command_line=f"{setup}exec {spread}{command}",
        )
    return write_plan(RunPlan(run=run, output=str(output), folder=str(Path.cwd()), jobs=planned))


def run_engine(output: Path, flags: Sequence[str], show: Callable[[], None], *, leave: bool) -> int:
    """Run Snakemake on ``.plan.json`` and return its exit status; with ``leave``, jobs continue after an interruption.

    ``show`` is called while it runs.
    """
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW), "--directory", str(output)]
    words += ["--nolock", "--drop-metadata", "--keep-going", "--rerun-incomplete", "--scheduler", "greedy", "--nocolor"]
    words += [*flags, "--config", f"plan={output.resolve() / '.plan.json'}"]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (output / LOG).open("wb") as log, sigterm_interrupts():
        # When the runner dies, SIGKILL leaves Snakemake no time to cancel cluster jobs, which shall continue. Local
        # jobs end when they notice that Snakemake is gone.
        process = start_child(words, log, os.environ | {"PYTHONPATH": path}, on_death=signal.SIGKILL)
        try:
            while process.poll() is None:
                show()
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None and (leave or "--executor" not in flags):
                process.kill()  # as above: local jobs end, cluster jobs continue
            elif process.poll() is None:
                process.send_signal(signal.SIGINT)  # Snakemake cancels its cluster jobs
            process.wait()
            while left_behind(output):
                time.sleep(_POLL_SECONDS)
            show()
    return process.returncode


def _summary(missing: Sequence[Step], present: Sequence[str], output: Path, *, run_id: str, status: int) -> Summary:
    """The outcome of each step; the record of a killed job is corrected to ``failed``."""
    done, failed, blocked = list[str](), list[str](), list[str]()
    started = False
    for step in missing:
        record = read_record(output, step.name)
        is_own = record is not None and record.run_id == run_id
        if record is not None and is_own and record.status == "running" and not is_at_work(output, step.name):
            problem = (*log_tail(output, step.name), "its process was killed")
            record = dataclasses.replace(record, status="failed", log_tail=problem)
            write_record(output, record)
        if record is not None and record.status == "done" and not step.problems():
            done.append(step.name)
        elif any(parent in failed or parent in blocked for parent in step.parents):
            blocked.append(step.name)
            continue
        else:
            failed.append(step.name)
        started |= is_own
    if (failed or status != 0) and not started:
        lines = (output / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["empty log"]
        reason = next((line.strip() for line in lines if "message:" in line or "rror:" in line), lines[-1])
        raise UserError(f"{output / LOG}: Snakemake could not run the steps: {reason:.300}")
    return Summary(present=tuple(present), done=tuple(done), failed=tuple(failed), blocked=tuple(blocked))


def _cancel_pending(prefix: str) -> None:
    """Cancel this study's queued jobs; they are submitted again."""
    try:
        listed = _stdout("squeue", "--me", "--noheader", "--states=PENDING", "--format=%i %j")
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"executor: slurm: squeue does not answer here ({error})") from None
    pending = [words[0] for line in listed.splitlines() if (words := line.split())[1:] and words[1].startswith(prefix)]
    if pending:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _stdout("scancel", *pending)


def _stdout(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def _end_outdated_job(output: Path, name: str, key: StepKey | None) -> None:
    """Cancel a job whose step has another key by now or left the study, and wait until it has ended."""
    record = read_record(output, name)
    if record is None or (key is not None and record.key == key.key):
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        _stdout("scancel", record.job)
    while is_at_work(output, name):
        time.sleep(_POLL_SECONDS)
