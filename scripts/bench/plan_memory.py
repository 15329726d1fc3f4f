"""What `clips plan` says of memory against what training takes: real steps in float32 on a CPU, one process.

    python scripts/bench/plan_memory.py
    python scripts/bench/plan_memory.py --cases clips-s-16:32 clips-b-16:8:4

A case is architecture:batch or architecture:batch:micro_batch and runs in a process of its own. Of each: the tensors
that last (parameters, optimizer state), what the step's fullest instant holds beside them by torch's allocator, and the
growth of the process's peak resident memory, which holds the libraries' own memory and the allocator's gaps as well.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from clips.architectures import ModelConfig
from clips.config import TrainConfig
from clips.data.loader import DataConfig
from clips.data.sources import SourceConfig
from clips.planning.dryrun import fake_batch
from clips.planning.footprint import Allowance, Rehearsal, Spread
from clips.start import start_run
from clips.step import training_step

CASES = ["clips-s-16:8", "clips-s-16:32", "clips-s-16:32:8", "clips-b-16:4", "clips-b-16:8"]
LASTING = ("parameters", "optimizer")
MIB = 2**20


def main() -> None:
    """Measure all cases or one of them and print its numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=CASES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return
    print("MiB, planned / measured (ratio)")
    for case in arguments.cases:
        done = subprocess.run([sys.executable, __file__, "--one", case], check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        planned, measured = found["planned"], found["measured"]
        told = [
            f"{name} {planned[name] / MIB:,.0f} / {measured[name] / MIB:,.0f} ({planned[name] / measured[name]:.3f})"
            for name in (*LASTING, "step", "all")
        ]
        print(f"{case:<18} {', '.join(told)}; peak resident {found['resident'] / MIB:,.0f}", flush=True)


def measure(case: str) -> dict[str, Any]:
    """One case: planned and measured bytes by part."""
    architecture, *sizes = case.split(":")
    batch_size, micro = int(sizes[0]), int(sizes[1]) if len(sizes) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            output=f"{folder}/run",
            data=DataConfig(sources=(SourceConfig(path="none"),)),
            model=ModelConfig(architecture=architecture),
            steps=10,
            batch_size=batch_size,
            micro_batch=micro,
            precision="fp32",
        )
        rehearsal = Rehearsal(config, device="cpu", bf16=False)
        planned = rehearsal.footprint(
            Spread(parallel="ddp", count=1, checkpointing=False),
            local=batch_size,
            at_once=micro or batch_size,
            allowance=Allowance(),
        )
        return real_step(config, rehearsal, planned)


def real_step(config: TrainConfig, rehearsal: Rehearsal, planned: dict[str, float]) -> dict[str, Any]:
    """The second of two training steps, its allocations recorded."""
    tokens = {name: value for name, value in fake_batch(rehearsal.model, config.batch_size).items() if name != "image"}
    before = resident("VmRSS")
    run = start_run(config, cast(Any, range(100_000)))
    size = run.encoder.image_size
    batch = {**tokens, "image": torch.randn(config.batch_size, 3, size, size)}
    run.model.train()
    training_step(run, batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        training_step(run, batch)
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    state = [value for entry in run.parallel.optimizer.state.values() for value in entry.values()]
    measured = {
        "parameters": sum(value.nbytes for value in [*run.encoder.parameters(), *run.encoder.buffers()]),
        "optimizer": sum(value.nbytes for value in state),
        "step": int(np.cumsum([change for _, change in changes]).max()),
    }
    inputs = sum(value.nbytes for value in batch.values())
    step = sum(planned.values()) - planned["parameters"] - planned["optimizer"] - inputs
    return {
        "planned": {**{name: planned[name] for name in LASTING}, "step": step, "all": sum(planned.values())},
        "measured": {**measured, "all": sum(measured.values()) + inputs},
        "resident": resident("VmHWM") - before,
    }


def resident(field: str) -> int:
    """Bytes of this process's memory by /proc."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
