"""What every data source gives to training: pictures by reference and what is said about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clips.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One data source.

    Args:
        path: its file or directory.
        source: the form it has: ``llava`` (LLaVA's JSON list), ``text`` (JSON lines with "text"), ``karpathy``
            (captions in Karpathy's JSON layout) or ``cocoqa`` (JSON lines of image, question, answer).
        images: folder that image references start from; None takes the folder of the file.
        split: for ``karpathy`` the split to read; for ``cocoqa`` ``train`` (without the held-back fifth of the
            photos), ``held_back`` or ``all``.
        per_image: for ``karpathy``, how many captions of each picture; None takes all.
        limit: read only the first so many samples; None reads all.
    """

    path: str
    source: str = "llava"
    images: str | None = None
    split: str = "train"
    per_image: int | None = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_image", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}: expected at least 1, got {value}")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """A conversation about pictures; ``<image>`` in the text stands for each of them in order.

    Args:
        name: for messages about it.
        root: folder that the references start from.
        images: references: a file below ``root`` or ``shard.tar/member``.
        turns: who says what.
    """

    name: str
    root: Path
    images: Sequence[str]
    turns: Sequence[Turn]

    @property
    def text(self) -> str:
        """What is said, without who says it: for a tokenizer to learn from."""
        return " ".join(turn.content for turn in self.turns)
