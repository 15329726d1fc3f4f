"""What one GPU holds while it trains, part by part, under each way of spreading the work.

What a step makes comes from `clips.planning.dryrun`; ``DIVIDED`` tells how parameters, gradients and states are.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import get_args

import numpy as np

from clips.parallel.base import layers_of
from clips.parallel.config import REDUCE_BUCKET, Parallel
from clips.planning.dryrun import (
    SIGN,
    Contrast,
    Device,
    DryValidation,
    Step,
    contrast_flops,
    dry_contrast,
    dry_step,
    dry_validation,
    fake_model,
)
from clips.training.config import TrainConfig

PARALLELS: tuple[Parallel, ...] = get_args(Parallel)
DIVIDED: dict[Parallel, frozenset[str]] = {
    "ddp": frozenset(),
    "fsdp": frozenset({"parameters", "gradients", "optimizer", "average"}),
    "zero1": frozenset({"optimizer"}),
    "zero2": frozenset({"optimizer", "gradients"}),
    "zero3": frozenset({"parameters", "gradients", "optimizer", "average"}),
}
"""Which parts each process holds 1/count of."""

_FLOAT32, _ADAM = 4, 8  # bytes a parameter: weights and gradients are float32, AdamW keeps two numbers
_FEW = 16  # more samples than these are told from one dry step, since bytes grow linearly
_PLAIN = 2 * SIGN  # of so many samples: the fewest with more than one group of texts of like length,
_AGAIN = 8 * SIGN  # and with the most groups, of which one at a time is computed again
_MOST_PAIRS = 2**25  # of samples in dry runs of the contrastive loss: some chunks of it
_MOST_LIVE = 1_000_000_000  # parameters that DeepSpeed's stage 3 keeps put together from one use to the next
_GATHERED = 50_000_000  # parameters in the buffer that it gathers the next ones into (its prefetch bucket)
_OWN_PLACE = frozenset({"zero3"})  # for a process's share of the gradients, there throughout
_OWN_MASTER = frozenset({"zero1", "zero2", "zero3"})  # DeepSpeed's: another copy of the share that a process updates

Parts = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """How the work is spread.

    Args:
        parallel: see `clips.parallel.config.ScaleConfig`.
        count: processes, one a GPU.
        checkpointing: whether layers are computed again in the backward pass.
    """

    parallel: Parallel
    count: int
    checkpointing: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allowance:
    """What cannot be counted: ``fixed`` bytes (context, libraries, NCCL) and a ``share`` of all tensors (gaps)."""

    fixed: float = 0.0
    share: float = 0.0


class Rehearsal:
    """The model of one training stage and its dry steps, each of which is done once.

    Args:
        config: of the stage.
        device: whose kernels are taken.
        bf16: activations in bfloat16.
        caption_tokens: counted labels of a sample's caption; all places of the captioner if not given.
    """

    def __init__(
        self, config: TrainConfig, *, device: Device = "cuda", bf16: bool = True, caption_tokens: int | None = None
    ) -> None:
        self.config, self.device, self.bf16, self.caption_tokens = config, device, bf16, caption_tokens
        self.model = fake_model(config.model, config.recipe)
        weights = list(self.model.parameters())
        self.parameters = sum(value.numel() for value in weights)
        self.trained = sum(value.numel() for value in weights if value.requires_grad)
        self.buffers = sum(value.nbytes for value in self.model.buffers())
        in_layers = [sum(value.numel() for value in layer.parameters()) for layer in layers_of(self.model)] or [0]
        self.largest_layer, self.outside_layers = max(in_layers), self.parameters - sum(in_layers)
        self.step: Callable[[int, bool], Step] = functools.cache(self._step)
        self.contrast: Callable[[int, int], Contrast] = functools.cache(functools.partial(dry_contrast, self.model))
        self._dry_validation: Callable[[], DryValidation] = functools.cache(
            functools.partial(dry_validation, self.model, config.validation, device=device, bf16=bf16)
        )

    def _step(self, samples: int, checkpointing: bool) -> Step:
        return dry_step(
            self.model,
            samples,
            device=self.device,
            bf16=self.bf16,
            checkpointing=checkpointing,
            caption_tokens=self.caption_tokens,
        )

    def flops(self, count: int) -> float:
        """Model FLOPs of a sample, its share of the contrastive loss over the global batch included."""
        step, local = self.step(_PLAIN, False), self.config.batch_size // count
        return step.flops_of_sample + contrast_flops(self.model, local, count) / local

    def computed_flops(self, spread: Spread, *, in_parts: bool) -> float:
        """FLOPs that a GPU really computes for a sample: some of them twice, to save memory."""
        plain = self.step(_PLAIN, False)
        again = self._large(spread.checkpointing).flops_of_sample - plain.flops_of_sample
        return self.flops(spread.count) + again + (plain.forward_flops / plain.samples if in_parts else 0)

    def footprint(self, spread: Spread, *, local: int, at_once: int, allowance: Allowance) -> Parts:
        """Bytes of each part at the step's fullest instant.

        Args:
            spread: how the work is spread.
            local: a process's samples of a step.
            at_once: samples whose activations it holds at a time; fewer than ``local`` take two forward passes.
            allowance: what is added for what cannot be counted.
        """
        lasting = self._lasting(spread) | {"batch": local * self._input_bytes()}
        share = spread.count if "gradients" in DIVIDED[spread.parallel] else 1
        contrast = self._contrast(local, spread.count)
        if at_once >= local:
            moment = _fullest(*self._timeline(local, spread.checkpointing), share, contrast)
        else:
            features = 2 * local * self.model.model_cfg["embed_dim"] * (1 + len(self.model.recipe.encoded)) * _FLOAT32
            lasting["batch"] += features  # and their gradients
            moment = _fullest_part(self._timeline(at_once, spread.checkpointing)[0])
            moment["gradients"] = self.trained * _FLOAT32 / share
            if moment["copies"] + moment["activations"] < contrast:
                moment |= {"copies": 0.0, "activations": 0.0, "contrast": contrast}
        if spread.parallel in _OWN_PLACE:
            moment["gradients"] = self.trained * _FLOAT32 / share
        parts = lasting | moment | {"validation": 0.0}
        if sum(self.validation(spread).values()) > sum(moment.values()):  # between two steps, whose tensors are gone
            gradients = moment["gradients"] if spread.parallel in _OWN_PLACE else 0.0
            parts |= dict.fromkeys(moment, 0.0) | {"gradients": gradients}
            parts["validation"] = sum(self.validation(spread).values())
        return parts | {"allowance": allowance.fixed + allowance.share * sum(parts.values())}

    def validation(self, spread: Spread) -> Parts:
        """Bytes of each part of what validation adds between two steps; none without a source to validate on.

        The "model" is a whole one beside the training's, where that is in shards, or where an average is validated.
        """
        if self.config.validation.source is None:
            return {}
        found = self._dry_validation()
        apart = "parameters" in DIVIDED[spread.parallel] or self.config.average is not None
        return {
            "features": float(found.features),
            "similarities and activations": float(found.peak - found.features),
            "model": float(self.parameters * _FLOAT32 + self.buffers) if apart else 0.0,
        }

    def activation_bytes(self, checkpointing: bool) -> float:
        """Bytes that every further sample of a step takes."""
        return float(self._large(checkpointing).growth.max())

    def _lasting(self, spread: Spread) -> Parts:
        """What is there throughout a step."""
        divided = DIVIDED[spread.parallel]
        whole = {
            "parameters": self.parameters * _FLOAT32,
            "optimizer": self.trained * _ADAM,
            "average": self.parameters * _FLOAT32 if self.config.average is not None else 0,
        }
        parts = {name: size / (spread.count if name in divided else 1) for name, size in whole.items()}
        if spread.parallel in _OWN_MASTER:
            parts["optimizer"] += self.trained * _FLOAT32 / spread.count
        parts["parameters"] += self.buffers
        return parts | {"exchange": float(self._exchanged(spread))}

    def _exchanged(self, spread: Spread) -> int:
        """Bytes of what processes pack for each other: gradients, and layers that are put together."""
        if spread.parallel == "ddp":
            return self.trained * _FLOAT32 if spread.count > 1 else 0
        if spread.parallel == "fsdp":  # this layer, the next, and a gradient
            return (self.outside_layers + 3 * self.largest_layer) * _FLOAT32 if spread.count > 1 else 0
        if spread.parallel != "zero3":
            return REDUCE_BUCKET * _FLOAT32
        together = min(_MOST_LIVE, self.parameters) + min(_GATHERED, self.parameters)
        return (REDUCE_BUCKET + together) * _FLOAT32

    def _contrast(self, local: int, count: int) -> float:
        """Bytes of the contrastive loss; linear between and beyond powers of two, which spares dry runs."""
        most = math.isqrt(_MOST_PAIRS // count)
        less = min(1 << (local.bit_length() - 1), max(1, (1 << (most.bit_length() - 1)) // 2))
        if local == less:
            return self.contrast(local, count).peak
        low, high = (self.contrast(size, count).peak for size in (less, 2 * less))
        return low + (local / less - 1) * (high - low)

    def _input_bytes(self) -> float:
        step = self.step(_PLAIN, False)
        return step.inputs / step.samples

    def _timeline(self, samples: int, checkpointing: bool) -> tuple[np.ndarray, int]:
        """What a step of so many samples holds over time, see `Step`, and its turn."""
        step = self.step(samples, checkpointing) if samples <= _FEW else self._large(checkpointing)
        return step.timeline_of(samples), step.turn

    def _large(self, checkpointing: bool) -> Step:
        """The dry step from which those of many samples are told."""
        return self.step(_AGAIN if checkpointing else _PLAIN, checkpointing)


def largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to ``limit`` that ``fits``, a multiple of 8 above 8; 0 where not even 1 does."""
    tried = sorted({*range(1, min(8, limit) + 1), *range(8, limit + 1, 8), limit})
    return [0, *tried][bisect.bisect_left(tried, True, key=lambda number: not fits(number))]


def _fullest(timeline: np.ndarray, turn: int, gradient_share: int, contrast: float) -> Parts:
    """The instant at which a step holds most, the contrastive loss taking place at its turn."""
    timeline = timeline / [gradient_share, 1, 1]
    instant = int(timeline.sum(axis=1).argmax())
    at_turn = timeline[turn - 1]
    if at_turn.sum() + contrast > timeline[instant].sum():
        return dict(zip(("gradients", "copies", "activations", "contrast"), [*at_turn, contrast], strict=True))
    return dict(zip(("gradients", "copies", "activations", "contrast"), [*timeline[instant], 0.0], strict=True))


def _fullest_part(timeline: np.ndarray) -> Parts:
    """The same for a part of a batch, where gradients are there already and the contrastive loss is over."""
    held = timeline[:, 1:]
    copies, activations = held[int(held.sum(axis=1).argmax())]
    return {"gradients": 0.0, "copies": copies, "activations": activations, "contrast": 0.0}
