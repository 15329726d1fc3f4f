"""Bytes that one GPU holds while it trains, by part, under each strategy of `clips.parallel`.

What a step makes comes from `clips.planning.dry_run`; ``SHARDED`` states which lasting parts each strategy divides.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np

from clips.parallel.ddp import repeated_layers
from clips.parallel.distributed_config import ZERO_REDUCE_BUCKET_SIZE, Parallel
from clips.planning.dry_run import (
    BATCH_DIVISOR,
    Device,
    StepProfile,
    contrastive_flops,
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

_FLOAT32, _ADAM = 4, 8  # bytes a parameter: weights and gradients are float32, AdamW keeps two numbers
_FEW = 16  # more samples than these are extrapolated from one dry step, since bytes grow linearly
_PLAIN = 2 * BATCH_DIVISOR  # samples of that step: the fewest with more than one group of texts of similar length,
_CHECKPOINTED = 8 * BATCH_DIVISOR  # and with the most groups, of which one at a time is recomputed
_MAX_PAIRS = 2**25  # of samples in dry runs of the contrastive loss: some chunks of it
_ZERO3_LIVE = 1_000_000_000  # parameters that DeepSpeed's stage 3 keeps gathered from one use to the next
_ZERO3_PREFETCH = 50_000_000  # parameters in the buffer that it gathers the next ones into

Parts = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the work is distributed.

    Args:
        parallel: see `clips.parallel.distributed_config.DistributedConfig`.
        count: processes, one a GPU.
        checkpointing: activation checkpointing.
    """

    parallel: Parallel
    count: int
    checkpointing: bool


