"""Processes that hang or die: the training ends with one line."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import clips_world
import pytest
from clips_world import start_drive, train

from clips import train as training
from clips.commandline.signals import EXIT_INTERRUPTED
from clips.errors import UserError
from clips.parallel.distributed import EXIT_HUNG, exit_if_others_hang
from clips.training.run_dir import list_checkpoints, read_train_state


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_process_that_hangs_ends_the_training_with_a_line_of_the_one_that_waits(
    data: Path, tmp_path: Path, rank: int
):
    """Rank 0 is stopped with all its threads, while the other's writes a checkpoint with it, with a longer timeout."""
    output = tmp_path / "hung"
    clips_world.train_config(data, output, distributed={"hang_timeout": 12}, max_steps=50, save_steps=1)
    hang = {"rank": rank, "step": 3, "frozen": rank == 0}
    plan = [{"config": str(output.with_suffix(".json")), "stop": None, "hang": hang}]
    started = time.monotonic()
    assert start_drive(tmp_path, plan, "--shutdown-timeout", "2").wait(200) != 0
    assert time.monotonic() - started > 12
    log = (tmp_path / "log").read_text()
    line = (
        rf"rank {1 - rank} \(host .*, process \d+\) waited in vain for another process, .* Timed out waiting 12000ms "
    )
    assert re.search(line, log), log
    assert "\nRuntimeError" not in log
    assert f"exitcode  : {EXIT_HUNG}" in log
    assert list_checkpoints(output)[-1].name in ("step-00000002", "step-00000003")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process of its parent's end")
def test_processes_end_with_a_launcher_that_is_killed(data: Path, tmp_path: Path):
    """Else they wait for each other, or train on, and the same command is refused while they hold the run's lock."""
    config = clips_world.train_config(data, tmp_path / "run", max_steps=100_000, save_steps=1_000)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clips"]
    with subprocess.Popen([*words, "train", "--config", str(tmp_path / "run.json")], stderr=subprocess.DEVNULL) as run:
        while not (Path(config.output) / "config.yaml").is_file():
            assert run.poll() is None
            time.sleep(0.1)
        workers = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        run.kill()
    assert len(workers) == 2

    def is_alive(worker: str) -> bool:
        status = Path(f"/proc/{worker}/status")
        return status.is_file() and "State:\tZ" not in status.read_text()

    end = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [worker for worker in workers if is_alive(worker)]


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"), exit_if_others_hang():
        raise RuntimeError("Connection closed by peer")


def test_a_reader_that_dies_ends_the_training_with_one_line(data: Path, tmp_path: Path):
    # torch raises where the signal finds the process; in hypothesis' callback of the garbage collector it is lost
    callbacks, gc.callbacks[:] = gc.callbacks[:], []
    config = clips_world.train_config(data, tmp_path / "run", max_steps=200, save_steps=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=1))
    with pytest.MonkeyPatch.context() as patch:
        real = training.train_step

        def kill_the_reader(run: Any, batch: Any) -> dict[str, float]:
            if run.state.step == 3:
                for child in multiprocessing.active_children():
                    child.kill()
            return real(run, batch)

        patch.setattr(training, "train_step", kill_the_reader)
        with pytest.raises(
            UserError, match=r"data\.num_workers: a DataLoader worker died \(.*\), probably out of memory"
        ):
            train(config)
    gc.callbacks[:] = callbacks
    assert read_train_state(list_checkpoints(tmp_path / "run")[-1]).step >= 3


def test_a_second_ctrl_c_ends_a_process_that_hangs_in_a_library():
    code = """
import ctypes
from clips.commandline.signals import graceful_shutdown
with graceful_shutdown():
    mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    print("waiting", flush=True)
    library.pthread_mutex_lock(mutex)  # forever, as a collective call without the other processes
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        try:
            process.send_signal(signal.SIGINT)
            time.sleep(2.5)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == EXIT_INTERRUPTED
        finally:
            process.kill()
