"""Processes that hang or die: the training ends and names them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
from pathlib import Path
from typing import Any

import clips_world
import pytest
from clips_world import train
from test_clips_distributed import start_drive

from clips import train as training
from clips.errors import UserError
from clips.parallel.watchdog import EXIT_HUNG, describe_stalled
from clips.training.train_state import list_checkpoints, read_train_state


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def status(step: int, phase: str, process: str) -> dict[str, Any]:
    return {"step": step, "phase": phase, "process": process, "updates": 1}


def test_the_one_that_the_others_wait_for_is_named():
    stalled = {0: status(6, "computing", "rank 0"), 1: status(6, "waiting for data", "rank 1 (host b, process 7)")}
    assert describe_stalled(stalled, 2, 60) == (
        "rank 1 (host b, process 7) made no progress for 60 s (waiting for data, step 7; distributed.hang_timeout) "
        "and the others wait for it; ended"
    )
    stalled[1] = status(5, "saving", "rank 1")
    assert describe_stalled(stalled, 2, 60).startswith("rank 1 made no progress for 60 s (saving, step 6;")
    stalled[1] = status(6, "computing", "rank 1")
    assert describe_stalled(stalled, 2, 60).startswith("all 2 processes made no progress for 60 s (computing, step 7;")
    assert describe_stalled({3: status(2, "computing", "rank 3")}, 9, 60).startswith("rank 3 made no progress")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_process_that_hangs_is_named_and_the_training_ends(data: Path, tmp_path: Path, rank: int):
    """The main process is one that cannot even say so itself."""
    output = tmp_path / "hung"
    clips_world.train_config(data, output, distributed={"hang_timeout": 12}, max_steps=50, save_steps=1)
    hang = {"rank": rank, "step": 3, "frozen": rank == 0}
    plan = [{"config": str(output.with_suffix(".json")), "stop": None, "hang": hang}]
    assert start_drive(tmp_path, plan, "--shutdown-timeout", "2").wait(200) != 0
    log = (tmp_path / "log").read_text()
    blamed = rf"rank {rank} \(host .*, process \d+\) made no progress for 12 s \(waiting for data, step 4; "
    assert re.search(blamed, log), log
    assert f"exitcode  : {EXIT_HUNG}" in log
    assert list_checkpoints(output)[-1].name == "step-00000003"


def test_a_reader_that_dies_ends_the_training_with_one_line(data: Path, tmp_path: Path):
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
    assert read_train_state(list_checkpoints(tmp_path / "run")[-1]).step >= 3