class MemoryModel:
    """The model of one training stage and its dry steps, each of which runs once.

    Args:
        config: of the stage.
        device: whose kernels are assumed.
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
        weights = list(self.model.parameters())
        self.parameters = sum(value.numel() for value in weights)
        self.trained = sum(value.numel() for value in weights if value.requires_grad)
        self.buffers = sum(value.nbytes for value in self.model.buffers())
        step = functools.partial(profile_step, self.model, device=device, bf16=bf16, caption_tokens=caption_tokens)
        self.step: Callable[[int, bool], StepProfile] = functools.cache(
            lambda samples, checkpointing: step(samples, checkpointing=checkpointing)
        )
        self._contrastive_peak: Callable[[int, int], int] = functools.cache(
            lambda samples, count: profile_contrastive_loss(self.model, samples, count)[1]
        )
        self._validation: Callable[[], Parts] = functools.cache(
            lambda: profile_validation(self.model, config.validation, device=device, bf16=bf16)
        )

    def flops(self, count: int) -> float:
        """Model FLOPs of a sample, its share of the contrastive loss over the global batch included."""
        local = self.config.global_batch_size // count
        return self.step(_PLAIN, False).flops_per_sample + contrastive_flops(self.model, local, count) / local

    def computed_flops(self, layout: Layout, *, in_parts: bool) -> float:
        """FLOPs that a GPU executes for a sample, recomputation included."""
        plain = self.step(_PLAIN, False)
        recomputed = self._large(layout.checkpointing).flops_per_sample - plain.flops_per_sample
        return self.flops(layout.count) + recomputed + (plain.forward_flops / plain.samples if in_parts else 0)

    def parts(self, layout: Layout, *, local: int, at_once: int) -> Parts:
        """Bytes of each part at the step's fullest instant, or those of validation if that takes more.

        Args:
            layout: how the work is distributed.
            local: a process's samples of a step.
            at_once: samples whose activations it holds at a time; fewer than ``local`` take two forward passes.
        """
        plain, sharded = self.step(_PLAIN, False), SHARDED[layout.parallel]
        lasting = self._lasting(layout) | {"batch": local * plain.inputs / plain.samples}
        gradient_share = layout.count if "gradients" in sharded else 1
        contrast = self._contrast(local, layout.count)
        if at_once >= local:
            moment = _fullest(*self._timeline(local, layout.checkpointing), gradient_share, contrast)
        else:
            features = 2 * local * self.model.model_cfg["embed_dim"] * (1 + len(self.model.recipe.encoded)) * _FLOAT32
            lasting["batch"] += features  # and their gradients
            # Of a part of a batch, the gradients exist already and the contrastive loss is over.
            moment = _fullest(*self._timeline(at_once, layout.checkpointing), math.inf, 0.0)
            if moment["copies"] + moment["activations"] < contrast:
                moment |= {"copies": 0.0, "activations": 0.0, "contrast": contrast}
        if at_once < local or layout.parallel == "zero3":  # whose gradients have memory of their own throughout
            moment["gradients"] = self.trained * _FLOAT32 / gradient_share
        validation = sum(self.validation(layout).values())
        if validation > sum(moment.values()):  # between two steps, whose tensors are gone
            gradients = moment["gradients"] if layout.parallel == "zero3" else 0.0
            return lasting | dict.fromkeys(moment, 0.0) | {"gradients": gradients, "validation": validation}
        return lasting | moment | {"validation": 0.0}

    def validation(self, layout: Layout) -> Parts:
        """Bytes of each part of what validation adds between two steps; none without a source to validate on.

        The "model" is a full one beside the training's, where that is sharded, or where an average is validated.
        """
        if self.config.validation.source is None:
            return {}
        copies = "parameters" in SHARDED[layout.parallel] or self.config.ema_decay is not None
        return self._validation() | {"model": float(self.parameters * _FLOAT32 + self.buffers) if copies else 0.0}

    def activation_bytes(self, checkpointing: bool) -> float:
        """Bytes that every further sample of a step takes."""
        return float(self._large(checkpointing).growth.max())

    def _lasting(self, layout: Layout) -> Parts:
        """Bytes that are held throughout a step."""
        unsharded = {
            "parameters": self.parameters * _FLOAT32,
            "optimizer": self.trained * _ADAM,
            "average": self.parameters * _FLOAT32 if self.config.ema_decay is not None else 0,
        }
        sharded = SHARDED[layout.parallel]
        parts = {name: size / (layout.count if name in sharded else 1) for name, size in unsharded.items()}
        if layout.parallel.startswith("zero"):  # DeepSpeed copies the shard that a process updates
            parts["optimizer"] += self.trained * _FLOAT32 / layout.count
        parts["parameters"] += self.buffers
        return parts | {"exchange": float(self._exchange_buffers(layout))}

    def _exchange_buffers(self, layout: Layout) -> int:
        """Bytes of the buffers of gradients and of gathered layers."""
        if layout.parallel == "ddp":
            return self.trained * _FLOAT32 if layout.count > 1 else 0
        if layout.parallel == "fsdp":  # this layer, the next, and a gradient
            layers = [sum(value.numel() for value in layer.parameters()) for layer in repeated_layers(self.model)] or [
                0
            ]
            return (self.parameters - sum(layers) + 3 * max(layers)) * _FLOAT32 if layout.count > 1 else 0
        if layout.parallel != "zero3":
            return ZERO_REDUCE_BUCKET_SIZE * _FLOAT32
        gathered = min(_ZERO3_LIVE, self.parameters) + min(_ZERO3_PREFETCH, self.parameters)
        return (ZERO_REDUCE_BUCKET_SIZE + gathered) * _FLOAT32

    def _contrast(self, local: int, count: int) -> float:
        """Bytes of the contrastive loss; linear between and beyond powers of two, which saves dry runs."""
        limit = math.isqrt(_MAX_PAIRS // count)
        less = min(1 << (local.bit_length() - 1), max(1, (1 << (limit.bit_length() - 1)) // 2))
        if local == less:
            return self._contrastive_peak(local, count)
        low, high = (self._contrastive_peak(size, count) for size in (less, 2 * less))
        return low + (local / less - 1) * (high - low)

    def _timeline(self, samples: int, checkpointing: bool) -> tuple[np.ndarray, int]:
        """The timeline of a step of so many samples, see `StepProfile`, and when its forward pass ends."""
        step = self.step(samples, checkpointing) if samples <= _FEW else self._large(checkpointing)
        return step.timeline_of(samples), step.forward_end

    def _large(self, checkpointing: bool) -> StepProfile:
        """The dry step from which those of many samples are extrapolated."""
        return self.step(_CHECKPOINTED if checkpointing else _PLAIN, checkpointing)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that ``fits``, a multiple of 8 above 8; 0 where not even 1 does."""
    tried = sorted({*range(1, min(8, limit) + 1), *range(8, limit + 1, 8), limit})
    return [0, *tried][bisect.bisect_left(tried, True, key=lambda number: not fits(number))]


def _fullest(timeline: np.ndarray, forward_end: int, gradient_share: float, contrast: float) -> Parts:
    """The instant at which a step holds most, the contrastive loss taking place when its forward pass ends."""
    timeline = timeline / [gradient_share, 1, 1]
    instant, at_end = timeline[int(timeline.sum(axis=1).argmax())], timeline[forward_end - 1]
    if at_end.sum() + contrast <= instant.sum():
        at_end, contrast = instant, 0.0
    return dict(zip(("gradients", "copies", "activations", "contrast"), [*at_end, contrast], strict=True))
