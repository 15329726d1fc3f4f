"""AdamW, and learning rates with warm-up and a schedule. Source: the authors' code [C] of `clips.method.recipes`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal

from clips.errors import UserError
from clips.ranges import FractionBelowOne, NonNegative, NonNegativeFloat, PositiveFloat, PositiveFraction

if TYPE_CHECKING:
    import torch


ScheduleName = Literal["cosine", "constant", "linear", "wsd"]
SCHEDULES: Mapping[ScheduleName, Callable[[float, float], float]] = {
    "cosine": lambda progress, decay: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress, decay: 1.0,
    "linear": lambda progress, decay: 1 - progress,
    "wsd": lambda progress, decay: min(1.0, (1 - progress) / decay),
}
"""Name → ratio of the peak learning rate, from the progress after the warm-up (0 to 1) and the part of it with decay.

As in open_clip (``cosine``, ``const``, ``const-cooldown``) and transformers (also ``linear``). One that depends on the
warm-up, as transformers' ``inverse_sqrt``, needs another argument from `scheduled_lr`.
"""
EITHER = {("learning_rate", "base_learning_rate"): 1e-3, ("warmup_ratio", "warmup_samples"): 0.05}
"""Fields that exclude each other → the first one's value if neither is set."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer.

    Args:
        learning_rate: at the end of warm-up; 1e-3 if neither it nor ``base_learning_rate`` is given.
        base_learning_rate: learning rate for a batch of 256 samples, scaled by global_batch_size / 256. The authors'
            ``base_lr``: 8e-6, and 4e-7 and 1e-7 in the later stages.
        warmup_ratio: ratio of the run with linear warm-up from 0. 0.05 if neither it nor ``warmup_samples`` is given.
        warmup_samples: the same in samples, rounded to whole steps.
        schedule: the learning rate after the warm-up: cosine and linear fall to 0; constant stays; wsd
            (warmup-stable-decay) stays and then falls linearly to 0.
        decay_ratio: of wsd: ratio of the run in which the learning rate falls.
        adam_beta2: AdamW's decay rate of the squared gradient.
        weight_decay: of the weight matrices; norms, biases, embeddings, positions and the logit scale have none.
        max_grad_norm: maximum gradient norm; null does not clip.
    """

    learning_rate: PositiveFloat | None = None
    base_learning_rate: PositiveFloat | None = None
    warmup_ratio: FractionBelowOne | None = None
    warmup_samples: NonNegative | None = None
    schedule: ScheduleName = "cosine"
    decay_ratio: PositiveFraction = 0.2
    adam_beta2: FractionBelowOne = 0.95
    weight_decay: NonNegativeFloat = 0.2
    max_grad_norm: PositiveFloat | None = None

    def __post_init__(self) -> None:
        for one, other in EITHER:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UserError(f"optimizer.{one}, optimizer.{other}: expected one of them, got both")
        if self.schedule != "wsd" and self.decay_ratio != OptimizerConfig.decay_ratio:
            raise UserError(f"optimizer.decay_ratio: expected none with schedule: {self.schedule}; wsd has one")

    def resolved(self) -> OptimizerConfig:
        """Return the config with defaults filled in."""
        missing = [pair for pair in EITHER if all(getattr(self, name) is None for name in pair)]
        defaults: dict[str, Any] = {pair[0]: EITHER[pair] for pair in missing}
        return dataclasses.replace(self, **defaults)

    def peak_rate(self, batch_size: int) -> float:
        """Return the learning rate at the end of warm-up, for steps of ``batch_size`` samples."""
        if self.base_learning_rate is not None:
            return self.base_learning_rate * batch_size / 256
        return float(self.resolved().learning_rate or 0.0)

    def warmup_steps(self, steps: int, batch_size: int) -> int:
        """Return the number of warm-up steps of a run of ``steps`` of ``batch_size`` samples.

        Raises:
            UserError: the run is not longer than its warm-up in samples.
        """
        if self.warmup_samples is None:
            return round((self.resolved().warmup_ratio or 0.0) * steps)
        warmup_steps = round(self.warmup_samples / batch_size)
        if warmup_steps >= max(1, steps):
            raise UserError(
                f"optimizer.warmup_samples: expected fewer than the {steps * batch_size} samples of the training, "
                f"got {self.warmup_samples}"
            )
        return warmup_steps


def build_optimizer(
    model: torch.nn.Module, config: OptimizerConfig, no_decay: Collection[str] = ()
) -> torch.optim.AdamW:
    """Return the optimizer of the trainable parameters of ``model``, without decay for ``no_decay``.

    Set its learning rate before each step, see `scheduled_lr`.
    """
    import torch

    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if name not in no_decay]
    undecayed = [parameter for name, parameter in trainable if name in no_decay]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    betas = (0.9, config.adam_beta2)  # CLIP, CLIPA, SigLIP and the authors have the same first and differ in the second
    return torch.optim.AdamW(groups, lr=config.learning_rate or 0.0, betas=betas, fused=True)


def scheduled_lr(step: int, steps: int, config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning rate of step ``step`` (from 0) of ``steps``: linear warm-up, then the schedule."""
    peak, warmup_steps = config.peak_rate(batch_size), config.warmup_steps(steps, batch_size)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    after_warmup = max(1, steps - warmup_steps)
    decay = max(1, round(config.decay_ratio * steps)) / after_warmup
    return peak * SCHEDULES[config.schedule]((step - warmup_steps) / after_warmup, decay)
