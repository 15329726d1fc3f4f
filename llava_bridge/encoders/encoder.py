"""The common interface of all vision encoders.

Legend: B images, S image size in pixels, G size of the token grid, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clips.errors import UserError


class VisionTower(nn.Module, ABC):
    """Pixels (B, 3, S, S) to hidden states, each (B, N, D): G² patch tokens, row by row, after the class token if any.

    In a hierarchical tower G and D differ between states. A tower must not mix images: permuting the batch permutes the
    output.
    """

    depth: int
    """Index of the last hidden state; state 0 is the input of the first block."""
    class_token: bool
    """Whether token 0 of every hidden state is a class token."""
    default_layer: int
    """The hidden state that LLaVA reads by default, counted from the end (-1 is the last)."""

    tokens_of_a_place: int = 1
    """Number of tokens per grid cell, consecutive."""

    @abstractmethod
    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield hidden states 0 … ``deepest`` in order, without computing what only later ones need."""

    def stock(self) -> Any | None:
        """Return the model that transformers' own LLaVA would use instead of this tower; None if it has none."""
        return None

    recompute: bool = False
    """Whether blocks use activation checkpointing."""

    def run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run one block, under activation checkpointing if ``recompute`` is set."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, tokens, use_reentrant=False, context_fn=functools.partial(_now_and_again, self))
        return block(tokens)


def _now_and_again(tower: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's two computations: the second has the training mode of the first."""
    modes = {layer: layer.training for layer in tower.modules()}

    @contextlib.contextmanager
    def as_before() -> Iterator[None]:
        meanwhile = {layer: layer.training for layer in modes}
        _set_modes(modes)
        try:
            yield
        finally:
            _set_modes(meanwhile)

    return contextlib.nullcontext(), as_before()


def _set_modes(modes: Mapping[nn.Module, bool]) -> None:
    for layer, trains in modes.items():
        layer.training = trains


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePreprocess:
    """Image preprocessing: resized to a square, then normalized.

    Args:
        size: image size S.
        mean: per channel, of values in 0…1.
        std: per channel, of values in 0…1.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionEncoder:
    """An encoder read from its source.

    Args:
        source: the registry entry that can build the tower again.
        architecture: the arguments of this entry (plain JSON values).
        weights: the tower's state dict; None keeps the initialization of its library.
        pixels: its image preprocessing.
        parent: the directory or file it was read from, None if there is none.
    """

    source: str
    architecture: Mapping[str, Any]
    weights: Mapping[str, Tensor] | None
    pixels: ImagePreprocess
    parent: str | None


def check_feature_layer(tower: VisionTower, layer: int, whose: str = "this encoder") -> None:
    """Reject a hidden state that ``tower`` does not have.

    Raises:
        UserError: naming those that it has.
    """
    if not -tower.depth - 1 <= layer <= tower.depth:
        only = f"{-tower.depth - 1} to {tower.depth}" if tower.depth else "only -1, the last feature map"
        raise UserError(f"vision_feature_layer: {whose} has {only}, got {layer}")


def load_weights(tower: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy ``weights`` into ``tower``; names and shapes must match.

    Raises:
        UserError: naming the first tensor that is missing, unexpected or of another shape.
    """
    own = tower.state_dict()
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    unlike = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if missing or extra or unlike:
        what = f"lacks '{missing[0]}'" if missing else f"has an unexpected '{extra[0]}'" if extra else ""
        if unlike:
            what = f"'{unlike[0]}' has shape {tuple(weights[unlike[0]].shape)}, not {tuple(own[unlike[0]].shape)}"
        raise UserError(f"{where}: these weights are not of this architecture ({what})")
    tower.load_state_dict(dict(weights))


@torch.no_grad()
def probe_output_shape(tower: VisionTower, size: int, layer: int, where: str) -> tuple[int, int]:
    """Run a dummy image; return (grid size G, width D) of hidden state ``layer``, counted from the end if negative.

    Raises:
        UserError: the tokens do not form a square grid that LLaVA's processor can count.
    """
    was_training = tower.training
    tower.eval()
    index = layer % (tower.depth + 1)
    state = next(itertools.islice(tower.states(torch.zeros(1, 3, size, size), index), index, None))
    tower.train(was_training)
    patches = (state.shape[1] - int(tower.class_token)) // tower.tokens_of_a_place
    grid = math.isqrt(patches)
    if grid * grid != patches or size // (size // grid) != grid:
        raise UserError(f"{where}: pictures of {size} px give {patches} patch tokens, which is no square grid")
    return grid, state.shape[2]
