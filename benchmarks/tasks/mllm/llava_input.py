"""Protocol entries about a LLaVA's input."""

from __future__ import annotations

import hashlib
from typing import Any

from benchmarks.results.protocol import Entries, own_aspect_ratio
from llava_bridge.model.anyres import is_anyres_processor, max_image_tokens, num_image_tokens_for_size
from llava_bridge.model.native_aspect import patch_budget, square_size


def input_settings(processor: Any) -> Entries:
    """The LLaVA's image preprocessing and chat template, as its directory records them."""
    from PIL.Image import Resampling

    images = processor.image_processor
    budget = patch_budget(images)
    resolution = max(value for value in dict(images.size).values() if value) if budget is None else square_size(images)
    tiles = is_anyres_processor(images)
    tokens = max_image_tokens(processor) if tiles else num_image_tokens_for_size(processor, resolution, resolution)
    template = processor.chat_template or processor.tokenizer.chat_template or ""
    return {
        "input_resolution": int(resolution),
        "input_resize": _resize(images),
        "input_interpolation": Resampling(int(images.resample)).name.lower(),
        "input_tokens": tokens,
        "input_template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
    }


def _resize(images: Any) -> str:
    """How an image processor resizes an image."""
    if (budget := patch_budget(images)) is not None:
        return own_aspect_ratio(budget)
    if pinpoints := getattr(images, "image_grid_pinpoints", None):
        return "anyres " + " ".join(f"{height}x{width}" for height, width in pinpoints)
    if getattr(images, "do_center_crop", False):
        return "shortest side, center crop"
    if getattr(images, "do_pad", False):
        return "pad"
    return "squash" if "height" in dict(images.size) else "other"
