"""Steps as SLURM jobs: under the SLURM of this machine where there is one, else under one that is played.

A real one of one node takes munge-free files of a distribution's packages and a slurm.conf with auth/none; its programs
on the path, SLURM_CONF in the environment.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_study_runner import FAKE, RUNNER, Quiet, keys_of, make, visits

from benchmarks.study import runner
from benchmarks.study.executors import claims, job, slurm
from benchmarks.study.executors.base import Ended, Job, Site
from benchmarks.study.executors.slurm import SlurmConfig
from benchmarks.study.lock import locked
from benchmarks.study.resources import Resources
from benchmarks.study.runner import Summary, run_steps
from benchmarks.study.state import StepRecord, read_record, write_record
from benchmarks.study.steps import Step
from clips.errors import UserError

pytest.importorskip("submitit", reason="the extra 'slurm' is not installed")


def _is_there() -> bool:
    return bool(shutil.which("sinfo")) and subprocess.run(["sinfo"], capture_output=True).returncode == 0


REAL = _is_there()


@pytest.fixture(autouse=True)
def _slurm(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "executable", lambda words: [sys.executable, str(FAKE), *words])
    monkeypatch.setattr(slurm, "_ASK_SECONDS", 0.5)
    monkeypatch.setattr(slurm, "_LOOK_SECONDS", 0.1)
    if not REAL:
        for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
            path = tmp_path / "bin" / name
            path.parent.mkdir(exist_ok=True)
            played = Path(__file__).with_name("played_slurm.py")
            path.write_text(f"#!{sys.executable}\n{played.read_text(encoding='utf-8')}", encoding="utf-8")
            path.chmod(0o755)
        (tmp_path / "jobs").mkdir()
        monkeypatch.setenv("PLAYED_SLURM", str(tmp_path / "jobs"))
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    yield
    slurm._cancel(sorted(slurm._in_queue() or ()))


CPU = Resources(cpus=1, hours=0.1)


def run(root: Path, steps: list[Step], mark: str = "", *, quiet: Quiet | None = None, **settings: object) -> Summary:
    config = SlurmConfig(**settings)  # type: ignore[arg-type]
    given = {step.name: CPU for step in steps}
    with locked(root) as lock:
        return run_steps(steps, lambda: keys_of(steps, mark), root, lock=lock, jobs=1, observer=quiet or Quiet(),
                         executor=config, resources=given)  # fmt: skip


def record_of(root: Path, name: str) -> StepRecord:
    record = read_record(root, name)
    assert record is not None
    return record


def test_steps_that_are_ready_together_are_one_array_and_a_failed_one_leaves_its_log(tmp_path):
    steps = [
        make(tmp_path, "data"),
        make(tmp_path, "good", "data"),
        make(tmp_path, "bad", "data", fail="the weights are not of this architecture"),
        make(tmp_path, "after-bad", "bad"),
        make(tmp_path, "after-good", "good"),
    ]
    quiet = Quiet()
    summary = run(tmp_path, steps, quiet=quiet)
    assert (summary.done, summary.failed, summary.blocked) == (("data", "good", "after-good"), ("bad",), ("after-bad",))
    good, bad = record_of(tmp_path, "good"), record_of(tmp_path, "bad")
    assert good.job.partition("_")[0] == bad.job.partition("_")[0] != record_of(tmp_path, "data").job
    assert (bad.exit_status, bad.log_tail[-1]) == (3, "the weights are not of this architecture")
    assert good.peak_memory_mb
    assert good.machine["cores"]
    assert [word for name, word in quiet.told if name == "good"][:2] == ["queued", "running"]
    assert quiet.told.index(("good", "running")) < quiet.told.index(("good", "done"))
    assert not list((tmp_path / "steps").glob("*/.*"))  # nothing is left of claims
    assert run(tmp_path, steps[:2]).present == ("data", "good")


def start_runner(place: Path) -> subprocess.Popen[bytes]:
    """A runner in a process of its own, its second step at work as a job."""
    code = RUNNER.format(tests=str(Path(__file__).parent), root=str(Path(__file__).parents[1]), place=str(place))
    code = code.replace("t.run(", "import test_study_slurm as s; s.slurm._LOOK_SECONDS = 0.1; s.run(")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while (record := read_record(place, "long")) is None or record.outcome != "running":
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_jobs_go_on_without_their_runner_and_the_next_one_finds_them(tmp_path, number):
    process = start_runner(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=30)
    before = record_of(tmp_path, "long")
    gate = tmp_path / "gate"
    steps = [make(tmp_path, "first"), make(tmp_path, "long", "first", until=str(gate))]
    config = tmp_path / "steps" / "long" / "config.yaml"
    assert before.outcome == "running"
    assert "/nowhere" in config.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=f"another executor's job {before.job} is at work"), locked(tmp_path) as lock:
        run_steps(steps, lambda: keys_of(steps), tmp_path, lock=lock, jobs=1, observer=Quiet())
    # the key is another one now: the job is cancelled before the step runs anew
    gate.touch()
    assert run(tmp_path, steps, " changed").done == ("first", "long")
    assert before.job not in (slurm._in_queue() or ())
    assert visits(tmp_path, "long") == 1


def test_a_job_that_an_earlier_runner_submitted_is_not_submitted_again(tmp_path, monkeypatch):
    gate = tmp_path / "gate"
    steps = [make(tmp_path, "long", until=str(gate))]
    config = SlurmConfig()

    class Dies(Quiet):
        def changed(self, step: Step, outcome: str, record: object) -> None:
            if outcome == "running":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps, quiet=Dies())
    before = record_of(tmp_path, "long")
    gate.touch()
    assert run(tmp_path, steps).done == ("long",)
    assert record_of(tmp_path, "long").job == before.job
    assert visits(tmp_path, "long") == 1
    assert config.cancel is False


@pytest.mark.skipif(REAL, reason="a queue that is held back")
def test_a_job_that_its_runner_could_not_note_writes_nothing(tmp_path):
    hold = tmp_path / "jobs" / "hold"
    hold.touch()
    steps = [make(tmp_path, "data")]

    class Dies(Quiet):
        def changed(self, step: Step, outcome: str, record: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps, quiet=Dies())
    before = record_of(tmp_path, "data")
    write_record(tmp_path, dataclasses.replace(before, job=""))  # as kill -9 leaves it between sbatch and its id

    class Releases(Quiet):
        def changed(self, step: Step, outcome: str, record: object) -> None:
            if outcome == "queued":
                hold.unlink()

    assert run(tmp_path, steps, quiet=Releases()).done == ("data",)
    assert record_of(tmp_path, "data").job != before.job
    deadline = time.monotonic() + 60
    while slurm._in_queue():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert visits(tmp_path, "data") == 1
    said = (tmp_path / ".slurm" / before.job / f"{before.job}_0_log.err").read_text(encoding="utf-8")
    assert "the study does not want this run any more" in said


@pytest.mark.skipif(REAL, reason="a controller that is down")
def test_a_controller_that_does_not_answer_is_waited_for(tmp_path):
    gate, down = tmp_path / "gate", tmp_path / "jobs" / "down"

    class Watches(Quiet):
        ticks = 0

        def changed(self, step: Step, outcome: str, record: object) -> None:
            if outcome == "running":
                down.touch()

        def tick(self) -> None:
            self.ticks += down.exists()
            if self.ticks == 20:  # several asks later
                gate.touch()

    assert run(tmp_path, [make(tmp_path, "long", until=str(gate))], quiet=Watches()).done == ("long",)


def test_ctrl_c_cancels_where_the_study_says_so(tmp_path):
    class Dies(Quiet):
        def changed(self, step: Step, outcome: str, record: object) -> None:
            if outcome == "running":
                raise KeyboardInterrupt

    steps = [make(tmp_path, "long", until="/nowhere/at/all")]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, steps, quiet=Dies(), cancel=True)
    before = record_of(tmp_path, "long")
    assert before.outcome == "interrupted"
    deadline = time.monotonic() + 30
    while (there := slurm._in_queue()) is None or before.job in there:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(tmp_path):
    gate = tmp_path / "gate"
    steps = [make(tmp_path, "long", until=str(gate))]

    class Preempts(Quiet):
        def changed(self, step: Step, outcome: str, record: object) -> None:
            super().changed(step, outcome, record)
            if outcome == "running" and isinstance(record, StepRecord):
                while not (tmp_path / "made" / "long" / "visits.txt").exists():
                    time.sleep(0.02)
                subprocess.run(["scancel", "--signal=USR2", record.job], check=True)
                gate.touch()

    quiet = Preempts()
    assert run(tmp_path, steps, quiet=quiet).done == ("long",)
    assert [outcome for _, outcome in quiet.told] == ["queued", "running", "done"]
    assert visits(tmp_path, "long") == 2  # the second turn found what the first had left
    log = (tmp_path / "steps" / "long" / "log.txt").read_text(encoding="utf-8")
    assert log.count("begins") == 2


@pytest.mark.skipif(REAL, reason="a job that SLURM itself ends tells of it")
def test_a_job_that_vanishes_has_failed_and_says_so(tmp_path):
    steps = [make(tmp_path, "long", until="/nowhere/at/all")]

    class Kills(Quiet):
        def changed(self, step: Step, outcome: str, record: object) -> None:
            if outcome == "running" and isinstance(record, StepRecord):
                subprocess.run(["scancel", "--signal=KILL", record.job], check=True)

    assert run(tmp_path, steps, quiet=Kills()).failed == ("long",)
    record = record_of(tmp_path, "long")
    assert record.exit_status is None
    assert f"SLURM job {record.job} is gone" in record.log_tail[-1]


def test_what_sbatch_says_against_a_job_is_told_in_a_line(tmp_path):
    with pytest.raises(UserError, match=r"executor: sbatch: .*invalid partition"):
        run(tmp_path, [make(tmp_path, "data")], partition="closed")


def test_a_run_is_claimed_by_one_alone(tmp_path):
    assert claims.claim(tmp_path, "token", "7_1")
    assert claims.claim(tmp_path, "token", "7_1")  # queued again
    assert not claims.claim(tmp_path, "token", "8")
    assert not claims.take_away(tmp_path, "token")
    claims.write_end(tmp_path, "token", Ended(name="long", status=0, seconds=2.0))
    assert claims.read_end(tmp_path, "token").seconds == 2
    assert claims.take_away(tmp_path, "token")  # it has ended
    assert claims.take_away(tmp_path, "other")
    assert not claims.claim(tmp_path, "other", "9")
    assert claims.claimed_by(tmp_path, "other") is None


def test_what_a_job_took_is_known_when_it_is_queued_again_or_killed(tmp_path, monkeypatch):
    step = make(tmp_path, "long")
    run_of = Job(step=step, resources=Resources(), words=(), directory=tmp_path, append=False, threads=1, token="token")
    claims.write_seconds(tmp_path, "token", 1000.0)  # by a former allocation
    noted = job._noting(run_of)()
    assert 1000 < noted < 1100
    assert claims.read_seconds(tmp_path, "token") == noted

    executor = slurm.Slurm(Site(output=tmp_path, jobs=1, lock=0, resources={}), SlurmConfig())
    monkeypatch.setattr(executor, "_obituary", lambda _: "gone")
    killed = slurm._Queued(run_of, "7", began=time.time() - 5, missed=1)
    assert executor._event(killed, set()) == Ended(name="long", status=None, seconds=noted, problem="gone")
    claims.forget(tmp_path, "token")
    assert 5 <= killed.seconds() < 100
    assert not list(tmp_path.glob(".token*"))


def test_two_machines_whose_processes_have_one_number_do_not_both_claim_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    link, other = os.link, []

    def link_late(partial: Path, path: Path) -> None:
        if not other:
            other.append(False)
            other[0] = claims.claim(tmp_path, "token", "8")  # the other machine's begins and ends meanwhile
        link(partial, path)

    monkeypatch.setattr(os, "link", link_late)
    assert not claims.claim(tmp_path, "token", "7")
    assert other == [True]
    assert claims.claimed_by(tmp_path, "token")[0] == "8"
    assert not list(tmp_path.glob("*.partial"))


def test_what_a_step_asks_for_is_what_sbatch_is_told(tmp_path):
    config = SlurmConfig(partition="gpu", account="vision", setup=("module load cuda",), options={"nice": 100})
    site = Site(output=tmp_path, jobs=1, lock=0, resources={})
    asked = slurm.Slurm(site, config).parameters(
        Resources(processes=8, nodes=2, gpus=8, cpus=12, memory_gb=500, hours=6), "study"
    )
    import submitit

    executor = submitit.SlurmExecutor(folder=tmp_path)
    executor.update_parameters(**asked)
    text = executor._make_submission_file_text("run", "1")
    told = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    wanted = {"nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=96", "mem=512000MB", "time=360",
              "partition=gpu", "account=vision", "nice=100", "signal=USR2@300"}  # fmt: skip
    assert wanted <= told
    assert "module load cuda" in text
    assert "--cpus-per-task=96" in text.partition("srun")[2]
