"""The setting of distillation from a teacher, and the names of its inputs in a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clips.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Distillation from a frozen encoder, which encodes each image and text once; its features are cached on disk.

    Args:
        teacher: an encoder directory, ``hf-hub:NAME``, or ``transformers:DIRECTORY`` (CLIP, SigLIP and other types).
        weight: factor of the distillation loss.
        logit_scale: factor of the teacher's cosines, such as 100; null is the teacher's own.
    """

    teacher: str
    weight: float = 1.0
    logit_scale: float | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "logit_scale"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise UserError(f"recipe.distillation.{name}: expected a number above 0, got {value}")


def teacher_name(name: str) -> str:
    """Return the name in the batch of the teacher's input, and of its features, for ``image`` or a text."""
    return f"teacher_{name}"
