"""The common interface of all vision encoders.

Legend: B images, S image size in pixels, G size of the token grid, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clips.errors import UserError


class VisionTower(nn.Module, ABC):
    """Pixels (B, 3, S, S) to hidden states, each (B, N, D): G² patch tokens, row-major, after the class token if any.

    G and D differ between the states of a hierarchical tower. Permuting the batch must permute the output.
    """

    depth: int
    """Index of the last hidden state; state 0 is the input of the first block."""
    class_token: bool
    """Whether token 0 of every hidden state is a class token."""
    default_layer: int
    """The hidden state that LLaVA reads by default, counted from the end (-1 is the last)."""
    final_norm: bool = False
    """Whether the last hidden state passes through the model's final norm."""
    recompute: bool = False
    """Whether blocks use activation checkpointing."""

    @abstractmethod
    def states(self, pixels: Tensor, deepest: int) -> Iterator[Tensor]:
        """Yield hidden states 0 … ``deepest`` in order, without computing later ones."""

    def hf_model(self) -> Any | None:
        """Return the model that transformers' own LLaVA would use instead of this tower; None if it has none."""
        return None

    def is_normalized(self, layer: int) -> bool:
        """Whether hidden state ``layer``, counted from the end if negative, is behind the model's final norm."""
        return self.final_norm and layer in {-1, self.depth}

    def describe(self, layer: int) -> str:
        """Which features hidden state ``layer`` holds, in words: "hidden state -1 of 12, after the final norm"."""
        if not self.depth:
            return "the last feature map"
        return f"hidden state {layer} of {self.depth}" + (", after the final norm" if self.is_normalized(layer) else "")

    def run_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run one block, under activation checkpointing if ``recompute`` is set."""
        if self.recompute and torch.is_grad_enabled():
            first_modes = {module: module.training for module in self.modules()}

            @contextlib.contextmanager
            def as_in_first_pass() -> Iterator[None]:  # the batch norms' mode may have changed until the second one
                current_modes = {module: module.training for module in first_modes}
                try:
                    for module, mode in first_modes.items():
                        module.training = mode
                    yield
                finally:
                    for module, mode in current_modes.items():
                        module.training = mode

            def contexts() -> tuple[Any, Any]:
                return contextlib.nullcontext(), as_in_first_pass()

            return checkpoint(block, tokens, use_reentrant=False, context_fn=contexts)
        return block(tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePreprocess:
    """Image preprocessing: resized to a square of ``size`` pixels, then normalized by channel, of values in 0…1."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionEncoder:
    """An encoder read from its source.

    Args:
        source: the entry of ``ENCODER_SOURCES`` that builds the tower.
        architecture: the arguments of this entry (plain JSON values).
        weights: the tower's state dict; None keeps the initialization of its library.
        pixels: its image preprocessing.
        parent: the directory or file of the weights, if any.
    """

    source: str
    architecture: Mapping[str, Any]
    weights: Mapping[str, Tensor] | None
    pixels: ImagePreprocess
    parent: str | None


def load_weights(tower: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Copy ``weights`` into ``tower``; names and shapes must match.

    Raises:
        UserError: naming the first tensor that is missing, unexpected or of another shape.
    """
    own = tower.state_dict()
    fault = None
    if reshaped := [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]:
        name = reshaped[0]
        fault = f"'{name}' has shape {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
    elif missing := sorted(own.keys() - weights.keys()):
        fault = f"lacks '{missing[0]}'"
    elif unexpected := sorted(weights.keys() - own.keys()):
        fault = f"has an unexpected '{unexpected[0]}'"
    if fault:
        raise UserError(f"{where}: these weights are not of this architecture ({fault})")
    tower.load_state_dict(dict(weights))


@torch.no_grad()
def probe_output_shape(tower: VisionTower, size: int, layer: int, where: str) -> tuple[int, int]:
    """Run a dummy image; return (grid size G, width D) of hidden state ``layer``, counted from the end if negative.

    Raises:
        UserError: the tokens do not form a square grid, or one whose size LLaVA's processor cannot compute.
    """
    was_training, index = tower.training, layer % (tower.depth + 1)
    state = next(itertools.islice(tower.eval().states(torch.zeros(1, 3, size, size), index), index, None))
    tower.train(was_training)
    patches = state.shape[1] - int(tower.class_token)
    grid = math.isqrt(patches)
    if grid * grid != patches or size // (size // grid) != grid:
        raise UserError(f"{where}: images of {size} px give {patches} patch tokens, which is no square grid")
    return grid, state.shape[2]
