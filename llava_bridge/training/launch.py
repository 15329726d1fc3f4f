"""The processes of a training: those of a launcher, or this one of rank 0 and the others, which it starts.

Rank 0 starts the others as PyTorch Lightning does. DeepSpeed's launcher ends with status 1 on SIGTERM, and kills
processes that take more than 30 seconds to save.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from clips.commandline.commands import EXIT_USER_ERROR
from clips.commandline.signals import EXIT_INTERRUPTED, EXIT_PREEMPTED
from clips.core.parent_death import end_with_parent
from clips.errors import UserError
from clips.safe_text import log_info

Result = TypeVar("Result")
# Error messages of a full disk: of the system, safetensors and torch.save.
_DISK_FULL = ("No space left on device", "Disk quota exceeded", "unexpected pos", "PytorchStreamWriter failed")
_PATIENCE = 3.0  # seconds in which a process that has failed ends


def launcher_world_size() -> int | None:
    """Number of processes of the distributed launcher (deepspeed, torchrun); None without one."""
    given = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & os.environ.keys()
    # Kubeflow sets these for torchrun
    if {"RANK", "WORLD_SIZE"} <= given and "LOCAL_RANK" not in given and os.environ["WORLD_SIZE"] != "1":
        raise UserError("RANK and WORLD_SIZE are set without LOCAL_RANK: start the command by torchrun or deepspeed")
    return int(os.environ["WORLD_SIZE"]) if len(given) == 3 else None


def is_main_process() -> bool:
    """Whether this is the process of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def log_rank0(line: str) -> None:
    """Log a line in rank 0."""
    if is_main_process():
        log_info(line)


def init_process_group() -> None:
    """Join the process group of the launcher, and select this process's GPU."""
    import deepspeed
    import torch

    if torch.cuda.is_available():  # before joining, or all processes would join with the first GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # On CPU DeepSpeed would first compile a shared-memory all-reduce for a minute; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def barrier() -> None:
    """Wait for all processes."""
    import torch

    torch.distributed.barrier()


def from_main(work: Callable[[], Result]) -> Result:
    """As :func:`clips.parallel.distributed.from_main`, without an import of torch before."""
    from clips.parallel import distributed

    return distributed.from_main(work)


@contextlib.contextmanager
def start_ranks(count: int, config_file: Path) -> Iterator[None]:
    """Make this process rank 0 of ``count``; the others run ``llava-bridge train`` with a file, and end with the block.

    Called before torch is imported, which reads the number of threads.

    Raises:
        SystemExit: another process has failed; the reason is printed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    others = [
        subprocess.Popen(
            [sys.executable, "-m", "llava_bridge", "train", "--config", str(config_file)],
            env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # Ctrl-C goes to rank 0 only
            preexec_fn=end_with_parent,
        )
        for rank in range(1, count)
    ]
    ended = threading.Event()

    def end_after_failure() -> None:
        """End this process some time after another one has failed: NCCL waits for that one until its timeout."""
        while (failed := _failed(others)) is None:
            if ended.wait(1):
                return
        if not ended.wait(3 * _PATIENCE):
            status = _report(*failed)
            for process in others:
                process.kill()
            os._exit(status)

    threading.Thread(target=end_after_failure, daemon=True).start()
    try:
        yield
        _wait(others)
    except SystemExit:  # all have stopped
        _wait(others)
        raise
    except UserError:
        raise
    except Exception:
        time.sleep(_PATIENCE if others else 0)
        if failed := _failed(others):  # this one was waiting for it
            raise SystemExit(_report(*failed)) from None
        raise
    finally:
        ended.set()
        for process in others:
            process.kill()
            process.wait()


def _wait(others: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)


def _failed(others: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Rank and exit status of a process that has failed; one that was stopped has not."""
    for rank, process in enumerate(others, start=1):
        if (status := process.poll()) and status not in {EXIT_PREEMPTED, EXIT_INTERRUPTED}:
            return rank, status
    return None


def _report(rank: int, status: int) -> int:
    """Report how another process has failed, unless it has done so; returns the exit status of this one."""
    if status == EXIT_USER_ERROR:
        return status
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    log_info(f"llava-bridge: the process of rank {rank} {how}; the same command resumes from the last checkpoint")
    return 1


def free_port() -> int:
    """A port of this machine that no process uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def report_once() -> Iterator[None]:
    """Raise the errors of this block, a full disk as a user error, in other processes than rank 0 after a pause.

    Rank 0 reports an error of all processes, and ends the others, or their launcher does.

    Raises:
        UserError: the error.
    """
    try:
        yield
    except Exception as error:
        if not is_main_process():
            time.sleep(2 * _PATIENCE)
        if not isinstance(error, UserError) and any(sign in str(error) for sign in _DISK_FULL):
            where = getattr(error, "filename", None) or "output"
            message = f"{where}: the disk is full; free some space and run the same command again"
            raise UserError(message) from None
        raise
