"""Muon for the matrices of the repeated layers and AdamW for all other parameters, as one optimizer.

Muon (https://kellerjordan.github.io/posts/muon) makes the update of a matrix nearly orthogonal. Its learning rate is
AdamW's, because the update is scaled to the size of one of AdamW's (arXiv 2502.16982, section 2.2). A packed projection
of queries, keys and values is one matrix.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from clips.errors import UserError
from clips.model.layers import repeated_layers

MUON_STATE_NAMES = ("momentum_buffer",)
"""Muon's tensors for each parameter."""
ADAMW_STATE_NAMES = ("step", "exp_avg", "exp_avg_sq")


def muon_parameters(model: nn.Module, no_decay: Collection[str]) -> list[nn.Parameter]:
    """Return the trained weight matrices of the repeated layers of towers and captioner.

    Raises:
        UserError: there are none.
    """
    decayed = [value for name, value in model.named_parameters() if name not in no_decay]
    inside = {value for layer in repeated_layers(model, single=True) for value in layer.parameters()}
    found = [value for value in decayed if value.ndim == 2 and value.requires_grad and value in inside]
    if not found:
        raise UserError("optimizer.name: expected adamw: no layer of the towers or the captioner has matrices to train")
    return found


class MuonAdamW:
    """The part of torch's optimizer interface that `clips.parallel.ddp.Strategy` uses, over two optimizers.

    Args:
        muon: torch's Muon.
        adamw: torch's AdamW, fused, of other parameters.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        self.muon, self.adamw = muon, adamw
        self.state = muon.state = adamw.state  # of different parameters

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def state_names(self, parameter: Tensor) -> tuple[str, ...]:
        """Return the names of the tensors that are stored for a parameter."""
        inside = any(parameter is value for group in self.muon.param_groups for value in group["params"])
        return MUON_STATE_NAMES if inside else ADAMW_STATE_NAMES

    def step(self) -> None:
        """Update the weights unless ``found_inf``, which is read from the device, because Muon cannot test it there."""
        if self.found_inf is not None and bool(self.found_inf):
            return
        self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        """Reset the gradients."""
        self.muon.zero_grad()
        self.adamw.zero_grad()
