"""Long work says how far it is: a line now and then in a log, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from clips.commandline import progress
from clips.commandline.progress import Progress, progress_iter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_with_the_time_that_is_left(clock):
    log = io.StringIO()
    with Progress("embedding", 400, "pictures", log) as shown:
        for _ in range(4):
            clock[0] += 20
            shown.advance(50)
    # after 40 s (100 done) and after 80 s (200 done); in between less than half a minute has passed
    assert log.getvalue().splitlines() == [
        "embedding: 100 of 400 pictures · 2.5 pictures/s · 2 min left",
        "embedding: 200 of 400 pictures · 2.5 pictures/s · 1 min left",
    ]


def test_other_counts_have_their_rates(clock):
    log = io.StringIO()
    with Progress("captioning", 90, "samples", log) as shown:
        clock[0] += 60
        shown.advance(30, tokens=930)
    assert log.getvalue() == "captioning: 30 of 90 samples · 0.5 samples/s · 15.5 tokens/s · 2 min left\n"


def test_what_is_quick_says_nothing():
    log = io.StringIO()
    with Progress("embedding", 3, stream=log) as shown:
        shown.advance(3)
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar():
    screen = Terminal()
    with Progress("embedding", 10, stream=screen) as shown:
        shown.advance(10)
    assert "embedding" in screen.getvalue()
    assert "10/10" in screen.getvalue()


def test_items_pass_through():
    assert list(progress_iter(["a", "b"], "reading")) == ["a", "b"]
