"""What a training will need before it costs anything: memory, time, GPUs, storage.

Nothing is trained and no data is opened; the model is built without content (see `clips.planning.dryrun`).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from clips.core.artifact import say
from clips.data.files import is_remote
from clips.data.sources import open_source
from clips.errors import UserError
from clips.jsontext import parse_json
from clips.planning.config import PlanConfig
from clips.planning.footprint import DIVIDED, PARALLELS, Allowance, Rehearsal, Spread, largest
from clips.planning.hardware import GPUS, Gpu
from clips.training.config import TrainConfig
from clips.training.stages import stage_configs
from clips.training.start import learns_statistics

_COUNTS = (8, 16, 32, 64, 128, 256, 512)
_GB = 1e9


def make_plan(config: PlanConfig, training: TrainConfig) -> dict[str, Any]:
    """The plan as plain data; sizes in bytes, times in seconds unless a name says otherwise.

    Args:
        config: of the plan.
        training: what ``config.training`` holds.
    """
    stages, told = [StagePlan(config, stage) for stage in stage_configs(training)], []
    for number, stage in enumerate(stages, 1):
        say(f"{config.training}: going through stage {number} of {len(stages)} without its numbers …")
        told.append(stage.tell(config.count))
    return {
        "gpu": {"kind": config.gpu, "count": config.count, **dataclasses.asdict(GPUS[config.gpu])},
        "mfu": mfu_of(config),
        "mfu_from": config.measured or "assumed",
        "stages": told,
        "training_data": _data_bytes(config, training),
        "clusters": [cluster(stages, count) for count in sorted({*_COUNTS, config.count})],
        "basis": list(_basis(config)),
    }


def mfu_of(config: PlanConfig) -> float:
    """The utilisation to reckon with: measured where there is a measurement."""
    if config.measured is None:
        return config.mfu
    path = Path(config.measured)
    try:
        entries = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        values = [float(entry["mfu"]) for entry in entries if "mfu" in entry]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"measured: {path}: expected the metrics.jsonl of a training") from None
    if not values:
        raise UserError(f"measured: {path}: has no mfu; it is logged on GPUs that clips.planning.hardware knows")
    return statistics.median(values)


class StagePlan:
    """One stage: its model's dry steps, and what follows from them.

    Args:
        config: of the plan.
        stage: of the stage's training.
    """

    def __init__(self, config: PlanConfig, stage: TrainConfig) -> None:
        self.config, self.stage, self.gpu = config, stage, GPUS[config.gpu]
        self.precision: Literal["bf16", "fp32"] = "fp32" if stage.precision == "fp32" else "bf16"
        self.rehearsal = Rehearsal(stage, bf16=self.precision == "bf16", caption_tokens=config.caption_tokens)
        self.allowance = Allowance(fixed=config.reserve_gb * _GB, share=config.fragmentation)
        self.steps = _steps(stage)

    def spread(self, count: int) -> Spread:
        """The stage's own way of spreading the work, over ``count`` GPUs."""
        scale = self.stage.scale
        return Spread(parallel=scale.parallel, count=count, checkpointing=scale.activation_checkpointing)

    def memory(self, spread: Spread, *, local: int, at_once: int) -> dict[str, float]:
        """Bytes of each part, see `Rehearsal.footprint`."""
        return self.rehearsal.footprint(spread, local=local, at_once=at_once, allowance=self.allowance)

    def fits(self, spread: Spread, *, local: int, at_once: int) -> bool:
        """Whether that is within the GPU's memory."""
        return sum(self.memory(spread, local=local, at_once=at_once).values()) <= self.gpu.memory

    def at_once(self, spread: Spread) -> int:
        """Samples whose activations a GPU holds at a time: as the stage says, else as many as fit; 0 if none does."""
        local = self.local(spread.count)
        limit = min(self.stage.micro_batch or local, local)
        if self.fits(spread, local=local, at_once=limit):
            return limit
        return 0 if self.stage.micro_batch else self._largest_part(spread, local)

    def _largest_part(self, spread: Spread, local: int) -> int:
        return largest(lambda size: self.fits(spread, local=local, at_once=size), local - 1)

    def largest_batch(self, spread: Spread) -> int:
        """The most samples a GPU can take in a step whose activations it holds all at once."""
        most = self.gpu.memory / self.rehearsal.activation_bytes(spread.checkpointing)
        return largest(lambda size: self.fits(spread, local=size, at_once=size), int(most))

    def local(self, count: int) -> int:
        """Samples of a GPU's step."""
        if self.stage.batch_size % count:
            raise UserError(f"count: expected a divisor of batch_size {self.stage.batch_size}, got {count}")
        return self.stage.batch_size // count

    def speed(self, spread: Spread) -> dict[str, float] | None:
        """Time of a step and what follows; None where not one sample fits."""
        local, at_once = self.local(spread.count), self.at_once(spread)
        if not at_once:
            return None
        flops = self.rehearsal.computed_flops(spread, in_parts=at_once < local)
        computing = local * flops / (self.gpu.peak(self.precision) * mfu_of(self.config))
        gradients, features = self._sent(spread, local)
        sending = [bytes_sent / bandwidth(self.gpu, spread.count) for bytes_sent in (gradients, features)]
        step = max(computing, sending[0]) + sending[1]  # gradients travel while others are computed, features cannot
        hours = self.steps * step / 3600
        return {
            "samples_at_once": at_once,
            "computed_flops_per_sample": flops,
            "computing_seconds": computing,
            "sent_bytes": gradients + features,
            "sending_seconds": sum(sending),
            "step_seconds": step,
            "samples_per_second": self.stage.batch_size / step,
            "samples_per_second_nothing_overlapped": self.stage.batch_size / (computing + sum(sending)),
            "hours": hours,
            "gpu_hours": hours * spread.count,
        }

    def _sent(self, spread: Spread, local: int) -> tuple[float, float]:
        """Bytes that a GPU sends in a step by ring algorithms: for gradients and parameters, and for features.

        All-reduce 2 × and all-gather or reduce-scatter 1 × (count - 1) / count of the whole.
        """
        rounds = 3 if "parameters" in DIVIDED[spread.parallel] else 2  # gather twice and scatter, or reduce
        ring = (spread.count - 1) / spread.count
        kinds = 1 + len(self.rehearsal.model.recipe.spec.texts)
        features = local * spread.count * self.rehearsal.model.model_cfg["embed_dim"] * kinds * 4
        return rounds * ring * self.rehearsal.trained * 4, 3 * ring * features

    def storage(self) -> dict[str, float]:
        """Bytes on disk: the encoder directory, and the most that checkpoints take, one being written."""
        weights = self.rehearsal.parameters * 4 + self.rehearsal.buffers
        average = weights if self.stage.average is not None else 0
        checkpoint = weights + self.rehearsal.trained * 8 + average
        kept = self.stage.keep_checkpoints
        return {"encoder": weights, "checkpoint": checkpoint, "checkpoints": checkpoint * (kept + 1)}

    def tell(self, count: int) -> dict[str, Any]:
        """Everything about the stage on ``count`` GPUs."""
        rehearsal, local, own = self.rehearsal, self.local(count), self.spread(count)
        at_once = self.at_once(own) or 1
        parts = {name: _count(part) for name, part in rehearsal.model.named_children() if _count(part)}
        memory = {}
        for parallel in PARALLELS:
            other = dataclasses.replace(own, parallel=parallel)
            again = dataclasses.replace(other, checkpointing=True)
            plain = dataclasses.replace(other, checkpointing=False)
            memory[parallel] = {
                "parts": {name: float(size) for name, size in self.memory(other, local=local, at_once=at_once).items()},
                "largest_batch": self.largest_batch(plain),
                "largest_batch_checkpointed": self.largest_batch(again),
            }
        return {
            "output": self.stage.output,
            "image_size": rehearsal.model.image_size,
            "samples": self.steps * self.stage.batch_size,
            "steps": self.steps,
            "batch_size": self.stage.batch_size,
            "samples_per_gpu": local,
            "samples_at_once": self.at_once(own),
            "may_take_parts": self.stage.micro_batch is None and not learns_statistics(rehearsal.model),
            "precision": self.precision,
            "parallel": own.parallel,
            "activation_checkpointing": own.checkpointing,
            "parameters": {**parts, "all": rehearsal.parameters, "trained": rehearsal.trained},
            "flops_per_sample": rehearsal.flops(count),
            "memory": memory,
            "validation": rehearsal.validation(own),
            "speed": self.speed(own),
            "storage": self.storage(),
        }


