"""What the main process does for all: long work, errors, and nothing that another process decides otherwise."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from clips.errors import UserError
from clips.parallel import distributed

TIMEOUT = 4.0  # seconds of the group


def process(rank: int, port: int, folder: str, case: str) -> None:
    torch.set_num_threads(1)
    distributed._LIFE_SIGN = 0.5
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=3,
        timeout=datetime.timedelta(seconds=TIMEOUT),
    )

    def work() -> Any:
        (Path(folder) / f"worked {rank}").touch()
        if case == "long":
            time.sleep(2 * TIMEOUT)
        if case == "user error":
            raise UserError("data: expected shards")
        if case == "fault":
            raise ZeroDivisionError("by nothing")
        return {"process": os.getpid(), "rank": rank}

    try:
        answer = repr(distributed.from_main(work))
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    again = distributed.from_main(lambda: rank)  # the processes are still in step
    (Path(folder) / f"answer {rank}").write_text(f"{answer} {again}")
    torch.distributed.destroy_process_group()


def test_a_process_may_open_as_many_files_as_the_system_permits(tmp_path: Path) -> None:
    """Two groups of 512 processes need more than the usual 1,024."""
    code = """
import resource
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
from clips.parallel.distributed import start_processes
start_processes()
print(resource.getrlimit(resource.RLIMIT_NOFILE), hard)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    numbers = [int(number) for number in re.findall(r"-?\d+", done.stdout)]
    assert numbers == [65_536 if numbers[2] < 0 else min(65_536, numbers[2]), numbers[2], numbers[2]]


def answers(tmp_path: Path, case: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["clips.parallel.distributed"])
    mp.start_processes(process, (port, str(tmp_path), case), nprocs=3, start_method="forkserver")
    assert [path.name for path in tmp_path.glob("worked*")] == ["worked 0"]
    return [(tmp_path / f"answer {rank}").read_text() for rank in range(3)]


@pytest.mark.parametrize("case", ["short", "long"])
def test_all_get_what_the_main_process_finds_however_long_it_takes(case: str, tmp_path: Path) -> None:
    first, *others = answers(tmp_path, case)
    assert "'rank': 0} 0" in first
    assert others == [first] * 2


def test_all_raise_the_error_of_the_main_process(tmp_path: Path) -> None:
    assert answers(tmp_path, "user error") == ["UserError: data: expected shards 0"] * 3


def test_another_error_is_stated_where_it_did_not_happen(tmp_path: Path) -> None:
    first, *others = answers(tmp_path, "fault")
    assert first == "ZeroDivisionError: by nothing 0"
    assert others == ["RuntimeError: by nothing 0"] * 2
