"""The runner, with real processes that stand in for the suite's programs."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.study import runner
from benchmarks.study.executors import children
from benchmarks.study.lock import locked
from benchmarks.study.runner import run_steps
from benchmarks.study.state import StepKey, StepRecord, read_record, write_record
from benchmarks.study.steps import Step, in_order
from benchmarks.study.trash import move_outputs, replacements
from clips.errors import UserError

FAKE = Path(__file__).with_name("fake_step.py")


class Quiet:
    """Notes what the runner tells."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.failures: list[str] = []

    def changed(self, step: Step, outcome: str, record: StepRecord | None) -> None:
        self.told.append((step.name, outcome))
        if outcome == "failed" and record is not None:
            self.failures += record.log_tail[-1:]

    def tick(self) -> None:
        """Nothing to draw."""


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    monkeypatch.setattr(runner, "executable", lambda words: [sys.executable, str(FAKE), *words])


def make(root: Path, name: str, *parents: str, **config: object) -> Step:
    output = root / "made" / name
    settings = {"output": str(output), "count": str(root / "runs.txt"), **config}
    return Step(
        name=name, kind="data", command=("clips", "scenes"), config=settings, outputs=(output,), parents=parents
    )


def keys_of(steps: list[Step], mark: str = "") -> dict[str, StepKey]:
    return {step.name: StepKey(key=f"{step.name}{mark}", outputs={}) for step in steps}


def run(root: Path, steps: list[Step], *, mark: str = "", jobs: int = 2, keys: dict[str, StepKey] | None = None):  # type: ignore[no-untyped-def]
    observer = Quiet()
    with locked(root) as lock:
        return run_steps(
            steps, lambda: keys or keys_of(steps, mark), root, lock=lock, jobs=jobs, observer=observer
        ), observer


def visits(root: Path, name: str) -> int:
    return (root / "made" / name / "visits.txt").read_text(encoding="utf-8").count("visit")


def test_parents_come_first_and_circles_are_refused(tmp_path):
    steps = [make(tmp_path, "child", "parent"), make(tmp_path, "parent")]
    assert [step.name for step in in_order(steps)] == ["parent", "child"]
    with pytest.raises(ValueError, match="wait for each other"):
        in_order([make(tmp_path, "a", "b"), make(tmp_path, "b", "a")])
    with pytest.raises(ValueError, match="nothing makes"):
        in_order([make(tmp_path, "a", "ghost")])


def test_everything_runs_once_and_then_is_skipped_in_no_time(tmp_path):
    steps = [make(tmp_path, "data"), make(tmp_path, "one", "data"), make(tmp_path, "two", "data")]
    first, observer = run(tmp_path, steps)
    assert first.complete
    assert observer.told.index(("data", "done")) < observer.told.index(("one", "running"))
    record = read_record(tmp_path, "one")
    assert record is not None
    assert record.outcome == "done"
    assert record.command == f"clips scenes --config {tmp_path}/steps/one/config.yaml"
    assert record.peak_memory_mb
    began = time.monotonic()
    second, _ = run(tmp_path, steps)
    assert time.monotonic() - began < 0.2
    assert second.present == ("data", "one", "two")
    assert len((tmp_path / "runs.txt").read_text(encoding="utf-8").splitlines()) == 3


def test_another_key_moves_the_old_output_away_before_the_step_runs(tmp_path):
    steps = [make(tmp_path, "data")]
    run(tmp_path, steps)
    hidden = tmp_path / "made" / ".data.work"
    hidden.mkdir()
    stage = tmp_path / "made" / "data.stages" / "1"
    stage.mkdir(parents=True)
    run(tmp_path, steps, mark=" changed")
    assert visits(tmp_path, "data") == 1
    assert not hidden.exists()
    assert not stage.exists()  # else a training in stages would go on from the old one, or refuse it
    [trashed] = (tmp_path / "trash").iterdir()
    assert {path.relative_to(trashed).as_posix() for path in trashed.glob("*/*")} == {
        "made/data",
        "made/.data.work",
        "made/data.stages",
        "steps/data",
    }


