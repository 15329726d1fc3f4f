"""Exponential moving average (EMA) of a model's weights, which generalizes better than the weights of the last step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class ModelEma:
    """The EMA of a state dict of full tensors or shards.

    Args:
        decay: weight of the previous average in an update.
        state: the state before the first step, or a checkpoint's average.
        updates: number of updates so far; the first one copies the state.
    """

    def __init__(self, decay: float, state: Mapping[str, Tensor], *, updates: int = 0) -> None:
        self.decay, self.updates = decay, updates
        self.state = {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor]) -> None:
        """Update with the state after a step; integer tensors are copied."""
        weight = 1 - self.decay if self.updates else 1.0
        averaged = [name for name, value in state.items() if value.is_floating_point()]
        averages, values = ([_local(tensors[name]) for name in averaged] for tensors in (self.state, state))
        torch._foreach_lerp_(averages, values, weight)  # one kernel for many tensors
        for name in state.keys() - set(averaged):
            self.state[name].copy_(state[name])
        self.updates += 1


def _local(value: Tensor) -> Tensor:
    """Return this process's shard, which shares its memory, or a full tensor itself."""
    return value.to_local() if isinstance(value, DTensor) else value.detach()
