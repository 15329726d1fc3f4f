"""Run the unfinished steps of a study under Snakemake, which starts a job for each of them, parents first."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.launchers import launch_command, resolve_executable
from benchmarks.study.run_step import Job
from benchmarks.study.state import CONFIG_FILE, is_at_work, is_done, log_tail, read_record, write_record
from benchmarks.study.steps import Step
from clips.commandline.signals import sigterm_interrupts
from clips.core.artifact import atomic_write
from clips.core.parent_death import end_with_parent, usable_cores
from clips.errors import UserError
from clips.gpus import visible_gpus
from clips.typed_data import to_plain

WORKFLOW = Path(__file__).with_name("study.smk")
LOG = ".snakemake.log"
PLAN = ".plan.json"
MARKERS = ".markers"
"""Where Kubernetes keeps the markers of finished steps."""
_ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.2
_USUAL_SECONDS = {"data": 60.0, "encoder": 600.0, "llava": 600.0, "evaluation": 120.0}
"""Of steps that have not run yet, for the order in which they start."""


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
    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every step is done."""
        return not self.failed and not self.blocked


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
    present = tuple(step.name for step in steps if is_done(step))
    missing = [step for step in steps if step.name not in present]
    if not missing:
        return Summary(present=present)
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
            command_line=shlex.join([sys.executable, "-m", "benchmarks.study.run_step", str(plan_file), step.name]),
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

    done, failed, blocked, started = list[str](), list[str](), list[str](), False
    for step in missing:
        record = read_record(output, step.name)
        is_own = record is not None and record.started >= began
        if record is not None and is_own and record.status == "running" and not is_at_work(step.directory):
            tail = (*log_tail(step.directory), "its process was killed")
            record = dataclasses.replace(record, status="failed", log_tail=tail)
            write_record(output, record)
        started |= is_own
        if record is not None and record.status == "done" and not step.problems():
            done.append(step.name)
        elif any(parent in failed or parent in blocked for parent in step.parents):
            blocked.append(step.name)
        else:
            failed.append(step.name)
    if (failed or status != 0) and not started:
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
        own = record.seconds if record and record.status == "done" else _USUAL_SECONDS[step.kind]
        chains[step.name] = own + behind.get(step.name, 0.0)
        for parent in step.parents:
            behind[parent] = max(behind.get(parent, 0.0), chains[step.name])
    return chains


def run_snakemake(output: Path, flags: Sequence[str], show: Callable[[], None]) -> int:
    """Run Snakemake on ``.plan.json`` and return its exit status; ``show`` is called while it runs."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW), "--directory", str(output)]
    words += ["--nolock", "--drop-metadata", "--keep-going", "--rerun-incomplete", "--scheduler", "greedy", "--nocolor"]
    words += [*flags, "--config", f"plan={output.resolve() / PLAN}"]
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
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
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None and is_local:
                process.kill()  # its jobs on this machine notice that and have their steps save
            elif process.poll() is None:
                process.send_signal(signal.SIGINT)  # Snakemake cancels its jobs on the cluster
            process.wait()
            while is_local and any(map(is_at_work, output.glob("steps/*"))):
                time.sleep(_POLL_SECONDS)
            show()
    return process.returncode
