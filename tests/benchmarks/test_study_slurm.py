"""Steps as SLURM jobs by Snakemake's plugin: under the SLURM of this machine where there is one, else a played one."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from study_engine import make, run, start_runner, visits

from benchmarks.study.launch import Resources
from benchmarks.study.state import StepRecord, read_record

pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra 'slurm' is not installed")

REAL = bool(shutil.which("sinfo")) and subprocess.run(["sinfo"], capture_output=True).returncode == 0
SHIPPED = Path(__file__).parents[2] / "scripts" / "slurm" / "profile" / "config.yaml"


@pytest.fixture(autouse=True)
def _slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not REAL:
        for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sacct", "sinfo"):
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            played = Path(__file__).with_name("played_slurm.py")
            path.write_text(f"#!{sys.executable}\n{played.read_text(encoding='utf-8')}", encoding="utf-8")
            path.chmod(0o755)
        (tmp_path / "jobs").mkdir()
        monkeypatch.setenv("PLAYED_SLURM", str(tmp_path / "jobs"))
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield
    words = ["squeue", "--me", "--noheader", "--states=RUNNING", "--format=%i %j"]
    jobs = [line.split()[0] for line in subprocess.run(words, capture_output=True, text=True).stdout.splitlines()]
    subprocess.run(["scancel", *jobs], check=False)


def submit(root: Path, steps: list, mark: str = ""):  # type: ignore[no-untyped-def, type-arg]
    """Run steps under the shipped profile, without its partition and account, and without accounting."""
    profile = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    defaults = {
        name: each
        for name, each in profile["default-resources"].items()
        if name not in {"slurm_partition", "slurm_account"}
    }
    (root / "profile").mkdir(exist_ok=True)
    written = {**profile, "default-resources": defaults, "slurm-status-command": "squeue"}
    (root / "profile" / "config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    steps = [dataclasses.replace(step, resources=Resources(cpus=1, time_limit_hours=0.1)) for step in steps]
    return run(root, steps, mark=mark, profile=str(root / "profile"))


def record_of(root: Path, name: str) -> StepRecord:
    record = read_record(root, name)
    assert record is not None
    return record


def start_job(place: Path, until: str) -> subprocess.Popen[bytes]:
    """A runner in a process of its own, its second step at work as a job."""
    steps = f'[make(place, "first"), make(place, "long", "first", until={until!r})]'
    code = f"import test_study_slurm as t\nt.submit(place, {steps})"
    return start_runner(place, code, place / "made/long/visits.txt")


def jobs_of(root: Path) -> list[str]:
    """The numbers of the jobs that were submitted."""
    if REAL:
        listed = subprocess.run(["squeue", "--me", "--noheader", "--format=%i"], capture_output=True, text=True).stdout
        return sorted(listed.split())
    return sorted(path.name.partition(".")[2] for path in (root / "jobs").glob("job.*"))


@pytest.mark.slow
def test_steps_are_jobs_and_a_failed_one_is_not_run_again(tmp_path):
    steps = [make(tmp_path, "data"), make(tmp_path, "bad", "data", fail="no such weights"), make(tmp_path, "c", "bad")]
    summary = submit(tmp_path, steps)
    assert (summary.done, summary.failed, summary.blocked) == (("data",), ("bad",), ("c",))
    bad = record_of(tmp_path, "bad")
    assert (bad.exit_status, bad.log_tail[-1]) == (3, "no such weights")
    assert visits(tmp_path, "bad") == 1  # submitted again, it does not run again
    assert REAL or len(jobs_of(tmp_path)) >= 2


@pytest.mark.slow
def test_a_job_continues_without_its_runner_and_a_later_job_finds_the_step_done(tmp_path):
    gate = tmp_path / "gate"
    process = start_job(tmp_path, str(gate))
    process.kill()
    process.communicate(timeout=60)
    time.sleep(1)
    assert record_of(tmp_path, "long").status == "running"
    gate.touch()
    summary = submit(tmp_path, [make(tmp_path, "first"), make(tmp_path, "long", "first", until=str(gate))])
    assert (summary.present, summary.done) in {(("first",), ("long",)), (("first", "long"), ())}
    assert visits(tmp_path, "long") == 1


@pytest.mark.slow
def test_a_job_that_slurm_interrupts_is_submitted_again_and_resumes(tmp_path):
    gate = tmp_path / "gate"
    process = start_job(tmp_path, str(gate))
    before = jobs_of(tmp_path)
    subprocess.run(["scancel", before[-1]], check=True)  # as at the end of its time: SIGTERM
    deadline = time.monotonic() + 120
    while jobs_of(tmp_path) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    gate.touch()
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert record_of(tmp_path, "long").status == "done"
    assert visits(tmp_path, "long") == 2


@pytest.mark.slow
def test_ctrl_c_cancels_the_jobs_which_save(tmp_path):
    process = start_job(tmp_path, "/nowhere/at/all")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while record_of(tmp_path, "long").status == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert record_of(tmp_path, "long").status == "interrupted"
