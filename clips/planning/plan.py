"""Memory, time, GPUs and storage of a training.

No training runs; the model has fake tensors (see `clips.planning.dry_run`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from pathlib import Path
from typing import Literal

import numpy as np

from clips.core.metrics_log import read_entries
from clips.data.remote_files import is_remote
from clips.data.sources import open_source
from clips.errors import UserError
from clips.planning import Cost
from clips.planning.hardware import GPUS, Gpu
from clips.planning.memory import SHARDED, Layout, MemoryModel, Parts, largest
from clips.planning.plan_config import TrainPlanConfig
from clips.planning.roofline import Kernels, KernelTrace, rates_of, roofline, trace_step
from clips.training.stages import stage_configs
from clips.training.train_config import EncoderTrainConfig

_GB = 1e9
_TRACED = (16, 256)  # samples of the rooflines; utilization hardly grows beyond


def plan_stages(config: TrainPlanConfig, training: EncoderTrainConfig) -> list[StagePlan]:
    """Return the stages of ``training``."""
    return [StagePlan(config, stage) for stage in stage_configs(training)]


def training_cost(config: TrainPlanConfig, training: EncoderTrainConfig, *, timed: bool = True) -> Cost:
    """Return the cost of a training as configured.

    Args:
        config: of the plan.
        training: the training.
        timed: whether the type of GPU is known; otherwise only storage is estimated.
    """
    stages = plan_stages(config, training)
    storage = [stage.storage() for stage in stages]
    disk = storage[-1]["encoder"]
    cost = Cost(
        basis="disk computed; no GPU is named, and no similar step has run",
        disk=disk,
        most=disk + max(each["checkpoints"] for each in storage),
    )
    if not timed:
        return cost
    speeds = [speed for stage in stages if (speed := stage.speed(stage.layout(config.num_gpus)))]
    if len(speeds) < len(stages):
        return dataclasses.replace(cost, basis=f"computed: not one sample fits on {config.gpu}")
    count = config.num_gpus
    needs_micro_batches, memory = False, 0.0
    for stage, speed in zip(stages, speeds, strict=True):
        local = stage.local(count)
        needs_micro_batches |= speed.at_once < local
        memory = max(memory, sum(stage.memory(stage.layout(count), local=local, at_once=speed.at_once).values()))
    sizes = ", ".join(str(speed.at_once) for speed in speeds)
    rates = ", ".join(dict.fromkeys(f"{speed.mfu:.0%}" for speed in speeds))
    hint = f", with micro_batch_size {sizes} in its stages" if needs_micro_batches else ""
    seconds = sum(speed.hours for speed in speeds) * 3600
    return dataclasses.replace(
        cost,
        basis=f"computed for {count} × {config.gpu} at {rates} of its peak{hint}, see clips plan",
        seconds=seconds,
        gpu_hours=seconds / 3600 * count,
        memory=memory,
    )


def resolve_mfu(config: TrainPlanConfig) -> float | None:
    """Return the measured utilization if there is one, else the assumed one; None for that of the roofline."""
    if config.metrics_file is None:
        return config.mfu
    path = Path(config.metrics_file)
    try:
        entries = read_entries(path)
        values = [float(entry["mfu"]) for entry in entries if "mfu" in entry]
    except (OSError, ValueError, TypeError):
        entries = []
    if not entries:
        raise UserError(f"metrics_file: {path}: expected the metrics.jsonl of a training") from None
    if not values:
        raise UserError(f"metrics_file: {path}: has no mfu; it is logged on GPUs that clips.planning.hardware knows")
    return statistics.median(values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """The speed of a stage.

    Args:
        at_once: samples of a GPU's micro-batch.
        mfu: utilization of a GPU while it computes.
        computing: seconds of a step's computation.
        samples_per_second: of all GPUs.
        slowest: samples per second if no communication overlaps with computation.
        hours: of the whole stage.
    """

    at_once: int
    mfu: float
    computing: float
    samples_per_second: float
    slowest: float
    hours: float


class StagePlan:
    """Estimates for one stage.

    Args:
        config: of the plan.
        stage: the config of the stage.
    """

    def __init__(self, config: TrainPlanConfig, stage: EncoderTrainConfig) -> None:
        self.config, self.stage, self.gpu, self.stated_mfu = config, stage, GPUS[config.gpu], resolve_mfu(config)
        self.precision: Literal["bf16", "fp32"] = "fp32" if stage.precision == "fp32" else "bf16"
        self.model = MemoryModel(stage, bf16=self.precision == "bf16", caption_tokens=config.mean_loss_tokens)
        self.steps = _steps(stage)
        self.at_once = functools.cache(self._at_once)
        self._trace = functools.cache(self._trace_step)

    def layout(self, count: int) -> Layout:
        """Return the stage's configured distribution on ``count`` GPUs."""
        distributed = self.stage.distributed
        interval, size = distributed.checkpointing_interval, distributed.shard_group_size
        if count % (size or 1):
            raise UserError(f"num_gpus: expected a multiple of distributed.shard_group_size {size}, got {count}")
        return Layout(
            parallel=distributed.strategy,
            count=count,
            checkpointing=interval if distributed.activation_checkpointing else 0,
            shard_group_size=size,
        )

    def memory(self, layout: Layout, *, local: int, at_once: int) -> Parts:
        """Return bytes by part, see `MemoryModel.parts`, with an allowance for uncounted memory."""
        parts = self.model.parts(layout, local=local, at_once=at_once)
        allowance = self.config.reserve_gb * _GB + self.config.fragmentation * sum(parts.values())
        return parts | {"allowance": allowance}

    def fits(self, layout: Layout, *, local: int, at_once: int) -> bool:
        """Whether the total is within the GPU's memory."""
        return sum(self.memory(layout, local=local, at_once=at_once).values()) <= self.gpu.memory

    def _at_once(self, layout: Layout) -> int:
        """Return samples of a micro-batch: the stage's setting, else the maximum that fits; 0 if none does."""
        local = self.local(layout.count)
        limit = min(self.stage.micro_batch_size or local, local)
        if self.fits(layout, local=local, at_once=limit):
            return limit
        if self.stage.micro_batch_size:
            return 0
        return largest(lambda size: self.fits(layout, local=local, at_once=size), local - 1)

    def largest_batch(self, layout: Layout) -> int:
        """Return the maximum number of samples per step of a GPU without micro-batches."""
        limit = self.gpu.memory / self.model.activation_bytes(layout.checkpointing)
        return largest(lambda size: self.fits(layout, local=size, at_once=size), int(limit))

    def local(self, count: int) -> int:
        """Return the samples per step of one GPU."""
        if self.stage.global_batch_size % count:
            raise UserError(
                f"num_gpus: expected a divisor of global_batch_size {self.stage.global_batch_size}, got {count}"
            )
        return self.stage.global_batch_size // count

    def speed(self, layout: Layout) -> Speed | None:
        """Return step time and derived estimates; None if not even one sample fits."""
        local, at_once = self.local(layout.count), self.at_once(layout)
        if not at_once:
            return None
        flops = self.model.computed_flops(layout, in_parts=at_once < local)
        mfu = self.mfu(at_once, checkpointing=layout.checkpointing)
        computing = local * flops / (self.gpu.peak(self.precision) * mfu)
        gradients, features = self.sending_seconds(layout, local)
        step = max(computing, gradients) + features  # sending gradients overlaps with computation, features do not
        return Speed(
            at_once=at_once,
            mfu=mfu,
            computing=computing,
            samples_per_second=self.stage.global_batch_size / step,
            slowest=self.stage.global_batch_size / (computing + (gradients + features)),
            hours=self.steps * step / 3600,
        )

    def mfu(self, samples: int, *, checkpointing: int) -> float:
        """Return the utilization of a GPU by a step of ``samples``: measured, stated, or the roofline's."""
        if self.stated_mfu is not None:
            return self.stated_mfu
        sizes = (min(samples, _TRACED[0]), _TRACED[1])
        totals = [self.roofline(size, checkpointing=checkpointing).values() for size in sizes]
        seconds, flops = (
            np.interp(samples, sizes, [sum(getattr(kernels, name) for kernels in each) for each in totals])
            for name in ("seconds", "flops")
        )
        return float(flops / seconds / self.gpu.peak(self.precision))

    def roofline(self, samples: int, *, checkpointing: int) -> dict[tuple[str, str], Kernels]:
        """Return the kernels of a step by phase and kind, see `clips.planning.roofline`."""
        rates = rates_of(self.gpu, self.precision)
        clipping = self.stage.optimizer.max_grad_norm is not None
        return roofline(self._trace(samples, checkpointing), self.model.trained, rates, clipping=clipping)

    def _trace_step(self, samples: int, checkpointing: int) -> KernelTrace:
        return trace_step(
            self.model.model,
            samples,
            bf16=self.precision == "bf16",
            checkpointing=checkpointing,
            caption_tokens=self.config.mean_loss_tokens,
            compiled=self.stage.distributed.torch_compile,
        )

    def bytes_sent(self, layout: Layout, local: int) -> tuple[float, float, float]:
        """Return bytes that a GPU sends per step by ring algorithms.

        These are gradients and gathered parameters, within each group that shares a set of shards; gradients between
        these groups; and features. An all-reduce sends 2 × (count - 1) / count of the total, an all-gather or
        reduce-scatter half of that.
        """
        gradients, copies = self.model.trained * 4, layout.count // layout.shards
        if "parameters" in SHARDED[layout.parallel]:
            within = _ring(layout.shards) * (self.model.gathered_bytes(layout.parallel) + gradients)
        else:
            within = 2 * _ring(layout.shards) * gradients
        texts = len(self.model.model.recipe.texts)
        towers = 1 + texts if texts else 0
        features = local * layout.count * self.model.model.model_cfg["embed_dim"] * towers * 4
        between = 2 * _ring(copies) * gradients / layout.shards
        return within, between, 2 * _ring(layout.count) * features

    def sending_seconds(self, layout: Layout, local: int) -> tuple[float, float]:
        """Return the time to send gradients and parameters, and features, at the data sheet's bandwidth."""
        within, between, features = self.bytes_sent(layout, local)
        shared = ring_bandwidth(self.gpu, layout.count, rings=layout.shards)
        weights = within / ring_bandwidth(self.gpu, layout.shards) + between / shared
        return weights, features / ring_bandwidth(self.gpu, layout.count)

    def storage(self) -> dict[str, float]:
        """Return bytes on disk: the encoder directory, and the peak of the checkpoints while one is written."""
        weights = self.model.parameters * 4 + self.model.buffers
        average = weights if self.stage.ema_decay is not None else 0
        checkpoint = weights + self.model.trained * 8 + average
        return {"encoder": weights, "checkpoints": checkpoint * (self.stage.save_total_limit + 1)}


