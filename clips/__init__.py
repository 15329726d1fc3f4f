"""Train CLIP encoders on web captions and long synthetic captions (CLIPS, arXiv 2411.16828)."""

import importlib
from typing import Any

_MODULES = {  # of the public names; imported when one of their names is first used
    "LoadedEncoder": "clips.encoder",
    "UserError": "clips.errors",
    "decode_image": "clips.data",
    "load_encoder": "clips.encoder",
    "open_image": "clips.data",
}
__all__ = ["LoadedEncoder", "UserError", "decode_image", "load_encoder", "open_image"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'clips' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES[name]), name)
