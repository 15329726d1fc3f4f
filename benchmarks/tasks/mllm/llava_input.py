"""Protocol entries about a LLaVA's input."""

from __future__ import annotations

import hashlib
from typing import Any

from benchmarks.results.protocol import Entries
from llava_bridge.model.anyres import is_anyres_processor, max_image_tokens


def input_settings(processor: Any) -> Entries:
    """The LLaVA's image preprocessing and chat template, as its directory records them."""
    from PIL.Image import Resampling

    images = processor.image_processor
    resolution = int(max(value for value in dict(images.size).values() if value))
    template = processor.chat_template or processor.tokenizer.chat_template or ""
    return {
        "input_resolution": resolution,
        "input_resize": _resize(images),
        "input_interpolation": Resampling(int(images.resample)).name.lower(),
        "input_tokens": _num_tokens(processor, resolution),
        "input_template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
    }


def _num_tokens(processor: Any, resolution: int) -> int:
    """The number of an image's tokens in the LLM; the largest, if it depends on the image's tiles."""
    if is_anyres_processor(processor.image_processor):
        return max_image_tokens(processor)
    # as the processor counts them in pixels; its own method for sizes counts a crop, made or not
    others = processor.num_additional_image_tokens - (processor.vision_feature_select_strategy == "default")
    return int((resolution // processor.patch_size) ** 2 + others)


def _resize(images: Any) -> str:
    if pinpoints := getattr(images, "image_grid_pinpoints", None):
        return "anyres " + " ".join(f"{height}x{width}" for height, width in pinpoints)
    if getattr(images, "do_center_crop", False):
        return "shortest side, center crop"
    if getattr(images, "do_pad", False):
        return "pad"
    return "squash" if "height" in dict(images.size) else "other"
