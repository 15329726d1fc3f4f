"""GPU memory of a training by part, under each strategy of `clips.parallel`.

The memory of a step comes from `clips.planning.dry_run`; ``SHARDED`` states the persistent parts that each strategy
shards.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np
from torch import nn

from clips.model import losses
from clips.model.layers import bf16_weights, repeated_layers
from clips.parallel.distributed_config import ZERO_REDUCE_BUCKET_SIZE, Parallel
from clips.parallel.fsdp import gathers_bf16
from clips.planning.dry_run import (
    BATCH_DIVISOR,
    Device,
    StepProfile,
    contrastive_flops,
    fake_batch,
    fake_model,
    profile_contrastive_loss,
    profile_step,
    profile_validation,
)
from clips.training.train_config import EncoderTrainConfig

PARALLELS: tuple[Parallel, ...] = get_args(Parallel)
SHARDED: dict[Parallel, frozenset[str]] = {
    "ddp": frozenset(),
    "fsdp": frozenset({"parameters", "gradients", "optimizer", "average"}),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"parameters", "gradients", "optimizer", "average"}),
}
"""Parts of which each process holds 1/count."""

_FLOAT32, _ADAM = 4, 8  # bytes per parameter: float32 weights and gradients, moments
_MAX_PROFILED = 16  # samples; larger steps are extrapolated from one profile, because bytes grow linearly
_SAMPLES = 2 * BATCH_DIVISOR  # of that profile: the minimum with more than one group of texts of similar length,
_CHECKPOINTED_SAMPLES = 8 * BATCH_DIVISOR  # and with the maximum of groups, which are recomputed one at a time
_MAX_PAIRS = {"cpu": 2**25, "cuda": 2**36}  # in profiles of the contrastive loss: several chunks of a CPU, all of a GPU
_ZERO3_LIVE = 1_000_000_000  # parameters that DeepSpeed's stage 3 does not release between two uses
_ZERO3_PREFETCH = 50_000_000  # parameters in its prefetch buffer

Parts = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The distribution of a training.

    Args:
        parallel: see `clips.parallel.distributed_config.DistributedConfig`.
        count: number of processes, one per GPU.
        checkpointing: interval of the layers whose activations are recomputed; 0 for none.
        shard_group_size: of fsdp, see `clips.parallel.distributed_config.DistributedConfig`.
    """

    parallel: Parallel
    count: int
    checkpointing: int
    shard_group_size: int | None = None

    @property
    def shards(self) -> int:
        """Number of processes that share a set of shards."""
        size = self.shard_group_size if self.parallel == "fsdp" else None
        return min(size or self.count, self.count)


