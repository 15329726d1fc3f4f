"""Train CLIP encoders on web captions and long synthetic captions (CLIPS, arXiv 2411.16828)."""

import importlib
from typing import Any

# Public names and their modules; a module is imported when one of its names is first used.
_HOMES = {
    "LoadedEncoder": "clips.encoder",
    "UserError": "clips.errors",
    "decode_image": "clips.data",
    "load_encoder": "clips.encoder",
    "open_image": "clips.data",
}
__all__ = ["LoadedEncoder", "UserError", "decode_image", "load_encoder", "open_image"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clips' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
