"""Keep libraries that nobody asked for out of the start of a command."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import typing
from collections.abc import Iterator


@contextlib.contextmanager
def without_wandb() -> Iterator[None]:
    """Import timm or open_clip in this block: they then do without wandb.

    timm imports wandb where it finds it, for a summary writer of its training script. That costs several
    seconds in every process that only wants a model.
    """
    if "wandb" in sys.modules:
        yield
        return
    sys.modules["wandb"] = None  # type: ignore[assignment]  # Python's own way to say "cannot be imported"
    try:
        yield
    finally:
        sys.modules.pop("wandb", None)


@functools.cache
def evaluate_annotations(config_class: type) -> None:
    """Make types of the annotations, which are text until then, of a config and of those within it.

    jsonargparse would evaluate the text itself, and for that run what stands under ``TYPE_CHECKING`` in the config's
    module: ``import torch``, in many. No field of a config needs it.
    """
    hints = typing.get_type_hints(config_class)
    config_class.__init__.__annotations__ = {  # type: ignore[misc]
        field.name: hints[field.name] for field in dataclasses.fields(config_class)
    } | {"return": None}
    for kind in hints.values():
        for inner in (kind, *typing.get_args(kind)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                evaluate_annotations(inner)
