"""A running average of a model's weights (EMA), which generalizes better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class ModelEma:
    """The exponential average of a state that training moves; shards average to shards.

    Args:
        decay: the share of the average that a step leaves in place.
        state: before the first step, or what a checkpoint kept.
        updates: how many steps are in it already; before the first it takes the state as it is.
    """

    def __init__(self, decay: float, state: Mapping[str, Tensor], *, updates: int = 0) -> None:
        self.decay, self.updates = decay, updates
        self.state = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Take one step's state in; counters are taken as they are."""
        weight = 1 - self.decay if self.updates else 1.0
        for name, value in state.items():
            if value.is_floating_point():
                self.state[name].lerp_(value.detach(), weight)
            else:
                self.state[name].copy_(value)
        self.updates += 1
