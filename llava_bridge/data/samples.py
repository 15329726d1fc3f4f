"""A data source of LLaVA training: its format, location and weight."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from clips.core.identity import RUN_ONLY
from clips.data.formats import FORMATS
from clips.errors import UserError, unknown_name_error

TEXT = "text"
"""The format of JSON lines with "text", which only the llm_pretrain stage reads."""
READ_FORMATS = (TEXT, *(name for name, entry in FORMATS.items() if entry.conversations or entry.captions))
"""The formats that LLaVA's training reads; each caption is an answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationSourceConfig:
    """One data source.

    Args:
        path: its file or directory. ``conversations`` and ``webdataset`` also accept ``{000..127}`` for many files.
        format: ``llava`` (LLaVA's JSON list, also ShareGPT4V's and that of ``clips scenes``), ``conversations`` (rows
            with messages or conversations and images: a directory of ``datasets``, parquet, JSON lines), ``webdataset``
            (tar shards of images and JSON), ``text`` (JSON lines with "text"), ``cocoqa`` (JSON lines of image,
            question, answer), ``karpathy`` (captions in Karpathy's JSON) or another format of captions.
        image_root: base directory of image references; None uses the directory of the file.
        split: for ``karpathy`` and directories of ``conversations`` the split to read; for ``cocoqa`` ``train``
            (without the held-out fifth of the photos), ``held_out`` or ``all``.
        captions_per_image: maximum number of captions of each image; None uses all.
        max_samples: maximum number of samples; None reads all.
        weight: repetitions of each sample per epoch: 0.5 uses a random half, 2 each twice, 1.5 each once and a random
            half twice.
        missing_images: ``skip`` skips samples whose image is missing (see ``max_invalid_ratio``); ``error`` checks the
            files of all images before training starts.
        max_cache_gb: for ``conversations`` in parquet: maximum size of the images copied to the user's cache. Row
            groups are copied at first use; the least recently used are deleted first.
    """

    path: str
    format: str = dataclasses.field(default="llava", metadata={"choices": "llava_bridge.data.samples:READ_FORMATS"})
    image_root: str | None = None
    split: str = "train"
    captions_per_image: int | None = 1
    max_samples: int | None = None
    weight: float = 1.0
    missing_images: Literal["skip", "error"] = dataclasses.field(default="skip", metadata=RUN_ONLY)
    max_cache_gb: float = dataclasses.field(default=100.0, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        if self.format not in READ_FORMATS:
            raise unknown_name_error(self.format, READ_FORMATS, "data.format")
        for name in ("captions_per_image", "max_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"data.{name}: expected at least 1, got {value}")
        for name in ("weight", "max_cache_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"data.{name}: expected more than 0, got {getattr(self, name)}")
