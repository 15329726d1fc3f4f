"""``clips plan``: memory and time of a training, beforehand.

clips plan scripts/configs/clips-l-14.yaml --gpu h200 --num_gpus 64
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clips.commandline.parsing import parse_config
from clips.data.formats.webdataset import MANY_SHARDS, SIZES_FILE, list_shards
from clips.data.remote_files import is_remote, sibling
from clips.data.sources import open_source
from clips.data.tar_index import index_shard
from clips.errors import UserError, unknown_name_error
from clips.gpus import GPUS
from clips.ranges import Positive, PositiveFraction
from clips.safe_text import log_info
from clips.training.train_config import EncoderTrainConfig, stage_configs

_RESERVE, _FRAGMENTATION = 2e9, 0.05  # assumed: context, libraries and NCCL; gaps between tensors
_FLOAT32, _ADAM = 4, 8  # bytes per parameter: a weight or gradient, AdamW's moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPlanConfig:
    """Print, for each stage of a training, the memory of a GPU by part, the FLOPs per sample and hours.

    Args:
        train_config: a YAML file of `clips train`.
        gpu: the type of GPU, such as a100-80, h100, h200, b200, l40s, 4090.
        num_gpus: number of GPUs.
        mfu: model FLOPs utilization, the ratio of FLOP/s to the GPU's peak, such as the "mfu" of a run's metrics.jsonl.
    """

    train_config: str
    gpu: str = "h200"
    num_gpus: Positive = 8
    mfu: PositiveFraction = 0.4

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise unknown_name_error(self.gpu, GPUS, "type of GPU")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """Estimates for one stage."""

    parameters: int
    trained: int  # of the parameters
    flops: float  # per sample, forward and backward
    steps: int
    memory: dict[str, float]  # part → bytes of a GPU
    hours: float


def run_plan(config: TrainPlanConfig) -> None:
    """Print memory and time of a training.

    Raises:
        UserError: the training's file is missing or invalid, a table lacks a column, or its batch cannot be divided by
            the GPUs.
    """
    training = parse_config(EncoderTrainConfig, ["--config", config.train_config], prog=config.train_config)
    assert training is not None
    for source in training.data.sources:  # those of other formats may list all their files
        if source.format == "table" and Path(source.path).exists():
            open_source(source)  # checks its columns
    defaults = [f"--{name}" for name in ("num_gpus", "gpu") if getattr(config, name) == getattr(TrainPlanConfig, name)]
    gpus = f"{config.num_gpus} × {config.gpu}" + (f", the default of {' and '.join(defaults)}" if defaults else "")
    stages, console, total = stage_configs(training), Console(), 0.0
    for number, stage in enumerate(stages, 1):
        log_info(f"{config.train_config}: stage {number} of {len(stages)} in a dry run …")
        plan = plan_stage(config, stage)
        total += plan.hours
        table = _table(f"Stage {number} of {len(stages)}: {gpus}", config, stage, plan)
        if number == 1:
            table.add_section()
            for row in _start_rows(stage):
                table.add_row(*row)
        console.print(table)
    console.print(
        f"All: {total:,.1f} h, {total * config.num_gpus:,.0f} GPU hours at an MFU of {config.mfu:.0%} (--mfu). "
        "Waiting for data, validation and failures are not included."
    )


def plan_stage(config: TrainPlanConfig, stage: EncoderTrainConfig) -> StagePlan:
    """Estimate one stage.

    Raises:
        UserError: the stage cannot be divided among ``num_gpus``.
    """
    count, distributed = config.num_gpus, stage.distributed
    if stage.global_batch_size % count:
        raise UserError(
            f"global_batch_size: {stage.global_batch_size:,} samples cannot be divided among {count} GPUs (--num_gpus)"
        )
    group = distributed.shard_group_size or count
    if count % group:
        raise UserError(
            f"distributed.shard_group_size: expected a divisor of {count:,} GPUs (--num_gpus), got {group:,}"
        )
    local = stage.global_batch_size // count
    samples = 0
    if stage.num_epochs is not None:
        if any(is_remote(source.path) for source in stage.data.sources):
            raise UserError("num_epochs: expected max_samples or max_steps for a plan, because the data is remote")
        samples = sum(len(open_source(source)) for source in stage.data.sources)
    steps = stage.steps_for(samples)
    from clips.model.compute import repeated_layers
    from clips.training import mfu

    at_once, bf16 = min(stage.micro_batch_size or local, local), stage.precision != "fp32"
    model = mfu.fake_model(stage.model, stage.recipe)
    parameters = sum(value.numel() for value in model.parameters())
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    flops = mfu.flops_per_sample(stage, mfu.full_batch(model, min(local, 8)), 1)
    flops += mfu.contrastive_flops(model, stage.global_batch_size - min(local, 8))

    traced = mfu.peak_bytes(model, at_once, bf16=bf16, checkpointing=distributed.activation_checkpointing)
    held = [_FLOAT32 * parameters, _ADAM * trained, 0 if stage.ema_decay is None else _FLOAT32 * parameters]
    communication = _FLOAT32 * trained if count > 1 else 0  # gradients are sent in buckets
    if distributed.strategy == "fsdp":
        layers = [sum(value.numel() for value in layer.parameters()) for layer in repeated_layers(model)]
        gathered = parameters - sum(layers) + 3 * max(layers, default=0)  # this layer, the next one and a gradient
        held, communication = [size // group for size in held], _FLOAT32 * gathered if count > 1 else 0
    memory: dict[str, float] = dict(zip(("parameters", "optimizer state", "EMA of weights"), held, strict=True))
    memory |= {"communication": communication, "activations and gradients of a step": traced}
    if at_once < local:
        memory["gradients between micro-batches"] = _FLOAT32 * trained
    memory["reserve"] = _RESERVE + _FRAGMENTATION * sum(memory.values())
    rate = GPUS[config.gpu].peak("bf16" if bf16 else "fp32") * config.mfu * count
    hours = steps * stage.global_batch_size * flops / rate / 3600
    return StagePlan(parameters=parameters, trained=trained, flops=flops, steps=steps, memory=memory, hours=hours)


def _table(title: str, config: TrainPlanConfig, stage: EncoderTrainConfig, plan: StagePlan) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    samples = plan.steps * stage.global_batch_size
    table.add_row("parameters", f"{plan.parameters / 1e6:,.1f} million, {plan.trained / 1e6:,.1f} trained")
    without = ", without cached layers" if stage.model.cache_trunk_features else ""
    table.add_row("FLOPs per sample", f"{plan.flops / 1e9:,.1f} G, forward and backward{without}")
    table.add_row("length", f"{samples:,} samples, {plan.steps:,} steps of {stage.global_batch_size:,}")
    table.add_row("time", f"{plan.hours:,.1f} h, {plan.hours * config.num_gpus:,.0f} GPU hours")
    table.add_section()
    for name, size in plan.memory.items():
        if size:
            table.add_row(name, _gb(size))
    total, limit = sum(plan.memory.values()), GPUS[config.gpu].memory
    table.add_section()
    table.add_row(f"memory under {stage.distributed.strategy}", f"{_gb(total)} of {_gb(limit)}")
    if total > limit:
        table.add_row("", "[red]lower micro_batch_size, or set distributed.activation_checkpointing[/red]")
    return table


def _start_rows(stage: EncoderTrainConfig) -> Iterator[tuple[str, str]]:
    """What the start reads of local shards, by the first shard of each source; nothing of data that are not here."""
    from clips.loader.loader import DEFAULT_BUFFER

    memory = 0
    for source in stage.data.sources:
        if source.format != "webdataset" or is_remote(source.path):
            continue
        with contextlib.suppress(UserError):
            shards = list_shards(source.path)
            began = time.process_time()
            index = index_shard(Path(shards[0]))
            seconds = (time.process_time() - began) * len(shards)
            is_counted = Path(source.shard_sizes or sibling(shards[0], SIZES_FILE)).is_file()
            cost = f"counts in {SIZES_FILE}" if is_counted else f"headers read once in {seconds:,.0f} CPU s"
            yield f"start with {len(shards):,} shards", cost
            default = DEFAULT_BUFFER if len(shards) > MANY_SHARDS else len(shards)
            held = min(len(shards), stage.data.shuffle_buffer_shards or default)
            memory += held * sum(array.nbytes for array in vars(index).values())
    if memory:
        yield "indexes of shards in a process", _gb(memory)


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 0.05e9 else f"{size / 1e9:.2g} GB"
