"""The model of a row, loaded when the first benchmark asks for it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.config import RunConfig
from clips.artifact import directory_hash
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.embed import DualEncoder


@dataclass(frozen=True)
class Row:
    """One row of the table: an encoder, a LLaVA, or both.

    Args:
        config: the run's config.
    """

    config: RunConfig

    @functools.cached_property
    def device(self) -> str:
        """``"cuda"`` or ``"cpu"``."""
        if self.config.device != "auto":
            return self.config.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @functools.cached_property
    def encoder(self) -> DualEncoder:
        """The encoder with its text tower.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        from benchmarks.embed import load_dual_encoder

        if self.config.encoder is None:
            raise UserError("encoder: expected an encoder directory; this benchmark compares pictures and texts")
        return load_dual_encoder(self.config.encoder, self.device, self.config.precision)

    @functools.cached_property
    def llava(self) -> tuple[Any, Any]:
        """(model, processor) of the LLaVA.

        Raises:
            UserError: there is none, or it cannot be loaded.
        """
        if self.config.llava is None:
            raise UserError("llava: expected a LLaVA directory; this benchmark asks questions about pictures")
        from benchmarks.mllm.tasks import go_offline

        go_offline()
        from benchmarks.mllm.answering import load_for_evaluation

        return load_for_evaluation(self.config.llava, self.device, self.config.precision)

    def model(self, needs: str) -> dict[str, str]:
        """Path and hash of the part that a benchmark uses; empty where the row lacks it."""
        path = self.config.encoder if needs == "encoder" else self.config.llava
        if path is None:
            return {"path": "", "hash": ""}
        return {"path": path, "hash": _model_hash(path)}


@functools.cache
def _model_hash(spec: str) -> str:
    if Path(spec).exists():
        return directory_hash(spec)
    name, _, weights = spec.partition("@")
    content = directory_hash(weights) if weights and Path(weights).exists() else weights
    return hashlib.sha256(f"{name}@{content}".encode()).hexdigest()
