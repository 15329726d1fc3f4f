"""What a training and other long work say of themselves: lines now and then, a bar, and where the time goes."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clips.commandline import progress
from clips.commandline.progress import Progress, ProgressLine, progress_iter
from clips.core.run_log import METRICS_FILE, RunLog, read_entries
from clips.safe_text import log_info
from clips.training.run_dir import ThroughputTimer, TrainState


def entry(step: int) -> dict[str, Any]:
    return {"step": step, "samples_seen": 4 * step, "loss": 1.5, "samples_per_second": 8.0}


def test_progress_is_plain_lines_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with ProgressLine(0, 100) as line:
        line.show(entry(1) | {"samples_per_second": 0.1})  # the first steps are slow
        line.show(entry(50))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 1/100 · loss 1.500 · 0.1 samples/s"
    assert second == "step 50/100 · loss 1.500 · 8.0 samples/s · 0:25 left"
    with ProgressLine(0, 10, quiet=True) as line:
        line.show(entry(1))
        line.advance()
    RunLog(tmp_path / "nothing", writes=False).write(entry(1), 1)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with ProgressLine(0, 10) as line:
        line.advance()
        line.show(entry(1))
    assert "1/10" in screen.getvalue()
    assert "loss 1.500" in screen.getvalue()


def test_the_clock_tells_waiting_from_working():
    state = TrainState(seconds=100.0, samples_seen=50)
    with ThroughputTimer(state) as clock:
        with clock.waiting():
            time.sleep(0.03)
        time.sleep(0.01)
        with clock.stopped():
            time.sleep(0.3)
        state.samples_seen += 10
        clock.tick()
        reading = clock.read()
    assert 100.04 <= state.seconds < 100.34
    assert reading["samples_per_second"] == pytest.approx(10 / (reading["time"] - 100), rel=1e-6)
    assert 0.5 < reading["data_wait"] < 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_long_work_logs_lines_with_rates_and_the_time_that_is_left(clock):
    log = io.StringIO()
    with Progress("embedding", 400, "pictures", log) as shown:
        for _ in range(4):
            clock[0] += 20
            shown.advance(50)
    with Progress("captioning", 90, "samples", log) as shown:
        clock[0] += 60
        shown.advance(30, tokens=930)
    with Progress("scoring", 90, "batches", log) as shown:
        clock[0] += 60
        shown.advance(2, tokens=0)  # tokens that nobody counts
    with Progress("quick", 3, "batches", log) as shown:
        shown.advance(3)
    # after 20 s, as nothing was shown in the first two, and after 60 s; in between less than half a minute has passed
    assert log.getvalue().splitlines() == [
        "embedding: 50 of 400 pictures · 2.5 pictures/s · 2 min left",
        "embedding: 150 of 400 pictures · 2.5 pictures/s · 100 s left",
        "captioning: 30 of 90 samples · 0.5 samples/s · 15.5 tokens/s · 2 min left",
        "scoring: 2 of 90 batches · 0.033 batches/s · 44 min left",
    ]
    assert list(progress_iter(["a", "b"], "reading", "words")) == ["a", "b"]


def test_a_slow_block_logs_a_line_and_a_quick_one_none(monkeypatch, capsys):
    with progress.log_if_slow("quick"):
        pass
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    with progress.log_if_slow("reading a file"):
        for _ in range(1000):
            time.sleep(0.01)
            if said := capsys.readouterr().err:
                break
    assert said == "reading a file\n"
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.1)
    with progress.log_if_slow("loading"):
        log_info("at work")
        time.sleep(0.3)
    assert capsys.readouterr().err == "at work\n"


def test_a_terminal_gets_a_bar():
    screen = Terminal()
    with Progress("embedding", 10, "batches", screen) as shown:
        shown.advance(10)
    assert "embedding" in screen.getvalue()
    assert "10/10" in screen.getvalue()


def test_a_resume_keeps_all_lines_that_can_be_read(tmp_path: Path):
    lines = [json.dumps({"step": step, "loss": 1.0}).encode() for step in range(1, 31)]
    lines[5] = lines[5][:-4]
    lines[9] = b'{"step": 10, "loss": "\xff"}'
    lines[11] = b"\0" * 20
    lines[13] = b"5"
    lines[15] = b'{"loss": 1.0}'
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join([*lines, b'{"step": 31, "lo']))
    RunLog(tmp_path).resume(lambda entry: entry["step"] <= 28)
    kept = [json.loads(line)["step"] for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert kept == [step for step in range(1, 29) if step - 1 not in {5, 9, 11, 13, 15}]
    assert [entry["step"] for entry in read_entries(tmp_path / METRICS_FILE)] == kept
    assert read_entries(tmp_path / "none") == []