def cluster(stages: list[StagePlan], count: int) -> dict[str, Any]:
    """What the whole training takes on ``count`` GPUs; "hours" None where a stage does not fit or divide."""
    if any(stage.stage.batch_size % count for stage in stages):
        return {"count": count, "hours": None, "reason": "the batch cannot be divided by it"}
    speeds = [stage.speed(stage.spread(count)) for stage in stages]
    if None in speeds:
        return {"count": count, "hours": None, "reason": "not enough memory"}
    found = [speed for speed in speeds if speed is not None]
    return {
        "count": count,
        "hours": sum(speed["hours"] for speed in found),
        "gpu_hours": sum(speed["gpu_hours"] for speed in found),
        "samples_at_once": [speed["samples_at_once"] for speed in found],
        "samples_per_gpu": [stage.local(count) for stage in stages],
        "samples_per_second": [speed["samples_per_second"] for speed in found],
    }


def bandwidth(gpu: Gpu, count: int) -> float:
    """Bytes a second that each GPU of a ring over ``count`` GPUs sends, machines with all their network cards."""
    return gpu.link if count <= gpu.per_machine else min(gpu.link, gpu.network * gpu.per_machine)


def _steps(stage: TrainConfig) -> int:
    if stage.steps is not None:
        return stage.steps
    samples = float(stage.samples or 0)
    if stage.epochs is not None:
        if any(is_remote(source.path) for source in stage.data.sources):
            raise UserError("epochs: expected samples or steps for a plan, since the data is not here to be counted")
        samples = stage.epochs * sum(len(open_source(source)) for source in stage.data.sources)
    return math.ceil(samples / stage.batch_size)


