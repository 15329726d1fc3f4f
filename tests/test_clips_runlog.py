"""What a training says of itself while it runs: lines, a bar, and where its time goes."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clips.training.run_logger import RunLogger, ThroughputTimer
from clips.training.train_state import TrainState


def entry(step: int) -> dict[str, Any]:
    return {"step": step, "samples_seen": 4 * step, "loss": 1.5, "samples_per_second": 8.0}


def test_the_log_speaks_plain_lines_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with RunLogger(tmp_path, step=0, steps=10) as log:
        log.write(entry(5))
    assert capsys.readouterr().err == "step 5/10 · loss 1.500 · 8 samples/s · 0:02 left\n"
    with RunLogger(tmp_path / "nothing", step=0, steps=10, quiet=True) as log:
        log.write(entry(1))
        log.advance()
    assert capsys.readouterr().err == ""


def test_the_log_shows_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with RunLogger(tmp_path, step=0, steps=10) as log:
        log.advance()
        log.write(entry(1))
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "1/10" in shown
    assert "loss 1.500" in shown


def test_the_clock_tells_waiting_from_working():
    loop = TrainState(seconds=100.0, samples_seen=50)
    with ThroughputTimer(loop) as clock:
        with clock.waiting():
            time.sleep(0.03)
        time.sleep(0.01)
        with clock.stopped():
            time.sleep(1.0)
        loop.samples_seen += 10
        clock.tick()
        reading = clock.read()
    assert 100.04 <= loop.seconds < 101
    assert reading["samples_per_second"] == pytest.approx(10 / (reading["time"] - 100), rel=1e-6)
    assert 0.5 < reading["data_wait"] < 1