def test_clearing_a_step_leaves_the_unfinished_work_of_one_whose_name_goes_on_from_it(tmp_path):
    step = make(tmp_path, "a")
    names = [".a.work", ".a.partial", ".a.replaced", f".a.{'0' * 32}.partial"]
    others = [".a.b.work", ".a.b.partial", f".a.b.{'0' * 32}.partial", ".a.work.work"]
    for name in (*names, *others):
        (tmp_path / "made" / name).mkdir(parents=True)
    move_outputs(tmp_path, step, StepKey(key="another", outputs={}), None)
    assert {path.name for path in (tmp_path / "made").iterdir()} == set(others)


def test_an_output_that_was_deleted_is_made_again(tmp_path):
    steps = [make(tmp_path, "data")]
    run(tmp_path, steps)
    for path in (tmp_path / "made" / "data").iterdir():
        path.unlink()
    (tmp_path / "made" / "data").rmdir()
    assert run(tmp_path, steps)[0].done == ("data",)


def test_a_record_with_fields_of_another_version_is_read(tmp_path):
    """Taken for none, its step was begun anew."""
    run(tmp_path, [make(tmp_path, "data")])
    record, file = read_record(tmp_path, "data"), tmp_path / "steps" / "data" / "step.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), "another": {"field": 1}}), encoding="utf-8"
    )
    assert read_record(tmp_path, "data") == record
    assert run(tmp_path, [make(tmp_path, "data")])[0].done == ()


@pytest.mark.parametrize("outcome", ["running", "interrupted", "failed"])
def test_what_a_killed_run_took_is_counted_until_its_last_note(tmp_path, monkeypatch, outcome):
    monkeypatch.setattr(runner, "NOTE_SECONDS", 0.05)
    steps, noted = [make(tmp_path, "data", sleep=0.4)], []
    monkeypatch.setattr(Quiet, "tick", lambda _: noted.append(read_record(tmp_path, "data").seconds))
    run(tmp_path, steps)
    record = read_record(tmp_path, "data")
    assert 0 < noted[-1] <= record.seconds < 100
    assert noted[0] < noted[-1]
    killed = dataclasses.replace(record, outcome=outcome, seconds=100.0)
    write_record(tmp_path, killed)
    run(tmp_path, steps)
    record = read_record(tmp_path, "data")
    assert record.outcome == "done"
    assert 100 < record.seconds < 200
    assert noted[-1] > 100
    write_record(tmp_path, killed)
    run(tmp_path, steps, mark=" changed")
    assert read_record(tmp_path, "data").seconds < 100  # nothing of it is in what was made


def test_a_failed_step_stops_its_branch_only(tmp_path):
    steps = [
        make(tmp_path, "data"),
        make(tmp_path, "bad", "data", fail="the weights are not of this architecture"),
        make(tmp_path, "after-bad", "bad"),
        make(tmp_path, "after-that", "after-bad"),
        make(tmp_path, "good", "data", sleep=0.2),
        make(tmp_path, "after-good", "good"),
    ]
    summary, _ = run(tmp_path, steps)
    assert summary.failed == ("bad",)
    assert set(summary.blocked) == {"after-bad", "after-that"}
    assert summary.done == ("data", "good", "after-good")
    record = read_record(tmp_path, "bad")
    assert record is not None
    assert (record.outcome, record.exit_status) == ("failed", 3)
    assert record.log_tail[-1] == "the weights are not of this architecture"
    assert run(tmp_path, steps)[0].failed == ("bad",)  # it is tried again
    assert visits(tmp_path, "bad") == 2  # and finds what it left


def test_a_command_that_ends_well_without_its_output_has_failed(tmp_path):
    step = dataclasses.replace(make(tmp_path, "data"), outputs=(tmp_path / "made" / "data", tmp_path / "elsewhere"))
    assert run(tmp_path, [step])[0].failed == ("data",)
    record = read_record(tmp_path, "data")
    assert record is not None
    assert "elsewhere: not written" in record.log_tail[-1]


