"""Config of the captioner, and names of precisions and losses; without torch, to check a config quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clips.errors import UserError

Precision = Literal["auto", "fp32", "bf16"]

CONTRASTIVE_LOSSES = ("softmax", "supcon", "sigmoid")
"""Names; ``clips.model.losses`` has a function for each."""


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """The decoder's size; unset fields are taken from the text tower.

    Args:
        width: channels.
        num_layers: number of blocks.
        num_heads: attention heads of a block.
        max_length: number of learnable tokens, the maximum length of a target with begin and end token.
        teacher_forcing: whether it is fed the previous target tokens; null is the recipe's setting.
        max_loss_tokens: maximum number of target tokens per sample, sampled at random, in the caption loss; null is
            all, as the authors do. Fewer make the 32,000-way head cheaper and give long captions no larger weight.
    """

    width: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    max_length: int = 128
    teacher_forcing: bool | None = None
    max_loss_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "num_layers", "num_heads", "max_loss_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"captioner.{name}: expected at least 1, got {value}")
        if self.max_length < 3:
            raise UserError(f"captioner.max_length: expected at least 3 (begin, a token, end), got {self.max_length}")
