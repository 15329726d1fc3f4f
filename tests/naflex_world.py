"""A small NaFlexVit under a name that timm builds by, and an open_clip config with it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.models import generate_default_cfgs, register_model
from timm.models.naflexvit import NaFlexVitCfg, _cfg, _create_naflexvit

BUDGET, PATCH = 24, 8
SHAPES = ((64, 48), (48, 64), (40, 40), (120, 20), (90, 61), (16, 50))
"""Width and height of images."""
MEAN, STD = (0.3, 0.45, 0.6), (0.2, 0.25, 0.3)
_SIZES: dict[str, Any] = {
    "patch_size": PATCH,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "pos_embed_grid_size": (4, 4),
}
default_cfgs = generate_default_cfgs({"small_naflexvit.untrained": _cfg(input_size=(3, 32, 32), mean=MEAN, std=STD)})


def small_naflexvit(pretrained: bool = False, **options: Any) -> Any:
    """Three prefix tokens, and the mean of the patches."""
    prefix = {"class_token": True, "reg_tokens": 2, "global_pool": "avg", "fc_norm": True}
    return _create_naflexvit("small_naflexvit", pretrained, cfg=NaFlexVitCfg(**_SIZES, **prefix), **options)


__all__ = ["small_naflexvit"]  # register_model appends to it
register_model(sys.modules[__name__].small_naflexvit)


def write_config(path: Path) -> Path:
    """Both towers in open_clip's format."""
    vision = {
        "timm_model_name": "small_naflexvit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    }
    text = {"context_length": 12, "vocab_size": 32000, "width": 32, "heads": 2, "layers": 2}
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": {**vision, "image_size": 32}, "text_cfg": text}))
    return path


def draw_image(index: int, kind: str = "png") -> bytes:
    """A smooth image of one of `SHAPES`."""
    width, height = SHAPES[index % len(SHAPES)]
    coarse = np.random.default_rng(index).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()
