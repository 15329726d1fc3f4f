"""Steps as SLURM jobs by Snakemake's plugin: under the SLURM of this machine where there is one, else a played one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from study_engine import make, run, visits

from benchmarks.study.executors import SlurmConfig
from benchmarks.study.resources import Resources
from benchmarks.study.step_state import StepRecord, read_record

pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra 'slurm' is not installed")

REAL = bool(shutil.which("sinfo")) and subprocess.run(["sinfo"], capture_output=True).returncode == 0
CPU = Resources(cpus=1, time_limit_hours=0.1)
RUNNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import test_study_slurm as t
steps = [t.make(Path({place!r}), "first"), t.make(Path({place!r}), "long", "first", until={until!r})]
t.submit(Path({place!r}), steps, cancel_on_interrupt={cancel!r})
"""


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


def submit(root: Path, steps: list, mark: str = "", **settings: object):  # type: ignore[no-untyped-def, type-arg]
    given = {step.name: CPU for step in steps}
    return run(root, steps, mark=mark, executor=SlurmConfig(**settings), resources=given)  # type: ignore[arg-type]


def record_of(root: Path, name: str) -> StepRecord:
    record = read_record(root, name)
    assert record is not None
    return record


def start_runner(place: Path, until: str, *, cancel: bool = False) -> subprocess.Popen[bytes]:
    """A runner in a process of its own, its second step at work as a job."""
    tests = Path(__file__).parent
    code = RUNNER.format(tests=str(tests), root=str(tests.parent), place=str(place), until=until, cancel=cancel)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (place / "made" / "long" / "visits.txt").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def jobs_of(root: Path) -> int:
    """How many jobs were submitted to the played SLURM."""
    return len(list((root / "jobs").glob("job.*")))


@pytest.mark.slow
def test_steps_are_jobs_and_a_failed_one_leaves_its_log(tmp_path):
    steps = [make(tmp_path, "data"), make(tmp_path, "bad", "data", fail="no such weights"), make(tmp_path, "c", "bad")]
    summary = submit(tmp_path, steps)
    assert (summary.done, summary.failed, summary.blocked) == (("data",), ("bad",), ("c",))
    bad, data = record_of(tmp_path, "bad"), record_of(tmp_path, "data")
    assert data.job
    assert data.job != bad.job
    assert (bad.exit_status, bad.log_tail[-1]) == (3, "no such weights")
    assert visits(tmp_path, "bad") == 1  # submitted again, it does not run again


@pytest.mark.slow
def test_a_job_continues_without_its_runner_and_the_next_runner_waits_for_it(tmp_path):
    gate = tmp_path / "gate"
    process = start_runner(tmp_path, str(gate))
    process.kill()
    process.communicate(timeout=60)
    time.sleep(1)
    assert record_of(tmp_path, "long").status == "running"
    before = None if REAL else jobs_of(tmp_path)
    gate.touch()
    steps = [make(tmp_path, "first"), make(tmp_path, "long", "first", until=str(gate))]
    summary = submit(tmp_path, steps)
    assert (summary.present, summary.done) in {(("first",), ("long",)), (("first", "long"), ())}
    assert visits(tmp_path, "long") == 1
    assert before is None or jobs_of(tmp_path) == before


@pytest.mark.slow
def test_a_job_of_a_changed_step_is_canceled_before_the_step_runs_again(tmp_path):
    process = start_runner(tmp_path, "/nowhere/at/all")
    process.kill()
    process.communicate(timeout=60)
    before = record_of(tmp_path, "long")
    summary = submit(tmp_path, [make(tmp_path, "first"), make(tmp_path, "long", "first")], " changed")
    assert summary.done == ("first", "long")
    assert record_of(tmp_path, "long").job != before.job
    assert visits(tmp_path, "long") == 1  # what the cancelled job left is in the trash


@pytest.mark.slow
def test_a_job_that_slurm_interrupts_is_submitted_again_and_resumes(tmp_path):
    gate = tmp_path / "gate"
    process = start_runner(tmp_path, str(gate))
    before = record_of(tmp_path, "long")
    subprocess.run(["scancel", before.job], check=True)  # as at the end of its time: SIGTERM
    deadline = time.monotonic() + 120
    while record_of(tmp_path, "long").status == "running" and record_of(tmp_path, "long").job == before.job:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    gate.touch()
    process.communicate(timeout=300)
    assert process.returncode == 0
    after = record_of(tmp_path, "long")
    assert after.status == "done"
    assert after.job != before.job
    assert visits(tmp_path, "long") == 2


@pytest.mark.slow
def test_ctrl_c_cancels_where_the_study_says_so(tmp_path):
    process = start_runner(tmp_path, "/nowhere/at/all", cancel=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    deadline = time.monotonic() + 60
    while record_of(tmp_path, "long").status == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert record_of(tmp_path, "long").status == "interrupted"


@pytest.mark.slow
@pytest.mark.skipif(REAL, reason="needs a queue that can be held")
def test_what_a_killed_runner_had_in_the_queue_is_submitted_once(tmp_path):
    (tmp_path / "jobs" / "hold").touch()
    tests = Path(__file__).parent
    code = RUNNER.format(tests=str(tests), root=str(tests.parent), place=str(tmp_path), until="/", cancel=False)
    process = subprocess.Popen([sys.executable, "-c", code])
    while not list((tmp_path / "jobs").glob("state.*")):
        time.sleep(0.05)
    process.kill()
    process.communicate()
    time.sleep(1)
    (tmp_path / "jobs" / "state.101").read_text(encoding="utf-8")
    second = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "jobs" / "cancelled.101").exists():
        assert second.poll() is None
        time.sleep(0.05)
    (tmp_path / "jobs" / "hold").unlink()
    assert second.wait(timeout=300) == 0
    assert visits(tmp_path, "first") == visits(tmp_path, "long") == 1
