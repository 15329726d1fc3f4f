"""Late imports: registry entries given as strings, and libraries that a command need not load at its start."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any


def import_from_string(reference: str) -> Any:
    """Import ``module:name``."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


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
