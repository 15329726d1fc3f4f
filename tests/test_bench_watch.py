"""Watching: what the files of a running study say, drawn in a real terminal's screen, without touching anything."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pyte
import pytest
from report_study import make_study
from rich.console import Console

from benchmarks.study.state import LOG, read_record, step_directory, write_record
from benchmarks.watching import snapshot as snapshots
from benchmarks.watching.board import Board
from benchmarks.watching.snapshot import Snapshot, Watched, snapshot, watched_directory
from benchmarks.watching.view import sparkline, view
from benchmarks.watching.watch import WatchConfig, follow, watch
from clips.errors import UserError

STEP = "llava-net-tiny-s0"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of which one LLaVA is being trained, by this very process as it were."""
    found = make_study(tmp_path, monkeypatch)
    (found / ".lock").write_text(f"{os.getpid()}\n")
    record = read_record(found, STEP)
    assert record is not None
    running = {"outcome": "running", "started": time.time() - 70, "log_tail": (), "seconds": 0.0}
    write_record(found, type(record)(**{**vars(record), **running}))
    folder = step_directory(found, STEP)
    (folder / "config.yaml").write_text(f"output: {found}/llava/net-tiny-s0\n")
    (folder / LOG).write_text("align: 90 samples\nalign: step 10/50  loss 3.1  20 samples/s\nevil \x1b[31m\x07 line\n")
    log(found, *({"stage": "align", "step": step, "loss": 5 - step / 10} for step in range(1, 11)))
    return found


def log(study: Path, *entries: dict[str, Any]) -> None:
    """Grow the metrics of the LLaVA that is being trained, which the bridge keeps beside its output."""
    work = study / "llava/.net-tiny-s0.work"
    work.mkdir(parents=True, exist_ok=True)
    with (work / "metrics.jsonl").open("a") as stream:
        for entry in entries:
            stream.write(json.dumps({"samples_seen": 8 * entry["step"], "samples_per_second": 16.0} | entry) + "\n")


def seen(directory: Path, name: str = STEP) -> Watched:
    return next(step for step in snapshot(directory).steps if step.name == name)


def files(directory: Path) -> dict[str, tuple[int, int]]:
    there = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in there}


def text_of(shown: Any, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(shown)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_running_training_tells_its_numbers(study: Path) -> None:
    before = files(study)
    step = seen(study)
    assert (step.state, step.done, step.total) == ("running", 10, 50)
    assert step.training is not None
    assert (step.training.stage, step.training.losses[-1], step.training.rate) == ("align", 4.0, 16.0)
    assert step.left == 40 * 8 / 16
    assert 69 < step.seconds < 90
    assert seen(study, "encoder-clip-s0").state == "done"
    assert seen(study, "evaluate-llava-net-tiny-s0").state == "waiting"
    assert files(study) == before


def test_time_left_knows_the_executor_and_that_steps_wait_for_their_parents(study: Path) -> None:
    file, last = study / "study.json", "evaluate-llava-net-tiny-s0"
    content = json.loads(file.read_text())

    def left(share: float, *parents: str) -> float:
        steps = {name: step | {"share": {"jobs": share}} for name, step in content["steps"].items()}
        steps[last]["parents"] = parents
        file.write_text(json.dumps(content | {"steps": steps}))
        return snapshot(study).left or 0.0

    one_by_one = left(1.0)
    assert one_by_one > 20  # which is what is left of the training
    assert left(0.5) == max(20, one_by_one / 2)
    assert left(0.5, STEP) == one_by_one


def test_the_time_of_a_step_that_goes_on_is_that_of_all_its_runs(study: Path) -> None:
    record = read_record(study, STEP)
    assert record is not None
    write_record(study, dataclasses.replace(record, seconds=1000.0, earlier=1000.0))
    assert 1069 < seen(study).seconds < 1090


def test_the_screen_has_it_all_and_nothing_raw(study: Path) -> None:
    text = text_of(view(snapshot(study)))
    line = next(line for line in text.splitlines() if line.startswith(STEP))
    assert "align 10/50 20 %" in line
    assert "4.000" in line
    assert "16/s" in line
    assert line.split()[-2:] == ["20", "s"]
    assert "▇" in line
    assert f"{STEP}: evil \N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER} line" in text
    assert not {"\x1b", "\x07"} & set(text)


def test_a_terminal_is_redrawn_until_it_ends(study: Path) -> None:
    """The screen after each look, as a terminal shows it."""
    screen = pyte.Screen(160, 40)
    stream, out = pyte.Stream(screen), io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, height=40, highlight=False, legacy_windows=False)
    screens: list[str] = []

    def wait() -> None:
        stream.feed(out.getvalue().replace("\n", "\r\n"))
        out.truncate(0)
        out.seek(0)
        screens.append("\n".join(screen.display))
        if len(screens) == 1:
            log(study, {"stage": "instruct", "step": 1, "loss": 1.25})
            (step_directory(study, STEP) / LOG).write_text("instruct: step 1/100  loss 1.25\n")
        elif len(screens) == 2:
            (study / ".lock").write_text("\n")  # the runner is gone

    follow(study, console, once=False, wait=wait)
    assert len(screens) == 2
    assert "align 10/50" in screens[0]
    assert "instruct 1/100 1 %" in screens[1]
    assert "1.250" in screens[1]
    assert "align 10/50" not in screens[1]
    assert screens[1].count("\n" + STEP + " ") == 1  # drawn over, not below
    stream.feed(out.getvalue().replace("\n", "\r\n"))
    assert "stopped" in "\n".join(screen.display)
    assert "nothing is running" in "\n".join(screen.display)


