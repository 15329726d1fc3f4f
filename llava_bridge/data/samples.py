"""What every data source gives to training: pictures by reference and what is said about them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from clips.core.identity import RUN_ONLY
from clips.errors import UserError

if TYPE_CHECKING:  # the command line reads configs before anything heavy is imported
    from llava_bridge.data.pictures import Picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """One data source.

    Args:
        path: its file or directory. ``conversations`` and ``webdataset`` also take ``{000..127}`` for many files.
        source: the form it has: ``llava`` (LLaVA's JSON list, also ShareGPT4V's and that of ``clips scenes``),
            ``conversations`` (rows with messages or conversations and images: a directory of ``datasets``, parquet,
            JSON lines), ``webdataset`` (tar shards of pictures and JSON), ``text`` (JSON lines with "text"),
            ``karpathy`` (captions in Karpathy's JSON layout) or ``cocoqa`` (JSON lines of image, question, answer).
        images: folder that image references start from; None takes the folder of the file.
        split: for ``karpathy`` the split to read, for ``conversations`` that of a directory which has several; for
            ``cocoqa`` ``train`` (without the held-back fifth of the photos), ``held_back`` or ``all``.
        per_image: for ``karpathy``, how many captions of each picture; None takes all.
        limit: read only the first so many samples; None reads all.
        weight: how often an epoch has each sample: 0.5 takes half of them, drawn with the seed, 2 each twice, 1.5 each
            once and half of them twice.
        missing_images: ``skip`` leaves a sample out when its picture turns out to be missing (see
            ``max_invalid_ratio``); ``refuse`` looks for the files of all pictures before training starts.
        cache_gb: for ``conversations`` in parquet: how much of this disk copies of pictures may take, in the user's
            cache. Row groups are copied when they are first needed; the longest unused go first.
    """

    path: str
    source: str = "llava"
    images: str | None = None
    split: str = "train"
    per_image: int | None = 1
    limit: int | None = None
    weight: float = 1.0
    missing_images: Literal["skip", "refuse"] = dataclasses.field(default="skip", metadata=RUN_ONLY)
    cache_gb: float = dataclasses.field(default=100.0, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        for name in ("per_image", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}: expected at least 1, got {value}")
        for name in ("weight", "cache_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"data.{name}: expected more than 0, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A conversation about pictures; ``<image>`` in the text stands for each of them in order.

    Args:
        name: for messages about it.
        images: where its pictures are; they are read when a batch needs them.
        turns: who says what.
    """

    name: str
    images: Sequence[Picture]
    turns: Sequence[Turn]

    @property
    def text(self) -> str:
        """What is said, without who says it: for a tokenizer to learn from."""
        return " ".join(turn.content for turn in self.turns)
