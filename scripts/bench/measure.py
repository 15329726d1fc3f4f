"""What the benchmarks share: sides that take turns, ratios with their spread, the machine, real captions."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clips.config import TrainConfig
from clips.data.loader import DataConfig
from clips.data.sources import SourceConfig
from clips.model import ClipsModel
from clips.optim import build_optimizer
from clips.recipes import Recipe
from clips.step import Run

# ---------------------------------------------------------------- time


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments that every benchmark has."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu counts this process's own seconds: for one thread on a machine that others use too",
    )


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, clock: str = "wall", warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each side in each round; the order turns round from one round to the next (ABBA)."""
    now = CLOCKS[clock]
    for _ in range(warmup):
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            _synchronise()
            start = now()
            sides[name]()
            _synchronise()
            seconds[name].append(now() - start)
    return seconds


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of some numbers."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}–{self.high:{spec}})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles; of fewer than two numbers all the same."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Spread(low, statistics.median(values), high)


def speed_up(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> Spread:
    """How many times as fast ``ours`` is as ``theirs``, from the pairs of each round."""
    return spread([their / our for our, their in zip(seconds[ours], seconds[theirs], strict=True)])


# ---------------------------------------------------------------- what is printed


def machine(device: str) -> str:
    """The machine in a line: what computes, with how many threads, how busy it was before, which versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_cpu_name()}, {torch.get_num_threads()} thread(s)"
    versions = [f"{package} {_version(package)}" for package in ("torch", "open_clip_torch")]
    return f"{name}; load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores at the start; {', '.join(versions)}"


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in [head, rule, *rows])


# ---------------------------------------------------------------- what is measured


def captions(path: str | None, field: str, count: int) -> list[str]:
    """The first ``count`` captions of a JSONL or JSON file, of several the first; without a file, long ones."""
    if path is None:
        return [" ".join(["word"] * 200)] * count
    text = Path(path).read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    found = [_first(row[field]) for row in rows]
    return [found[index % len(found)] for index in range(count)]


def _first(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(next(iter(value.values() if isinstance(value, dict) else value)))


def start_run(config: TrainConfig, encoder: ClipsModel, recipe: Recipe, device: str) -> Run:
    """What `clips.step.training_step` needs, with no data behind it."""
    from accelerate import Accelerator

    from clips.checkpoint import LoopState

    accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
    optimizer = build_optimizer(encoder, config.optim, encoder.no_decay_names())
    model, optimizer = accelerator.prepare(encoder, optimizer)
    return Run(
        config=config,
        data=None,  # type: ignore[arg-type]
        recipe=recipe,
        encoder=encoder,
        model=model.train(),
        average=None,
        optimizer=optimizer,
        accelerator=accelerator,
        loop=LoopState(),
        steps=config.steps or 1,
        precision="fp32" if config.precision == "fp32" else "bf16",
        mean=torch.zeros(3, 1, 1),
        std=torch.ones(3, 1, 1),
    )


def train_config(**fields: Any) -> TrainConfig:
    """A config of the trainer that only lacks data."""
    return TrainConfig(output="", data=DataConfig(sources=(SourceConfig(path="none"),)), steps=10**6, **fields)


def parameters(model: torch.nn.Module) -> int:
    """How many parameters train."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def flops(run: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and attentions that ``run`` does, backward passes included."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
