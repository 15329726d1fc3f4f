"""A stop ends processes that wait for each other for ever, and leaves those in peace that only take their time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bridge_world
import pytest

from clips.parallel.watchdog import EXIT_HUNG
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training import hung
from llava_bridge.training.hung import HungWatch
from llava_bridge.training.train_config import LaunchConfig, StageConfig


@pytest.mark.slow
def test_sigterm_ends_processes_that_wait_in_a_collective(
    tmp_path: Path, bridge_encoder: Path, bridge_llm: Path, bridge_talk: Path
) -> None:
    stage = StageConfig(
        data=[ConversationSourceConfig(path=str(bridge_talk / "talk.json"))], max_steps=50, global_batch_size=4
    )
    fields: dict[str, Any] = {"stages": ["instruct"], "encoder": str(bridge_encoder), "llm": str(bridge_llm)}
    launch = LaunchConfig(num_processes=2, deepspeed="zero3")
    path = bridge_world.config_file(tmp_path, "run", bridge_talk, instruct=stage, launch=launch, **fields)
    command = [sys.executable, str(Path(__file__).with_name("hung_driver.py")), "train", "--config", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HANGS_AFTER": "3"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    work = tmp_path / ".run.work"
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and steps(work / "metrics.jsonl") < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        assert len(running(path)) == 4  # the command, the launcher, two that train
        time.sleep(2)  # the one waits by now
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        printed = process.communicate(timeout=90)[1]
        assert time.monotonic() - asked < 75
        assert not running(path)
    finally:
        for pid in running(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == EXIT_HUNG, printed
    assert re.search(r"instruct: asked to stop, but a step has not ended for \d+ s: processes wait", printed)
    assert "Traceback" not in printed


def running(config: Path) -> list[int]:
    """The processes whose command names ``config``, or the copy of it in the work directory of its run."""
    names = str(config).encode(), str(config.with_name(f".{config.stem}.work")).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            found += [int(process.name)] if any(name in command for name in names) else []
    return found


def steps(metrics: Path) -> int:
    return len(metrics.read_text().splitlines()) if metrics.is_file() else 0


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which a watch ends the process, which goes on here."""
    statuses: list[int] = []
    for name, seconds in (("_PAUSE", 0.02), ("_LEAST", 0.5), ("_FIRST", 0.6)):
        monkeypatch.setattr(hung, name, seconds)
    monkeypatch.setattr(hung, "end_hung", lambda status, why: statuses.append(status))
    return statuses


def watch(*, asked: bool) -> tuple[HungWatch, SimpleNamespace]:
    wish = SimpleNamespace(now=asked)
    wish.asked = lambda: wish.now
    return HungWatch(wish, "instruct"), wish  # type: ignore[arg-type]


def test_a_step_that_does_not_end_is_left_alone_until_a_stop_is_asked_for(ended: list[int]) -> None:
    watched, wish = watch(asked=False)
    watched.start()
    watched.step_ended(saves=False)
    time.sleep(1.0)
    assert not ended
    wish.now = True
    time.sleep(0.2)  # far less than a step may take from the request on
    assert not ended
    time.sleep(0.8)
    watched.end()
    assert ended[0] == EXIT_HUNG


def test_long_steps_the_first_one_and_saving_take_their_time(ended: list[int]) -> None:
    watched, _ = watch(asked=True)
    watched.start()
    time.sleep(0.3)  # the first
    watched.step_ended(saves=True)
    time.sleep(1.5)  # saving
    watched.saved()
    time.sleep(0.6)  # twice as long as the longest
    watched.step_ended(saves=False)
    watched.end()
    time.sleep(0.3)
    assert not ended
