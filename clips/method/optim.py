"""AdamW with warm-up and cosine decay, as CLIPS trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from clips.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer.

    Args:
        learning_rate: at the end of warm-up. The authors use a base rate × batch size / 256.
        warmup: the share of the run during which the rate climbs from 0; cosine to 0 follows.
        betas: Adam's averages of the gradient and of its square.
        weight_decay: on the matrices of products; never on norms, biases, embeddings, positions or the temperature [C].
        clip_gradient: scale a gradient of greater norm down to this norm; null never does.
        skip_spikes: leave the weights alone in a step whose gradient has more than this many times the median norm of
            the last hundred, and stop after ten such steps in a row; null follows every gradient.
    """

    learning_rate: float = 1e-3
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.2
    clip_gradient: float | None = None
    skip_spikes: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"optim.learning_rate: expected a number above 0, got {self.learning_rate}")
        if not 0 <= self.warmup < 1:
            raise UserError(f"optim.warmup: expected a share from 0 to below 1, got {self.warmup}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas: expected two numbers from 0 to below 1, got {list(self.betas)}")
        if self.weight_decay < 0:
            raise UserError(f"optim.weight_decay: expected 0 or more, got {self.weight_decay}")
        if self.clip_gradient is not None and self.clip_gradient <= 0:
            raise UserError(f"optim.clip_gradient: expected a number above 0 or null, got {self.clip_gradient}")
        if self.skip_spikes is not None and self.skip_spikes <= 1:
            raise UserError(f"optim.skip_spikes: expected a number above 1 or null, got {self.skip_spikes}")


def build_optimizer(
    model: torch.nn.Module, config: OptimConfig, no_decay: Collection[str] = ()
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters of ``model``; those named in ``no_decay`` are not decayed."""
    import torch

    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if name not in no_decay]
    kept = [parameter for name, parameter in trainable if name in no_decay]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, fused=True
    )


def learning_rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step ``step`` (from 0) of ``steps``: linear warm-up, then cosine to 0 [C]."""
    warmup_steps = round(config.warmup * steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