class MemoryModel:
    """Memory and FLOPs of one training stage; each profile runs once.

    Args:
        config: of the stage.
        device: determines the kernels.
        bf16: activations in bfloat16.
        caption_tokens: see `clips.planning.dry_run.fake_batch`.
    """

    def __init__(
        self,
        config: EncoderTrainConfig,
        *,
        device: Device = "cuda",
        bf16: bool = True,
        caption_tokens: int | None = None,
    ) -> None:
        self.config = config
        self.model = fake_model(config.model, config.recipe)
        self.device, self.caption_tokens = device, caption_tokens
        self.copies = 2 if device == "cuda" else 0  # of a batch's images in uint8: this step's and the next one's
        weights = list(self.model.parameters())
        self.parameters = sum(value.numel() for value in weights)
        self.trained = sum(value.numel() for value in weights if value.requires_grad)
        self.buffers = sum(value.nbytes for value in self.model.buffers())
        self._bf16 = frozenset(bf16_weights(self.model)) if bf16 and gathers_bf16() else frozenset()
        step = functools.partial(profile_step, self.model, device=device, bf16=bf16, caption_tokens=caption_tokens)
        self.step: Callable[[int, int], StepProfile] = functools.cache(
            lambda samples, checkpointing: step(samples, checkpointing=checkpointing)
        )
        self._contrastive_peak: Callable[[int, int], int] = functools.cache(
            lambda samples, count: profile_contrastive_loss(self.model, samples, count, device=device)[1]
        )
        self._validation: Callable[[], Parts] = functools.cache(
            lambda: profile_validation(self.model, config.validation, device=device, bf16=bf16)
        )

    def flops(self, count: int) -> float:
        """Return model FLOPs per sample, including its part of the contrastive loss over the global batch."""
        local = self.config.global_batch_size // count
        return self.step(_SAMPLES, 0).flops_per_sample + contrastive_flops(self.model, local, count) / local

    def computed_flops(self, layout: Layout, *, in_parts: bool) -> float:
        """Return FLOPs that a GPU executes per sample, including recomputation."""
        plain = self.step(_SAMPLES, 0)
        recomputed = self._large(layout.checkpointing).flops_per_sample - plain.flops_per_sample
        twice = in_parts and bool(self.model.recipe.encoded)  # without a contrast the features are computed once
        return self.flops(layout.count) + recomputed + (plain.feature_flops / plain.samples if twice else 0)

    def parts(self, layout: Layout, *, local: int, at_once: int) -> Parts:
        """Return bytes by part at the peak of a step, or of validation if that is higher.

        Args:
            layout: the distribution of the training.
            local: samples per step of one process.
            at_once: samples of a micro-batch; fewer than ``local`` take two forward passes.
        """
        plain, sharded = self.step(_SAMPLES, 0), SHARDED[layout.parallel]
        images = self.copies * 3 * self.model.image_size**2
        persistent = self._persistent_parts(layout) | {"batch": local * (plain.inputs / plain.samples + images)}
        gradient_shards = layout.shards if "gradients" in sharded else 1
        contrast = self._contrast(local, layout.count)
        if at_once >= local:
            peak = _peak(*self._timeline(local, layout), gradient_shards, contrast)
        else:
            outputs = 1 + len(self.model.recipe.encoded) if self.model.recipe.encoded else 0
            features = 2 * local * self.model.model_cfg["embed_dim"] * outputs * _FLOAT32
            persistent["batch"] += features  # and their gradients
            # With micro-batches, gradients exist throughout and the contrastive loss is computed before.
            peak = _peak(*self._timeline(at_once, layout), math.inf, 0.0)
            if peak["copies"] + peak["activations"] < contrast:
                peak |= {"copies": 0.0, "activations": 0.0, "contrast": contrast}
        if at_once < local or layout.parallel == "zero3":  # ZeRO-3 allocates gradients once for all steps
            peak["gradients"] = self.trained * _FLOAT32 / gradient_shards
        validation = sum(self.validation(layout).values())
        if validation > sum(peak.values()):  # validation runs between steps, without their tensors
            gradients = peak["gradients"] if layout.parallel == "zero3" else 0.0
            return persistent | dict.fromkeys(peak, 0.0) | {"gradients": gradients, "validation": validation}
        return persistent | peak | {"validation": 0.0}

    def validation(self, layout: Layout) -> Parts:
        """Return bytes by part that validation adds between two steps; none without validation data.

        "model" is an unsharded copy, if the training's model is sharded, or an EMA is validated.
        """
        if self.config.validation.source is None:
            return {}
        copies = "parameters" in SHARDED[layout.parallel] or self.config.ema_decay is not None
        return self._validation() | {"model": float(self.parameters * _FLOAT32 + self.buffers) if copies else 0.0}

    def activation_bytes(self, checkpointing: int) -> float:
        """Return bytes per additional sample of a step."""
        return float(self._large(checkpointing).growth.max())

    def _persistent_parts(self, layout: Layout) -> Parts:
        unsharded = {
            "parameters": self.parameters * _FLOAT32,
            "optimizer": self.trained * _ADAM,
            "average": self.parameters * _FLOAT32 if self.config.ema_decay is not None else 0,
        }
        sharded = SHARDED[layout.parallel]
        parts = {name: size / (layout.shards if name in sharded else 1) for name, size in unsharded.items()}
        if layout.parallel.startswith("zero"):  # DeepSpeed copies the shard that a process updates
            parts["optimizer"] += self.trained * _FLOAT32 / layout.count
        parts["parameters"] += self.buffers
        return parts | {"exchange": float(self._exchange_buffers(layout))}

    def gathered_bytes(self, parallel: Parallel) -> int:
        """Return bytes of the weights that a strategy with sharded ones gathers in both passes of a step."""
        if parallel != "fsdp":
            return 2 * self.parameters * _FLOAT32
        others, layers = self._fsdp_bytes()
        return others + 2 * sum(layers)  # only layers are released after the forward pass

    def _fsdp_bytes(self) -> tuple[int, list[int]]:
        """Return bytes of the gathered weights outside of layers, and of each layer."""
        of_bf16 = dict.fromkeys(self._bf16, _FLOAT32 // 2)

        def size(module: nn.Module) -> int:
            return sum(value.numel() * of_bf16.get(value, _FLOAT32) for value in module.parameters())

        layers = [size(layer) for layer in repeated_layers(self.model)]
        return size(self.model) - sum(layers), layers

    def _exchange_buffers(self, layout: Layout) -> int:
        """Return bytes of the buffers for gradients and gathered layers."""
        if layout.parallel == "ddp":
            return self.trained * _FLOAT32 if layout.count > 1 else 0
        if layout.parallel == "fsdp":  # this layer, the next, and a gradient
            others, layers = self._fsdp_bytes()
            sizes = [sum(value.numel() for value in layer.parameters()) for layer in repeated_layers(self.model)]
            gradient = max(sizes, default=0) * _FLOAT32
            return others + 2 * max(layers, default=0) + gradient if layout.count > 1 else 0
        if layout.parallel != "zero3":
            return ZERO_REDUCE_BUCKET_SIZE * _FLOAT32
        gathered = min(_ZERO3_LIVE, self.parameters) + min(_ZERO3_PREFETCH, self.parameters)
        return (ZERO_REDUCE_BUCKET_SIZE + gathered) * _FLOAT32

    def _contrast(self, local: int, count: int) -> float:
        """Return bytes of the contrastive loss, interpolated between powers of two to save profiles."""
        limit = math.isqrt(_MAX_PAIRS[self.device] // count)
        lower = min(1 << (local.bit_length() - 1), max(1, (1 << (limit.bit_length() - 1)) // 2))
        if local == lower:
            return self._contrastive_peak(local, count)
        low, high = (self._contrastive_peak(size, count) for size in (lower, 2 * lower))
        return low + (local / lower - 1) * (high - low)

    def _timeline(self, samples: int, layout: Layout) -> tuple[np.ndarray, int]:
        """Return the timeline of a step, see `StepProfile`, and the end of its forward pass."""
        checkpointing = layout.checkpointing
        step = self.step(samples, checkpointing) if samples <= _MAX_PROFILED else self._large(checkpointing)
        timeline = step.scaled_timeline(samples)
        if layout.parallel == "fsdp" and self._bf16:  # these weights are gathered in bf16 instead of copied
            gathered = sum(value.numel() * _FLOAT32 // 2 for value in self._bf16 if value.requires_grad)
            timeline[:, 1] *= max(0.0, 1 - gathered / max(1.0, timeline[:, 1].max()))
        return timeline, step.forward_end

    def _large(self, checkpointing: int) -> StepProfile:
        """Return the profile from which larger steps are extrapolated."""
        samples = _CHECKPOINTED_SAMPLES if checkpointing else _SAMPLES
        if self.model.captioner is not None:  # more than a chunk of the caption loss, whose memory then stops growing
            tokens = int(fake_batch(self.model, 1, self.caption_tokens)["target_mask"].sum())
            chunks = math.ceil((losses.GPU_CHUNK_ROWS + 1) / max(1, tokens) / BATCH_DIVISOR)
            samples = max(samples, chunks * BATCH_DIVISOR)
        return self.step(samples, checkpointing)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """Return the largest number up to ``limit`` that ``fits``, above 8 a multiple of 8; 0 if 1 does not fit."""
    candidates = sorted({*range(1, min(8, limit) + 1), *range(8, limit + 1, 8), limit})
    return [0, *candidates][bisect.bisect_left(candidates, True, key=lambda number: not fits(number))]


def _peak(timeline: np.ndarray, forward_end: int, gradient_shards: float, contrast: float) -> Parts:
    """Return bytes by part at the peak of a step, with the contrastive loss at the end of its forward pass."""
    timeline = timeline / [gradient_shards, 1, 1]
    peak, at_loss = timeline[int(timeline.sum(axis=1).argmax())], timeline[forward_end - 1]
    if at_loss.sum() + contrast <= peak.sum():
        at_loss, contrast = peak, 0.0
    return dict(zip(("gradients", "copies", "activations", "contrast"), [*at_loss, contrast], strict=True))