def test_what_a_killed_runner_left_is_not_called_running(study: Path) -> None:
    (study / ".lock").write_text("999999999\n")
    assert seen(study).state == "stopped"
    assert not snapshot(study).goes_on


def test_a_job_that_outlives_its_runner_goes_on(study: Path) -> None:
    (study / ".lock").write_text("999999999\n")
    record = read_record(study, STEP)
    assert record is not None
    write_record(study, dataclasses.replace(record, token="of-a-job"))
    assert seen(study).state == "running"
    assert snapshot(study).goes_on


def test_once_prints_and_ends(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch(WatchConfig(directory=str(study)))  # nobody looks: standard output is no terminal
    said = capsys.readouterr().out
    assert said.count(f"\n{STEP} ") == 1  # whole, in a terminal of 80 characters
    assert "memory" not in said.splitlines()[1]
    assert "\x1b" not in said


def test_a_finished_training_prints_once(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("samples: 80\nbatch_size: 8\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "samples_seen": 80, "loss": 1.5}\n{"step": 11, "lo')
    found = snapshot(tmp_path)
    assert not found.goes_on
    assert (found.steps[0].state, found.steps[0].done, found.steps[0].total) == ("done", 10, 10)
    (tmp_path / "manifest.json").unlink()
    assert snapshot(tmp_path).goes_on


def test_memory_is_that_of_the_steps_own_processes(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(step_directory(study, STEP) / "config.yaml")

    class Process:
        def __init__(self, words: list[str] | None, rss: int) -> None:
            self.info = {"cmdline": words, "memory_info": type("M", (), {"rss": rss})}

    import psutil

    there = [
        Process(["python", "--config", config], 2**30),
        Process([config], 2**29),
        Process(["x"], 7),
        Process(None, 7),
    ]
    monkeypatch.setattr(psutil, "process_iter", lambda names: there)
    assert seen(study).memory == 2**30 + 2**29
    assert "1.5 GB" in text_of(view(snapshot(study)))


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing has run yet"):
        watched_directory(str(tmp_path / "none"))
    with pytest.raises(UserError, match="expected a study, its output, or a training's output"):
        watched_directory(str(tmp_path))
    with pytest.raises(UserError, match="every: expected more than 0"):
        WatchConfig(directory="x", every=0)


@pytest.mark.parametrize(
    ("values", "curve"),
    [([1.0, 2.0, 3.0], "▁▅█"), ([2.0, 2.0], "▁▁"), ([], ""), ([float(n) for n in range(32)], "▁▂▃▄▅▆▇█")],
)
def test_a_curve_of_blocks(values: list[float], curve: str) -> None:
    assert (sparkline(values, 8) if values else "") == curve
    assert len(sparkline([1.0, float("inf"), 2.0], 8)) == 3


def test_tensorboard_gets_what_is_new(study: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before = files(study)
    board = Board(study, tmp_path / "logs")
    assert board.collect() >= 10
    assert board.collect() == 0
    assert files(study) == before
    log(study, {"stage": "align", "step": 11, "loss": 0.5}, {"stage": "instruct", "step": 1, "loss": 0.25})
    assert board.collect() == 2
    board.close()
    events = EventAccumulator(str(tmp_path / "logs" / STEP / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("align/loss")][-1] == (11, 0.5)
    assert [point.value for point in events.Scalars("instruct/loss")] == [0.25]


def test_tensorboard_is_served_to_this_machine_alone(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import subprocess

    started: list[list[str]] = []

    class Server:
        returncode = 1
        poll = wait = lambda self: 1
        terminate = lambda self: None  # noqa: E731

        def __init__(self, command: list[str], **_: Any) -> None:
            started.append(command)
            assert list(Path(command[command.index("--logdir") + 1]).rglob("events.*"))

    monkeypatch.setattr(subprocess, "Popen", Server)
    with pytest.raises(UserError, match=r"^port: TensorBoard ended with status 1; is 7007 taken"):
        watch(WatchConfig(directory=str(study), tensorboard=True, port=7007))
    (command,) = started
    assert command[command.index("--host") + 1] == "localhost"
    assert not Path(command[command.index("--logdir") + 1]).exists()
    assert "http://localhost:7007/" in capsys.readouterr().err


def test_an_empty_study_has_a_view() -> None:
    shown = text_of(view(Snapshot(title="x \x1b[1m", steps=(), left=0.0, goes_on=False)))
    assert "0 of 0 done" in shown
    assert "\x1b" not in shown
    assert snapshots._counted(("making scenes: 1,000 of 9,000, 1 min left", "done")) == (1000, 9000)
