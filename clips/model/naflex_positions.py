"""Positions of timm's NaFlexVit with gradients that do not vary, so that a run on a GPU resumes exactly."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from timm.models.naflexvit import NaFlexEmbeds
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode


def make_naflex_deterministic(trunk: nn.Module) -> None:
    """Let a timm ``NaFlexVit`` interpolate its positions by `DeterministicInterpolation`; others are left unchanged."""
    for module in trunk.modules():
        if type(module) is NaFlexEmbeds:
            module.__class__ = DeterministicNaFlexEmbeds  # without a reference to the module, which would not be copied


class DeterministicInterpolation(TorchFunctionMode):
    """Replace ``F.interpolate`` by matrix products: its own backward pass on a GPU adds in varying order."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        run = _interpolate if function is F.interpolate else function
        return run(*args, **(kwargs or {}))


class DeterministicNaFlexEmbeds(NaFlexEmbeds):
    """timm's, with `DeterministicInterpolation`."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """See timm."""
        with DeterministicInterpolation():
            return super().forward(*inputs, **options)


def _interpolate(values: Tensor, size: int | tuple[int, ...], **settings: Any) -> Tensor:
    """Interpolate each of the last dimensions by a product with the interpolated identity matrix."""
    sizes = (size,) if isinstance(size, int) else size
    ones = [1] * (len(sizes) - 1)  # first: torch 2.15 interpolates images of one column wrongly on a CPU
    kind = values.device.type
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()
    with exact:  # timm interpolates in float32
        for dimension, length in enumerate(sizes, start=2):
            identity = torch.eye(values.shape[dimension], device=values.device, dtype=values.dtype)
            identity = identity.reshape(1, len(identity), *ones, -1)
            matrix = F.interpolate(identity, size=(*ones, length), **settings).flatten(1, -2)[0]
            values = (values.movedim(dimension, -1) @ matrix).movedim(-1, dimension)
    return values