def evaluation(root: Path, benchmarks: dict[str, dict[str, str]]) -> Step:
    entries = [{"name": name, **settings} for name, settings in benchmarks.items()]
    config = {"row": "clip", "results": str(root / "results"), "benchmarks": entries, "count": str(root / "runs.txt")}
    outputs = tuple(root / "results" / "clip" / f"{name}.json" for name in benchmarks)
    return Step(name="evaluate", kind="evaluation", command=("clips-bench", "run"), config=config, outputs=outputs)


def test_a_benchmark_that_fails_fails_the_step_with_its_reason(tmp_path):
    step = evaluation(tmp_path, {"pope": {}, "gqa": {"split": "broken parquet"}})
    assert run(tmp_path, [step])[0].failed == ("evaluate",)
    record = read_record(tmp_path, "evaluate")
    assert record is not None
    assert record.exit_status == 2
    assert record.log_tail[-1] == "clips-bench: failed: gqa (broken parquet)"


def test_a_result_that_was_replaced_by_a_failure_is_made_again(tmp_path):
    step = evaluation(tmp_path, {"pope": {}})
    run(tmp_path, [step])
    step.outputs[0].write_text(json.dumps({"status": "failed", "benchmark": "pope", "reason": "x"}), encoding="utf-8")
    assert run(tmp_path, [step])[0].done == ("evaluate",)


def test_a_new_column_leaves_the_other_results_in_place(tmp_path):
    step = evaluation(tmp_path, {"pope": {}})
    pope, gqa = step.outputs[0], tmp_path / "results" / "clip" / "gqa.json"
    run(tmp_path, [step], keys={"evaluate": StepKey(key="1", outputs={pope.name: "pope 1"})})
    pope.write_text(json.dumps({"status": "ok", "kept": True}), encoding="utf-8")

    more = dataclasses.replace(evaluation(tmp_path, {"gqa": {}}), outputs=(pope, gqa))
    run(tmp_path, [more], keys={"evaluate": StepKey(key="2", outputs={pope.name: "pope 1", gqa.name: "gqa 1"})})
    assert "kept" in pope.read_text(encoding="utf-8")

    run(tmp_path, [more], keys={"evaluate": StepKey(key="3", outputs={pope.name: "pope 2", gqa.name: "gqa 1"})})
    assert not pope.exists()
    assert gqa.exists()


def test_independent_steps_run_side_by_side(tmp_path):
    gate = tmp_path / "gate"
    opens = make(tmp_path, "opens", sleep=0.1)
    opens.config["output"] = str(gate)  # type: ignore[index]
    opens = dataclasses.replace(opens, outputs=(gate,))
    waits = make(tmp_path, "waits", until=str(gate))
    assert run(tmp_path, [waits, opens], jobs=2)[0].complete  # one at a time would never end


@pytest.mark.parametrize(("jobs", "asked", "threads"), [(2, None, "4"), (16, None, "1"), (2, 3, "3")])
def test_a_step_gets_an_equal_share_of_the_cores_or_what_the_study_says(tmp_path, monkeypatch, jobs, asked, threads):
    monkeypatch.setattr(children, "cores", lambda: 8)
    script = "import os, pathlib; pathlib.Path('{}').write_text(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(runner, "executable", lambda words: [sys.executable, "-c", script.format(tmp_path / "made")])
    step = dataclasses.replace(make(tmp_path, "data"), outputs=(tmp_path / "made",))
    with locked(tmp_path) as lock:
        run_steps([step], lambda: keys_of([step]), tmp_path, lock=lock, jobs=jobs, observer=Quiet(), threads=asked)
    assert (tmp_path / "made").read_text(encoding="utf-8") == threads


def test_code_that_changes_meanwhile_is_not_taken_for_the_code_of_the_start(tmp_path):
    steps = [make(tmp_path, "data"), make(tmp_path, "after", "data")]
    asked: list[int] = []

    def keys() -> dict[str, StepKey]:
        asked.append(1)
        return keys_of(steps, mark="" if len(asked) < 3 else " newer")

    with locked(tmp_path) as lock:
        run_steps(steps, keys, tmp_path, lock=lock, jobs=1, observer=Quiet())
    records = [read_record(tmp_path, name) for name in ("data", "after")]
    assert [record.key for record in records if record] == ["data", "after newer"]


