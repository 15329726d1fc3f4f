"""Avoid slow imports at the start of a command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_wandb() -> Iterator[None]:
    """Hide wandb from imports in this block.

    timm, and so open_clip, imports wandb for its training script if it is installed, which takes several seconds.
    """
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # makes `import wandb` raise ImportError
    try:
        yield
    finally:
        sys.modules.pop("wandb", None)