def ring_bandwidth(gpu: Gpu, count: int, *, rings: int = 1) -> float:
    """Return bytes per second that a GPU sends in a ring of ``count`` GPUs; ``rings`` share a node's network cards."""
    return gpu.link if count <= gpu.per_node else min(gpu.link, gpu.network * max(1, gpu.per_node / rings))


def _ring(count: int) -> float:
    return (count - 1) / count


def _steps(stage: EncoderTrainConfig) -> int:
    if stage.max_steps is not None:
        return stage.max_steps
    samples = float(stage.max_samples or 0)
    if stage.num_epochs is not None:
        if any(is_remote(source.path) for source in stage.data.sources):
            raise UserError("num_epochs: expected max_samples or max_steps for a plan, because the data is remote")
        samples = stage.num_epochs * sum(len(open_source(source)) for source in stage.data.sources)
    return math.ceil(samples / stage.global_batch_size)


def data_bytes(config: TrainPlanConfig, training: EncoderTrainConfig) -> float | None:
    """Return bytes of the training data, as configured or if all of it is local."""
    if config.num_images is not None and config.bytes_per_image is not None:
        return config.num_images * config.bytes_per_image
    paths = [Path(source.path) for source in training.data.sources]
    if any(is_remote(str(path)) or not path.exists() for path in paths):
        return None
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)