@pytest.mark.parametrize(("limit", "again"), [(1.0, False), (math.inf, True)])
def test_costly_work_that_changes_meanwhile_is_not_begun_anew(tmp_path, limit, again):
    """The check at the start saw nothing to make again; the code of a training changed while its parent ran."""
    steps = [make(tmp_path, name, *parents) for name, *parents in (["data"], ["train", "data"], ["eval", "train"])]
    steps.append(make(tmp_path, "zeal", "data"))  # what does not depend on it
    run(tmp_path, steps[:2])
    for name, seconds in (("data", 1.0), ("train", 50 * 3600.0)):
        record = read_record(tmp_path, name)
        assert record is not None
        write_record(tmp_path, dataclasses.replace(record, outcome="interrupted", seconds=seconds))
    work = tmp_path / "made" / ".train.work"
    work.mkdir()
    before = read_record(tmp_path, "train")
    assert replacements(steps, keys_of(steps), tmp_path) == []
    asked: list[int] = []

    def keys() -> dict[str, StepKey]:
        asked.append(1)
        return keys_of(steps, mark="" if len(asked) < 3 else " newer")

    observer = Quiet()
    with locked(tmp_path) as lock:
        summary = run_steps(
            steps, keys, tmp_path, lock=lock, jobs=1, observer=observer, confirm_hours=limit, study="s.yaml"
        )
    assert work.is_dir() is not again
    assert (tmp_path / "trash").is_dir() is again
    if again:
        assert summary.done == ("data", "train", "zeal", "eval")
        return
    assert (summary.done, summary.failed, summary.blocked) == (("data", "zeal"), ("train",), ("eval",))
    assert read_record(tmp_path, "train") == before  # when the code is as before, it goes on
    (said,) = observer.failures
    assert said.startswith("would make again what took more than 1 h 00 min: train (took 50 h 00 min; changed)")
    assert "; --yes does it" in said
    assert "study accept s.yaml" in said


def test_two_runners_on_one_directory_are_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match=f"another runner .process {os.getpid()}."):
        run(tmp_path, [make(tmp_path, "data")])
    assert run(tmp_path, [make(tmp_path, "data")])[0].complete


RUNNER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it otherwise
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
import test_study_runner as t
from benchmarks.study import runner
from benchmarks.study.executors import children
from benchmarks.study.lock import locked
runner.executable = lambda words: [sys.executable, str(t.FAKE), *words]
steps = [t.make(Path({place!r}), "first"), t.make(Path({place!r}), "long", "first", until="/nowhere/at/all")]
t.run(Path({place!r}), steps)
"""


def start_runner(place: Path) -> subprocess.Popen[bytes]:
    """A runner in a process of its own, its second step at work."""
    tests = Path(__file__).parent
    code = RUNNER.format(tests=str(tests), root=str(tests.parent), place=str(place))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    started = place / "made" / "long" / "visits.txt"
    deadline = time.monotonic() + 30
    while not started.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def wait_until_free(place: Path) -> None:
    """Until no child of a killed runner holds the directory any more."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with locked(place):
                return
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "outcome"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "interrupted"), (signal.SIGKILL, "running")],
)
def test_an_interrupted_runner_leaves_no_child_and_goes_on_where_it_was(tmp_path, number, outcome):
    process = start_runner(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=30)
    wait_until_free(tmp_path)
    record = read_record(tmp_path, "long")
    assert record is not None
    assert record.outcome == outcome
    steps = [make(tmp_path, "first"), make(tmp_path, "long", "first")]
    summary, _ = run(tmp_path, steps)
    assert (summary.present, summary.done) == (("first",), ("long",))
    assert visits(tmp_path, "long") == 2  # the second visit found the first one's work