def _data_bytes(config: PlanConfig, training: TrainConfig) -> float | None:
    """Bytes of the training data, as told or where all of it is on this machine."""
    if config.pictures is not None and config.bytes_per_picture is not None:
        return config.pictures * config.bytes_per_picture
    paths = [Path(source.path) for source in training.data.sources]
    if any(is_remote(str(path)) or not path.exists() for path in paths):
        return None
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _count(part: Any) -> int:
    return sum(value.numel() for value in part.parameters())


def _basis(config: PlanConfig) -> Iterator[str]:
    """What the numbers rest on, for readers."""
    yield (
        "Counted on the model itself: parameters, FLOPs, and the tensors of a step, texts without padding. "
        "Checked against measurements on CPU, with one and two processes: tensors within 10 %; a CPU process held up "
        "to 23 % more than planned (docs/performance.md)."
    )
    source = f"the median of {config.measured}" if config.measured else "assumed; --measured takes that of a run"
    yield f"MFU {mfu_of(config):.0%}: {source}."
    yield (
        f"Allowed for, not measured: {config.reserve_gb:g} GB for context and libraries, {config.fragmentation:.0%} "
        "for gaps. Not reckoned with: torch.compile, waiting for data, failures, the time of validation."
    )
    yield (
        "Reckoned, not measured: the time of more than one GPU: ring algorithms at the data sheet's bandwidth, "
        "gradients sent while others are computed. Everything up to 512 GPUs is extrapolated."
    )
