"""Config of the model's parts; without torch, so that mistakes are reported immediately."""

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
        layers: number of blocks.
        heads: attention heads of a block.
        length: learnable tokens = longest target, begin and end token included.
        teacher_forced: whether it is fed the previous target tokens; null is the recipe's setting.
        positions: maximum number of target tokens per sample, sampled at random, in the caption loss (all if not given,
            as the authors do). The 32,000-way head becomes cheaper in proportion, and long captions weigh no more than
            short ones.
    """

    width: int | None = None
    layers: int | None = None
    heads: int | None = None
    length: int = 128
    teacher_forced: bool | None = None
    positions: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"captioner.{name}: expected at least 1, got {value}")
        if self.length < 3:
            raise UserError(f"captioner.length: expected at least 3 (begin, a token, end), got {self.length}")
