"""Keep unneeded libraries out of the start of a command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_wandb() -> Iterator[None]:
    """Import timm or open_clip in this block: they then do without wandb.

    timm imports wandb if it is installed, for a summary writer of its training script. That costs several seconds in
    every process that only needs a model.
    """
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # Python's own way to say "cannot be imported"
    try:
        yield
    finally:
        sys.modules.pop("wandb", None)
