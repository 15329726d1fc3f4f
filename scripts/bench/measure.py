"""Shared code of the benchmarks: alternating sides, ratios with their spread, the machine, real captions."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clips.data.sources import SourceConfig
from clips.loader.data_config import DataConfig
from clips.method.clips_model import ClipsModel, build_model
from clips.method.recipes import RecipeConfig
from clips.model.architectures import ModelConfig
from clips.model.tokenizer import ClipsTokenizer
from clips.parallel.distributed import DistributedContext
from clips.parallel.parallel_model import ParallelModel
from clips.training.run_dir import TrainState
from clips.training.setup import TrainRun
from clips.training.train_config import DistributedConfig, EncoderTrainConfig

# ---------------------------------------------------------------- time


Value = TypeVar("Value")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu counts this process's own seconds: for one thread on a machine that others use too",
    )
    parser.add_argument("--json", type=Path, help="append each measurement to this file, one JSON object a line")
    return parser


def begin(args: argparse.Namespace) -> argparse.Namespace:
    """Set the number of threads and print the machine; returns the arguments."""
    torch.set_num_threads(args.threads)
    print(machine(args.device))
    return args


def alternate(sides: Mapping[str, Callable[[], Value]], rounds: int, warmup: int = 1) -> dict[str, list[Value]]:
    """The result of each side in each round after ``warmup`` rounds; the order alternates between rounds (ABBA)."""
    for _ in range(warmup):
        for run in sides.values():
            run()
    found: dict[str, list[Value]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(sides[name]())
    return found


def take_turns(sides: Mapping[str, Callable[[], object]], rounds: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of each side in each round, see `alternate`."""
    return alternate({name: functools.partial(seconds_of, run, clock) for name, run in sides.items()}, rounds)


def seconds_of(run: Callable[[], object], clock: str) -> float:
    """The duration of ``run`` by ``clock``, including the work of the device."""
    now = CLOCKS[clock]
    synchronize()
    start = now()
    run()
    synchronize()
    return now() - start


def synchronize() -> None:
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
    """Median and quartiles; a single number is all three."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return Spread(low, statistics.median(values), high)


def speed_up(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> Spread:
    """The speed of ``ours`` relative to ``theirs``, from the pairs of each round."""
    return spread([their / our for our, their in zip(seconds[ours], seconds[theirs], strict=True)])


# ---------------------------------------------------------------- what is printed


def machine(device: str) -> str:
    """The machine as one line: device, threads, load, versions."""
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
    """A Markdown table; all columns except the first are right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in [head, rule, *rows])


def record(args: argparse.Namespace, **values: object) -> None:
    """Append a measurement to the file of ``--json``, with the script and its arguments."""
    if args.json is None:
        return
    arguments = {name: value for name, value in vars(args).items() if name != "json"}
    line = {"script": Path(sys.argv[0]).name, "arguments": arguments, **values}
    with args.json.open("a", encoding="utf-8") as file:  # closed after every line: a cut loses none
        file.write(json.dumps(line, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # type: ignore[arg-type]


# ---------------------------------------------------------------- what is measured


def captions(path: str | None, field: str, count: int) -> list[str]:
    """``count`` captions of a JSONL or JSON file, the first of each row; without a file, long ones."""
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


def start(
    model_config: ModelConfig,
    recipe_config: RecipeConfig,
    precision: str,
    texts: list[list[str]],
    device: str,
    scale: DistributedConfig | None = None,
) -> tuple[TrainRun, dict[str, Tensor]]:
    """The arguments of `clips.train.train_step`: a new model with its optimizer, and a batch.

    Args:
        model_config: the towers.
        recipe_config: the recipe.
        precision: fp32 or bf16.
        texts: the web captions and the synthetic ones of all samples; the images are noise.
        device: cpu or cuda.
        scale: compilation and recomputation; None for neither.
    """
    encoder = build_model(model_config, recipe_config, seed=0)
    config = EncoderTrainConfig(
        output="",
        data=DataConfig(sources=(SourceConfig(path="none"),)),
        model=model_config,
        recipe=recipe_config,
        max_steps=10**6,
    )
    processes = DistributedContext(device=torch.device(device))
    distributed, model = scale or DistributedConfig(), encoder.to(processes.device).train()
    parallel = ParallelModel(model, distributed, config.optimizer, processes, bf16=precision == "bf16")
    run = TrainRun(
        config=config,
        data=None,  # type: ignore[arg-type]
        recipe=encoder.recipe,
        processes=processes,
        parallel=parallel,
        average=None,
        state=TrainState(),
        steps=10**6,
        precision="fp32" if precision == "fp32" else "bf16",
        mean=torch.zeros(3, 1, 1, device=device),
        std=torch.ones(3, 1, 1, device=device),
    )
    return run, make_batch(encoder, texts, device)


def make_batch(model: ClipsModel, texts: list[list[str]], device: str) -> dict[str, Tensor]:
    """Noise images on the device, and the tokens of web and synthetic captions, on the CPU as in training."""
    tokenizer, rng = ClipsTokenizer(model.context_length), np.random.default_rng(0)
    samples = [model.recipe.prepare(web, synthetic, rng, tokenizer) for web, synthetic in zip(*texts, strict=True)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return batch | {"image": torch.randn(len(samples), 3, model.image_size, model.image_size).to(device)}


def parameters(model: torch.nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def flops(run: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and attentions of ``run``, including backward passes."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm: addmm_flops}) as counter:
        run()
    return counter.get_total_flops()


def addmm_flops(bias: object, left: Sequence[int], right: Sequence[int], *_: object, **__: object) -> int:
    """Operations of ``addmm`` from the shapes; torch's own rejects the positional dtype of `addmm.dtype_out`."""
    return 2 * left[0] * left[1] * right[1]
