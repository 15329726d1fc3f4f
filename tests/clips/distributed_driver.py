"""Started by torchrun: trainings one after the other in the same processes, each stopped where the plan says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clips import train as training
from clips.commandline.parsing import parse_config
from clips.commandline.signals import graceful_shutdown
from clips.core.identity import file_hash
from clips.parallel.distributed import end_processes
from clips.train import EncoderTrainConfig, StepMetrics, read_batches, train_stage, train_step
from clips.training import checkpoint as checkpointing


def run(plan: list[dict[str, Any]]) -> None:
    checkpointing._FILE_BYTES = 50_000  # several files for each process, as of a large model
    for entry in plan:
        config = parse_config(EncoderTrainConfig, ["--config", entry["config"]], prog="driver")
        assert config is not None
        training.train_step = stop_at(entry["stop"]) if entry["stop"] else train_step
        if "preempt" in entry:
            training.train_step = preempt_at(entry["preempt"])
            checkpointing.file_hash = slow_hash
        if "hang" in entry:
            training.read_batches = hang_at(**entry["hang"])
        with contextlib.suppress(InterruptedError), graceful_shutdown() as stop:
            train_stage(config, stop)
    end_processes()


def stop_at(step: int) -> Any:
    def stopping(run: training.TrainRun, batch: dict[str, Any]) -> StepMetrics:
        if run.state.step == step:
            raise InterruptedError
        return train_step(run, batch)

    return stopping


def preempt_at(step: int) -> Any:
    def preempted(run: training.TrainRun, batch: dict[str, Any]) -> StepMetrics:
        if run.state.step == step:  # SLURM sends it to all: readers, trainings, and torchrun, which sends it on
            os.killpg(os.getpgid(0), signal.SIGTERM)
            if run.processes.is_main:
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(2)
        return train_step(run, batch)

    return preempted


def slow_hash(path: Path) -> str:
    time.sleep(0.05)  # of each of many files; torchrun ends processes 30 seconds after SIGTERM
    return file_hash(path)


def hang_at(rank: int, step: int, *, frozen: bool = False) -> Any:
    def hanging(run: training.TrainRun) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(read_batches(run)):
            if number == step and run.processes.rank == rank:
                if frozen:  # all its threads, that of the checkpoints too
                    os.kill(os.getpid(), signal.SIGSTOP)
                time.sleep(1000)
            yield batch

    return hanging


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
