"""Jobs of a study and what they leave, the programs replaced by a small one that is a real process.

``test_study_engine.py`` has Snakemake start them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from study_engine import FAKE, in_process, make, run, visits

from benchmarks.study import run as runner
from benchmarks.study.commands import StudyConfig, resolve_study
from benchmarks.study.launch import Resources
from benchmarks.study.locks import acquire
from benchmarks.study.state import Step, StepKey, is_at_work, read_record, write_record
from benchmarks.study.steps import in_order
from benchmarks.study.trash import paths_of_output
from clips.errors import UserError


@pytest.fixture(autouse=True)
def _engine(monkeypatch):
    monkeypatch.setattr(runner, "run_snakemake", in_process)


def test_parents_come_first_model_by_model_and_cycles_are_rejected(tmp_path):
    parents = {
        "llava-1": ["encoder-1", "llm"],
        "llava-2": ["encoder-2", "llm"],
        "encoder-1": [],
        "encoder-2": [],
        "llm": [],
    }
    steps = {name: make(tmp_path, name, *of) for name, of in parents.items()}
    assert [step.name for step in in_order(steps)] == ["encoder-1", "llm", "llava-1", "encoder-2", "llava-2"]
    with pytest.raises(UserError, match="data: a, b: expected none that needs its own output"):
        in_order({"a": make(tmp_path, "a", "b"), "b": make(tmp_path, "b", "a")})


def test_everything_runs_once_and_then_is_skipped_in_no_time(tmp_path):
    steps = [make(tmp_path, "data"), make(tmp_path, "one", "data"), make(tmp_path, "two", "data")]
    assert run(tmp_path, steps).complete
    record = read_record(tmp_path, "one")
    assert record is not None
    assert record.status == "done"
    assert record.command == f"python {FAKE} --config {tmp_path}/steps/one/config.yaml"
    assert record.peak_memory_mb
    began = time.monotonic()
    assert run(tmp_path, steps).present == ("data", "one", "two")
    assert time.monotonic() - began < 1
    assert len((tmp_path / "runs.txt").read_text(encoding="utf-8").splitlines()) == 3
    shutil.rmtree(tmp_path / "made" / "one")
    assert run(tmp_path, steps).done == ("one",)


def test_clearing_a_step_leaves_the_unfinished_work_of_a_step_with_a_longer_name(tmp_path):
    names = [".a.work", ".a.partial", ".a.replaced", f".a.{'0' * 32}.partial"]
    others = [".a.b.work", ".a.b.partial", f".a.b.{'0' * 32}.partial", ".a.work.work"]
    for name in (*names, *others):
        (tmp_path / "made" / name).mkdir(parents=True)
    assert {path.name for path in paths_of_output(tmp_path / "made/a")} == set(names)


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_what_an_interrupted_job_took_is_counted_of_a_killed_one_until_its_last_line(tmp_path, status):
    steps = [make(tmp_path, "data")]
    run(tmp_path, steps)
    record = read_record(tmp_path, "data")
    assert record is not None
    before = dataclasses.replace(record, status=status, seconds=100.0, started=record.started - 1000)
    write_record(tmp_path, before)
    run(tmp_path, steps)
    again = read_record(tmp_path, "data")
    assert again is not None
    expected = 1100 if status == "running" else 100  # its log was written a thousand seconds after its start
    assert expected - 1 < again.seconds < expected + 100
    write_record(tmp_path, before)
    run(tmp_path, steps, mark=" of another key")
    other = read_record(tmp_path, "data")
    assert other is not None
    assert other.seconds < 100


def test_outputs_of_another_key_are_made_from_scratch_and_those_of_the_same_are_resumed(tmp_path):
    step = make(tmp_path, "data", fail="the disk is full")
    assert run(tmp_path, [step]).failed == ("data",)
    repaired = make(tmp_path, "data")
    assert run(tmp_path, [repaired]).done == ("data",)
    assert visits(tmp_path, "data") == 2  # the second run found what the first had begun
    run(tmp_path, [repaired], mark="another")
    assert visits(tmp_path, "data") == 1


@pytest.mark.parametrize("failure", ["", '{"benchmark": "pope", "status": "failed", "failure_reason": "no question"}'])
def test_a_result_that_is_missing_or_a_failure_is_no_output(tmp_path, failure):
    path = tmp_path / "results/pope.json"
    step = dataclasses.replace(make(tmp_path, "data"), outputs=(path,))
    if failure:
        path.parent.mkdir()
        path.write_text(failure, encoding="utf-8")
    assert step.problems() == (["pope failed: no question"] if failure else [f"{path}: not written"])
    assert run(tmp_path, [step]).failed == ("data",)
    record = read_record(tmp_path, "data")
    assert record is not None
    assert (record.status, record.log_tail[-1]) == ("failed", f"{path}: not written")  # the former one is in the trash


def test_a_new_column_leaves_the_other_results_in_place(tmp_path):
    results = tmp_path / "results"
    pope, gqa = (results / "clip" / f"{name}.json" for name in ("pope", "gqa"))

    def evaluate(name: str, key: str, keys: dict[str, str]) -> None:
        """Run the evaluation of which a benchmark is missing."""
        config = {"model_name": "clip", "output": str(results), "benchmarks": [{"name": name}]}
        outputs = tuple(results / "clip" / name for name in keys)
        step = dataclasses.replace(make(tmp_path, "evaluate"), kind="evaluation", config=config, outputs=outputs)
        run(tmp_path, [dataclasses.replace(step, key=StepKey(key=key, outputs=keys))])

    evaluate("pope", "1", {"pope.json": "pope 1"})
    pope.write_text(json.dumps({"status": "ok", "kept": True}), encoding="utf-8")
    evaluate("gqa", "2", {"pope.json": "pope 1", "gqa.json": "gqa 1"})
    assert "kept" in pope.read_text(encoding="utf-8")
    evaluate("gqa", "3", {"pope.json": "pope 2", "gqa.json": "gqa 1"})
    assert not pope.exists()
    assert gqa.exists()


@pytest.mark.parametrize(("jobs", "asked", "threads"), [(2, None, "4"), (2, 3, "3")])
def test_a_step_gets_an_equal_share_of_the_cores_or_what_the_study_says(tmp_path, monkeypatch, jobs, asked, threads):
    monkeypatch.setattr(runner, "usable_cores", lambda: 8)
    made, script = tmp_path / "made", tmp_path / "threads.py"
    script.write_text(f"import os, pathlib; pathlib.Path('{made}').write_text(os.environ['OMP_NUM_THREADS'])", "utf-8")
    step = dataclasses.replace(make(tmp_path, "data"), command=("python", str(script)))
    run(tmp_path, [step], jobs=jobs, threads=asked)
    assert made.read_text(encoding="utf-8") == threads


def plan_of(root: Path, step: Step, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan of a run of one step, its job not started."""
    with monkeypatch.context() as patched:
        patched.setattr(runner, "run_snakemake", lambda output, flags, show: (output / runner.LOG).touch() or 1)
        with pytest.raises(UserError, match="Snakemake could not run the steps"):
            run(root, [step])
    return root / runner.PLAN


