"""The memory that `clips plan` estimates compared with that of real training steps, in float32 on a CPU.

    python scripts/bench/plan_memory.py
    python scripts/bench/plan_memory.py --processes 2 --strategy ddp fsdp zero1 zero2 zero3 --cases clips-s-16:16

A case is architecture:batch or architecture:batch:micro_batch. Each is measured in new processes: the peak of torch's
allocations in the second step, with parameters and optimizer, which corresponds to the sum of the plan's parts; and,
without the profiler, the growth of the process's peak resident memory, which includes the libraries' work space and the
allocator's gaps. Of several processes the first is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from clips.data.data_config import DataConfig
from clips.data.sources import SourceConfig
from clips.model.architectures import ModelConfig
from clips.parallel.distributed_config import DistributedConfig, Parallel
from clips.planning.dry_run import fake_batch, fake_model
from clips.planning.memory import Layout, MemoryModel
from clips.training.setup import setup_run
from clips.training.train_config import EncoderTrainConfig
from clips.training.train_step import TrainRun, train_step

CASES = ["clips-s-16:8", "clips-s-16:32", "clips-s-16:32:8", "clips-b-16:4", "clips-b-16:8"]
MIB = 2**20


def main() -> None:
    """Plan and measure all cases; each measurement runs this script in separate processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--strategy", nargs="+", default=["ddp"], choices=get_args(Parallel))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measured_here(arguments)
        return
    print("| case | processes | strategy | planned MiB | tensors MiB | ratio | resident MiB | ratio |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for case in arguments.cases:
        for parallel in arguments.strategy:
            planned = sum(plan(case, parallel, arguments.processes).values()) / MIB
            tensors, resident = (measure(name, case, parallel, arguments.processes) / MIB for name in MEASURES)
            print(
                f"| {case} | {arguments.processes} | {parallel} | {planned:,.0f} | {tensors:,.0f} "
                f"| {planned / tensors:.3f} | {resident:,.0f} | {planned / resident:.3f} |",
                flush=True,
            )


def plan(case: str, parallel: Parallel, processes: int) -> dict[str, float]:
    """Planned bytes of a process by part."""
    config = training(case, parallel, output="nowhere")
    local = config.global_batch_size // processes
    return MemoryModel(config, device="cpu", bf16=False).parts(
        Layout(parallel=parallel, count=processes, checkpointing=0),
        local=local,
        at_once=min(config.micro_batch_size or local, local),
    )


def measure(name: str, case: str, parallel: Parallel, processes: int) -> float:
    """Bytes measured by the first of ``processes``."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    this = [__file__, "--measure", name, "--cases", case, "--strategy", parallel]
    done = subprocess.run([sys.executable, *(launcher if processes > 1 else []), *this], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{case} under {parallel}: the measurement ended with status {done.returncode}")
    found = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith('{"bytes"')]
    return float(found[0]["bytes"])


def training(case: str, parallel: Parallel, output: str) -> EncoderTrainConfig:
    """The config of a case."""
    architecture, *sizes = case.split(":")
    return EncoderTrainConfig(
        output=output,
        data=DataConfig(sources=(SourceConfig(path="none"),)),
        model=ModelConfig(architecture=architecture),
        max_steps=10,
        global_batch_size=int(sizes[0]),
        micro_batch_size=int(sizes[1]) if len(sizes) > 1 else None,
        precision="fp32",
        distributed=DistributedConfig(strategy=parallel),
    )


def measured_here(arguments: argparse.Namespace) -> None:
    """Set up a training, run two steps, and print the measured bytes on the main process."""
    with tempfile.TemporaryDirectory() as folder:
        config = training(arguments.cases[0], arguments.strategy[0], output=f"{folder}/run")
        local = config.global_batch_size // int(os.environ.get("WORLD_SIZE", 1))
        model = fake_model(config.model, config.recipe)
        texts = {name: value for name, value in fake_batch(model, local).items() if name != "image"}
        bytes_held = MEASURES[arguments.measure](config, texts, (local, 3, model.image_size, model.image_size))
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps({"bytes": bytes_held}), flush=True)


def tensor_bytes(config: EncoderTrainConfig, texts: dict[str, Any], image_shape: tuple[int, ...]) -> int:
    """The peak of torch's allocations during the second step, from the allocator's events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run, batch = started(config, texts, image_shape)
        train_step(run, batch)
        with torch.profiler.record_function("second step"):
            train_step(run, batch)
    events = profiled.profiler.kineto_results.events()
    begun = next(event.start_ns() for event in events if event.name() == "second step")
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = np.cumsum([change for _, change in changes])
    return int(held[np.array([instant for instant, _ in changes]) >= begun].max())


def resident_bytes(config: EncoderTrainConfig, texts: dict[str, Any], image_shape: tuple[int, ...]) -> int:
    """Growth of this process's resident memory to its peak in the second step."""
    before = resident("VmRSS")
    run, batch = started(config, texts, image_shape)
    train_step(run, batch)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (man 5 proc)
    train_step(run, batch)
    return resident("VmHWM") - before


MEASURES = {"tensors": tensor_bytes, "resident": resident_bytes}


def started(
    config: EncoderTrainConfig, texts: dict[str, Any], image_shape: tuple[int, ...]
) -> tuple[TrainRun, dict[str, Any]]:
    """A training before its first step, and a batch without padding."""
    run = setup_run(config, cast(Any, range(100_000)))
    run.model.train()
    return run, {**{name: value.clone() for name, value in texts.items()}, "image": torch.randn(image_shape)}


def resident(field: str) -> int:
    """Bytes of this process's memory from /proc."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
