"""``study status``: what the files of a running study say, drawn in a real terminal's screen, without touching any."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from report_study import make_study
from rich.console import Console
from study_engine import make
from study_material import SMALL

from benchmarks.study.commands import StatusConfig, StudyConfig, resolve_study, study_status
from benchmarks.study.locks import acquire
from benchmarks.study.schema import parse_study
from benchmarks.study.state import LOG_FILE, StepRecord, read_record, step_directory, write_record
from benchmarks.study.status import StepStatus, follow_progress, progress_view, read_statuses, time_left
from benchmarks.study.steps import StudyPlan

STEP = "llava-net-tiny-s0"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A study of which one LLaVA is being trained, by this very process as it were."""
    stages = {name: {"max_steps": steps, "global_batch_size": 8} for name, steps in (("align", 50), ("instruct", 150))}
    monkeypatch.setitem(SMALL["defaults"], "llava", stages)
    found = make_study(tmp_path, monkeypatch)
    (found / ".plan.json").write_text(json.dumps({"began": time.time() - 100}))
    change(found, STEP, status="running", started=time.time() - 70, log_tail=(), seconds=0.0)
    (step_directory(found, STEP) / LOG_FILE).write_text("align: step 30/50  loss 3.1\nevil \x1b[31m\x07 line\n")
    lock = acquire(step_directory(found, STEP) / ".lock")
    assert lock is not None
    yield found
    os.close(lock)


@pytest.fixture
def end_runner(study: Path) -> Iterator[Callable[[], None]]:
    """Ends the runner that holds the study's lock until then."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, acquire(study / ".lock"))
        yield stack.close


pytestmark = pytest.mark.usefixtures("end_runner")


def change(study: Path, name: str, **fields: object) -> None:
    """Change a step's record."""
    write_record(study, dataclasses.replace(read_record(study, name), **fields))  # type: ignore[type-var]


def planned(study: Path) -> StudyPlan:
    return resolve_study(StudyConfig(study=str(study.parent / "study.yaml")))


def seen(study: Path, name: str = STEP) -> StepStatus:
    return next(status for status in read_statuses(planned(study)) if status.name == name)


def test_a_running_step_tells_its_numbers_and_nothing_is_touched(study: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file()}
    status = seen(study)
    assert (status.state, status.progress) == ("running", "30/50 60 %")
    assert 69 < status.seconds < 90
    assert status.left == pytest.approx(170 / 30 * status.seconds)  # the second stage included, by its own pace
    assert seen(study, "encoder-clip-s0").state == "done"
    assert seen(study, "evaluate-llava-net-tiny-s0").state == "waiting"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    change(study, STEP, seconds=1000.0)
    assert 1069 < seen(study).seconds < 1090  # of all its runs


def test_a_step_that_failed_in_this_run_is_failed_and_one_that_failed_before_waits(study: Path) -> None:
    change(study, "encoder-clip-s0", status="failed", log_tail=("boom",), started=time.time())
    assert (seen(study, "encoder-clip-s0").state, seen(study, "encoder-clip-s0").last) == ("failed", "boom")
    (step_directory(study, "evaluate-encoder-clip-s0") / "step.json").unlink()
    assert seen(study, "evaluate-encoder-clip-s0").state == "cannot run"
    change(study, "encoder-clip-s0", started=time.time() - 1000)
    assert seen(study, "encoder-clip-s0").state == "waiting"


