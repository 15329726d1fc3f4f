"""Studies under Snakemake: order, failures, GPUs, and runners that are interrupted or killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from families import quick_of
from study_engine import FAKE, make, run, start_runner, visits, wait_until_free

from benchmarks.study import run as runner
from benchmarks.study.launch import Resources
from benchmarks.study.state import read_record
from clips.errors import UserError

pytest.importorskip("snakemake", reason="the engine of studies is not installed")

LONG = 'run(place, [make(place, "first"), make(place, "long", "first", until="/nowhere/at/all")])'
"""A runner whose second step never ends."""


def test_steps_run_in_order_side_by_side_and_a_failed_one_stops_its_branch_only(tmp_path):
    gate = tmp_path / "made" / "opens"
    steps = [
        make(tmp_path, "data"),
        make(tmp_path, "bad", "data", fail="the weights are not of this architecture"),
        make(tmp_path, "after-bad", "bad"),
        make(tmp_path, "after-that", "after-bad"),
        make(tmp_path, "waits", "data", until=str(gate)),  # one at a time would never end
        make(tmp_path, "opens", "data", sleep=0.1),
        make(tmp_path, "last", "waits", "opens"),
    ]
    wide = Resources(cpus=8)  # threads, more than the machine has; no fewer steps
    summary = run(tmp_path, [dataclasses.replace(step, resources=wide) for step in steps], jobs=2)
    assert (summary.failed, summary.blocked) == (("bad",), ("after-bad", "after-that"))
    assert summary.done == ("data", "waits", "opens", "last")
    record = read_record(tmp_path, "bad")
    assert record is not None
    assert (record.exit_status, record.log_tail[-1]) == (3, "the weights are not of this architecture")
    assert (tmp_path / "runs.txt").read_text(encoding="utf-8").splitlines()[0].endswith("data")
    assert not list(tmp_path.glob(".snakemake/locks/*"))


SEES = """
import glob, os
held = [path for path in map(os.path.realpath, glob.glob("/proc/self/fd/*")) if "clips-gpus-" in path]
print(os.environ["CUDA_VISIBLE_DEVICES"] or "none", len(held), flush=True)
"""
"""What a step sees, and how many locks of GPUs it holds: also if its job is killed, until it has ended itself."""


@pytest.mark.slow
def test_steps_see_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7")
    script = tmp_path / "sees.py"
    script.write_text(f"{SEES}exec(open({str(FAKE)!r}).read())\n", encoding="utf-8")
    names = {"one": 1, "two": 1, "wide": 2, "none": 0}
    steps = []
    for name, count in names.items():
        step = make(tmp_path, name, sleep=0.3)
        given = Resources(gpus=count)
        steps.append(dataclasses.replace(step, command=("python", str(script)), resources=given))
    assert run(tmp_path, steps, jobs=1).complete
    saw = {name: (tmp_path / "steps" / name / "log.txt").read_text(encoding="utf-8").split("\n")[0] for name in names}
    assert saw["wide"] == "6,7 2"
    assert saw["none"] == "none 0"
    assert {saw["one"], saw["two"]} <= {"6 1", "7 1"}


def test_an_engine_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(UserError, match=r"\.snakemake\.log: Snakemake could not run the steps: "):
        run(tmp_path, [make(tmp_path, "data")])


@pytest.mark.slow
def test_the_profile_of_kubernetes_is_one_that_snakemake_reads(tmp_path, monkeypatch):
    pytest.importorskip("snakemake_executor_plugin_kubernetes", reason="the extra 'kubernetes' is not installed")
    profile = Path(__file__).parents[2] / "scripts" / "kubernetes" / "profile"
    run_snakemake = runner.run_snakemake

    def dry(output: Path, flags: list[str], show: object) -> int:
        return run_snakemake(output, [*flags, "--dry-run", "--cores", "8"], lambda: None)

    monkeypatch.setattr(runner, "run_snakemake", dry)
    step = dataclasses.replace(make(tmp_path, "data"), resources=Resources(gpus=2, cpus=4, memory_gb=1))
    with pytest.raises(UserError, match="dry-run"):
        run(tmp_path, [step], profile=str(profile))
    said = (tmp_path / ".snakemake.log").read_text(encoding="utf-8")
    assert ".markers/steps/data/.done (send to storage)" in said
    assert "threads: 4" in said
    assert "gpu=2, gpu_manufacturer=nvidia, mem_mb=1024" in said


def processes_of(place: Path) -> list[list[str]]:
    """The command lines that name a directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        words = process.info["cmdline"] or []
        if process.info["pid"] != os.getpid() and any(str(place) in word for word in words):
            found.append(words)
    return found


@pytest.mark.parametrize("name", quick_of(["SIGINT", "SIGTERM", "SIGKILL"], "SIGKILL"))
def test_an_interrupted_runner_leaves_no_process_and_resumes(tmp_path, name):
    process = start_runner(tmp_path, LONG, tmp_path / "made/long/visits.txt")
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=60)
    wait_until_free(tmp_path)
    record = read_record(tmp_path, "long")
    assert record is not None
    assert record.status == "interrupted"
    assert record.seconds > 0
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []
    summary = run(tmp_path, [make(tmp_path, "first"), make(tmp_path, "long", "first")])
    assert (summary.present, summary.done) == (("first",), ("long",))
    assert visits(tmp_path, "long") == 2  # the second visit found the first one's work


@pytest.mark.slow
def test_a_killed_job_fails_its_command_ends_and_the_next_run_resumes(tmp_path):
    process = start_runner(tmp_path, LONG, tmp_path / "made/long/visits.txt")
    job = next(each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[-1:] == ["long"])
    job.kill()
    process.communicate(timeout=60)
    wait_until_free(tmp_path)
    record = read_record(tmp_path, "long")
    assert record is not None
    assert (record.status, record.log_tail[-1]) == ("failed", "its process was killed")
    assert run(tmp_path, [make(tmp_path, "first"), make(tmp_path, "long", "first")]).done == ("long",)
    assert visits(tmp_path, "long") == 2
