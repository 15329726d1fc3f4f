"""The processes of a training when one of them fails, hangs or is killed."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import bridge_world
import psutil
import pytest

from clips.core.locks import lock_output
from llava_bridge.training.train_config import DistributedConfig

TWO = DistributedConfig(num_processes=2, deepspeed="zero3")


@contextlib.contextmanager
def two_train(tmp_path: Path, parts: bridge_world.Parts, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The command after three steps in two processes; all its processes have ended at the end."""
    path = bridge_world.instruct_file(tmp_path, "run", parts, {"max_steps": 2000}, distributed=TWO, num_workers=2)
    with bridge_world.training(path, **environment) as process:
        bridge_world.wait_for(lambda: len(bridge_world.metrics(tmp_path / ".run.work", "step")) >= 3, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 5  # rank 1, and of both ranks two workers of the loader
        try:
            yield process
            process.wait(timeout=100)
            assert not psutil.wait_procs(family, timeout=10)[1]
        finally:
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def rank_1(process: subprocess.Popen[str]) -> psutil.Process:
    (other,) = [one for one in psutil.Process(process.pid).children() if ".run.work" in one.cmdline()[-1]]
    return other


def complaints(process: subprocess.Popen[str]) -> list[str]:
    """What the processes have printed besides the progress."""
    printed = process.printed().splitlines()  # type: ignore[attr-defined]
    return [
        line
        for line in printed
        if not line.startswith(("instruct: ", "resuming the unfinished", "llava-bridge train: loading"))
    ]


@pytest.mark.slow
def test_a_killed_command_leaves_no_process(tmp_path: Path, bridge_parts: bridge_world.Parts) -> None:
    with two_train(tmp_path, bridge_parts) as process:
        process.kill()
    with lock_output(tmp_path / ".run.work" / "lock", "run"):  # is free
        pass


@pytest.mark.slow
def test_a_killed_process_ends_the_others(tmp_path: Path, bridge_parts: bridge_world.Parts) -> None:
    with two_train(tmp_path, bridge_parts) as process:
        rank_1(process).kill()
    reason = "the process of rank 1 was ended by SIGKILL; the same command resumes from the last checkpoint"
    assert complaints(process) == [f"llava-bridge: {reason}"]
    assert process.returncode == 1


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_process_is_one_line(tmp_path: Path, bridge_parts: bridge_world.Parts) -> None:
    with two_train(tmp_path, bridge_parts) as process:
        resource.prlimit(rank_1(process).pid, resource.RLIMIT_FSIZE, (1000, 1000))
        process.send_signal(signal.SIGTERM)  # saves
    (line,) = complaints(process)
    assert "cannot write" in line
    assert process.returncode == 2


@pytest.mark.slow
def test_the_timeout_of_collectives_ends_a_process_that_hangs(tmp_path: Path, bridge_parts: bridge_world.Parts) -> None:
    with two_train(tmp_path, bridge_parts, DEEPSPEED_TIMEOUT="1") as process:
        rank_1(process).suspend()
    assert process.returncode == 1
    assert "Timed out waiting 60000ms" in complaints(process)[-1]


@pytest.mark.slow
def test_an_error_of_all_processes_is_one_line_and_status_2(tmp_path: Path, bridge_parts: bridge_world.Parts) -> None:
    distributed = DistributedConfig(num_processes=2)
    path = bridge_world.instruct_file(
        tmp_path, "run", bridge_parts, {"max_length": 3}, distributed=distributed, max_invalid_ratio=0.01, num_workers=2
    )
    with bridge_world.training(path) as process:
        process.wait(timeout=200)
    (line,) = complaints(process)
    assert line.startswith("llava-bridge: none of 16 samples can be used; the first: ")  # without a worker's traceback
    assert process.returncode == 2


KILL = "[(worker.kill(), time.sleep(60)) for worker in multiprocessing.active_children()]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "status", "said"),
    [("1 / 0", 1, "ZeroDivisionError"), (KILL, 2, "llava-bridge: num_workers: a DataLoader worker died (")],
)
def test_a_crash_ends_a_process_although_its_workers_ignore_signals(
    step: str, status: int, said: str, tmp_path: Path, bridge_parts: bridge_world.Parts
) -> None:
    path = bridge_world.instruct_file(tmp_path, "run", bridge_parts, {"max_steps": 50}, num_workers=1)
    code = f"""
import multiprocessing, sys, time
from llava_bridge.cli import main
from llava_bridge.training.trainer import StageTrainer
StageTrainer.compute_loss = lambda *_, **__: {step}
sys.argv = ["llava-bridge", "train", "--config", {str(path)!r}]
sys.exit(main())
"""
    done = bridge_world.run_python("-c", code)  # raises after a time limit
    assert done.returncode == status
    assert said in done.stderr