def test_the_screen_has_it_all_and_nothing_raw(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text_of(width: int) -> str:
        console, plan = Console(file=io.StringIO(), width=width, highlight=False), planned(study)
        console.print(progress_view(plan, read_statuses(plan), width))
        return console.file.getvalue()  # type: ignore[attr-defined]

    text, narrow = text_of(160), text_of(60)
    line = next(line for line in text.splitlines() if line.startswith(STEP))
    assert "running" in line
    assert "30/50 60 %" in line
    assert f"{STEP}: evil \N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER} line" in text
    assert "8 of 13 done" in text
    assert not {"\x1b", "\x07"} & set(text)
    assert "memory" not in narrow.splitlines()[0]
    assert STEP in narrow
    study_status(StatusConfig(study=str(study.parent / "study.yaml"), follow=True))  # once, without a terminal
    assert capsys.readouterr().out.count(f"\n{STEP} ") == 1


def test_a_terminal_is_redrawn_until_nothing_runs(study: Path, end_runner: Callable[[], None]) -> None:
    screen = pyte.Screen(160, 40)
    stream, out = pyte.Stream(screen), io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, height=40, highlight=False, legacy_windows=False)
    screens: list[str] = []

    def drawn() -> str:
        """What a terminal shows now."""
        stream.feed(out.getvalue().replace("\n", "\r\n"))
        out.truncate(0)
        out.seek(0)
        return "\n".join(screen.display)

    def wait() -> None:
        screens.append(drawn())
        if len(screens) == 1:
            (step_directory(study, STEP) / LOG_FILE).write_text("instruct: step 1/100  loss 1.25\n")
        else:
            end_runner()
            change(study, STEP, status="failed", log_tail=("no weights",))

    follow_progress(planned(study), console, wait=wait)
    assert len(screens) == 2
    assert "30/50 60 %" in screens[0]
    assert "1/100 1 %" in screens[1]
    assert "30/50" not in screens[1]
    assert screens[1].count("\n" + STEP + " ") == 1  # drawn over, not below
    assert f"{STEP}: no weights" in (last := drawn())
    assert "nothing is running" in last


def test_what_a_killed_runner_left_is_not_called_running(study: Path, end_runner: Callable[[], None]) -> None:
    change(study, "data-llm", status="running")
    end_runner()
    assert seen(study, "data-llm").state == "stopped"
    assert seen(study).state == "running"  # its job outlives the runner: it holds its lock


def test_time_left_is_the_longest_chain_or_all_work_over_the_concurrent_steps(tmp_path: Path) -> None:
    parents: dict[str, Any] = {"one": (), "two": (), "wide": (), "child": ("one",), "done": ()}
    steps = [make(tmp_path, name, *of) for name, of in parents.items()]
    statuses = [StepStatus(name=name, state="waiting", left=10.0) for name in parents if name != "done"]
    found = {jobs: time_left(steps, jobs, statuses) for jobs in (1, 2, 8)}
    assert found == {1: "about 40 s left", 2: "about 20 s left", 8: "about 20 s left"}
    unknown = [dataclasses.replace(status, left=None) for status in statuses]
    assert time_left(steps, 1, [unknown[0], *statuses[1:]]) == "about 30 s left for 3 steps, 1 more not timed yet"
    assert time_left(steps, 1, unknown) == "4 steps not timed yet"
    assert time_left(steps, 1, []) == time_left([], 1, []) == ""


def test_steps_that_have_run_tell_the_time_of_longer_ones_and_of_the_same_benchmarks(tmp_path: Path) -> None:
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "short": ("encoder", {"recipe": {"name": "clip"}, "max_steps": 10}),
        "long": ("encoder", {"recipe": {"name": "clip"}, "max_steps": 30, "global_batch_size": 256}),
        "captioner": ("encoder", {"recipe": {"name": "clips"}, "max_steps": 10}),
        "untrained": ("encoder", {"max_steps": 0}),
        "by-epochs": ("encoder", {"num_epochs": 2}),
        "llava": ("llava", {"align": {"max_steps": 10}, "instruct": {"max_steps": 30}}),
        "wrong": ("llava", {"stages": []}),
        "evaluated": ("evaluation", {}),
        "alike": ("evaluation", {}),
        "other": ("evaluation", {}),
    }
    steps = []
    for name, (kind, config) in settings.items():
        outputs = [tmp_path / name / f"{each}.json" for each in (["pope"] if name == "other" else ["pope", "mme"])]
        fields: dict[str, Any] = {"kind": kind, "command": ("do", kind), "config": config}
        fields |= {"outputs": tuple(outputs)} if kind == "evaluation" else {}
        steps.append(dataclasses.replace(make(tmp_path, name), **fields))
    plan = StudyPlan(study=parse_study(SMALL | {"output": str(tmp_path)}), steps=tuple(steps), rows=(), benchmarks=())
    for name in ("short", "evaluated"):
        kind = settings[name][0]
        record = StepRecord(name=name, kind=kind, command="", key="", status="done", started=0.0, seconds=9.0)
        write_record(tmp_path, record)
    left = {status.name: status.left for status in read_statuses(plan, running=True)}
    unknown = dict.fromkeys(("untrained", "by-epochs", "llava", "wrong", "other"))
    assert left == {"short": 9.0, "long": 54.0, "captioner": 18.0, "evaluated": 9.0, "alike": 9.0, **unknown}