def test_a_second_job_of_a_step_waits_for_the_first_and_finds_it_done(tmp_path, monkeypatch):
    path = plan_of(tmp_path, make(tmp_path, "data"), monkeypatch)
    lock = acquire(tmp_path / "steps" / "data" / ".lock")
    assert lock is not None
    assert is_at_work(tmp_path / "steps/data")
    assert not runner.run_step(path, "data", stopped=[15])  # it waits for the lock until it is asked to end
    assert read_record(tmp_path, "data") is None
    os.close(lock)
    assert runner.run_step(path, "data")
    assert runner.run_step(path, "data")
    assert visits(tmp_path, "data") == 1


def test_what_failed_is_not_tried_again_by_the_engine_but_by_the_next_run(tmp_path, monkeypatch):
    step = make(tmp_path, "data", fail="no weights")
    path = plan_of(tmp_path, step, monkeypatch)
    assert not runner.run_step(path, "data")
    assert not runner.run_step(path, "data")
    assert visits(tmp_path, "data") == 1
    assert run(tmp_path, [step]).failed == ("data",)
    assert visits(tmp_path, "data") == 2


def test_what_gates_the_most_work_starts_first(tmp_path):
    steps = [make(tmp_path, "short"), make(tmp_path, "long"), make(tmp_path, "behind", "long")]
    run(tmp_path, steps)
    planned = json.loads((tmp_path / runner.PLAN).read_text(encoding="utf-8"))["jobs"]
    assert sorted(planned, key=lambda name: -planned[name]["priority"]) == ["long", "short", "behind"]
    write_record(tmp_path, dataclasses.replace(read_record(tmp_path, "short"), seconds=900.0))  # type: ignore[type-var]
    assert runner.chain_seconds(steps)["short"] == 900


def test_the_demo_starts_with_the_encoder_that_takes_longest():
    """With two jobs, CLIPS after the others would end last."""
    steps = resolve_study(StudyConfig(study=str(FAKE.parents[2] / "scripts/studies/demo.yaml"))).steps
    chains = runner.chain_seconds([dataclasses.replace(step, study=Path("nowhere")) for step in steps])
    encoders = [name for name in sorted(chains, key=lambda name: -chains[name]) if name.startswith("encoder-")]
    assert encoders == ["encoder-clips-s0", "encoder-clip-s0", "encoder-untrained-s0"]


def test_a_missing_gpu_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "visible_gpus", list)
    run(tmp_path, [dataclasses.replace(make(tmp_path, "data"), resources=Resources(gpus=1))])
    assert "no GPU is visible: the steps run on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_step_under_nohup_outlives_its_terminal(handler, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "run_step", lambda *_: seen.append(signal.getsignal(signal.SIGHUP)) or True)
    (tmp_path / "plan.json").write_text(json.dumps({"folder": str(tmp_path)}))
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, handler)
        assert runner.main(tmp_path / "plan.json", "step") == 0
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    assert (seen == [signal.SIG_IGN]) is (handler is signal.SIG_IGN)
