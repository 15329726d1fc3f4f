"""A stop ends processes that wait for each other without end, and does not touch slow ones."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import bridge_world
import pytest

from clips.parallel.distributed import EXIT_HUNG
from llava_bridge.training import callback
from llava_bridge.training.callback import HungWatch
from llava_bridge.training.train_config import DistributedConfig


@pytest.mark.slow
def test_sigterm_ends_processes_that_wait_in_a_collective(tmp_path: Path, bridge_parts: bridge_world.Parts) -> None:
    distributed = DistributedConfig(num_processes=2, deepspeed="zero3")
    path = bridge_world.instruct_file(tmp_path, "run", bridge_parts, {"max_steps": 50}, distributed=distributed)
    driver = str(Path(__file__).with_name("hung_driver.py"))
    try:
        with bridge_world.training(path, driver, "train", HANGS_AFTER="3") as process:
            bridge_world.wait_for(lambda: len(bridge_world.metrics(tmp_path / ".run.work", "step")) >= 3, process)
            assert len(running(path)) == 12  # the command, the launcher, two that train, with four loader workers each
            time.sleep(2)  # the one waits by now
            printed = bridge_world.ended_by(signal.SIGTERM, process)
            assert not running(path)
    finally:
        for pid in running(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert process.returncode == EXIT_HUNG, printed
    assert re.search(r"instruct: a stop was requested, but a step has not ended for \d+ s", printed)
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_crash_ends_a_process_although_its_workers_ignore_signals(tmp_path: Path, bridge_parts: bridge_world.Parts):
    path = bridge_world.instruct_file(tmp_path, "run", bridge_parts, {"max_steps": 50}, num_workers=1)
    code = f"""
import sys
from llava_bridge.cli import main
from llava_bridge.training.stage_trainer import StageTrainer
StageTrainer.compute_loss = lambda *_, **__: 1 / 0
sys.argv = ["llava-bridge", "train", "--config", {str(path)!r}]
sys.exit(main())
"""
    done = bridge_world.run_python("-c", code, **bridge_world.launched())  # raises after a time limit
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def running(config: Path) -> list[int]:
    """The processes whose command names ``config``, or the copy of it in the work directory of its run."""
    names = str(config).encode(), str(config.with_name(f".{config.stem}.work")).encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            found += [int(process.name)] if any(name in command for name in names) else []
    return found


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which a watch would end the process."""
    statuses: list[int] = []
    for name, seconds in (("_POLL_SECONDS", 0.02), ("_MIN_SECONDS", 0.5), ("_FIRST_STEP_SECONDS", 0.6)):
        monkeypatch.setattr(callback, name, seconds)
    monkeypatch.setattr(callback, "end_hung", lambda status, why: statuses.append(status))
    return statuses


def watch(*, asked: bool) -> tuple[HungWatch, SimpleNamespace]:
    wish = SimpleNamespace(now=asked)
    wish.is_requested = lambda: wish.now
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
