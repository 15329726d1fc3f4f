"""A LLaVA, loaded for evaluation, and what its directory says of its input."""

from __future__ import annotations

import hashlib
from typing import Any

from benchmarks.results.protocol import PIXELS, Entries
from clips.errors import UserError
from llava_bridge.model.image_processing import is_anyres_processor, max_image_tokens


def load_for_evaluation(directory: str, device: str, precision: str) -> tuple[Any, Any]:
    """(model, processor) of a LLaVA directory; the precision ``auto`` is bfloat16 on a GPU and float32 on a CPU."""
    import torch

    from llava_bridge import load_llava

    if not directory:
        raise UserError("pretrained: expected a LLaVA directory")
    model, processor = load_llava(directory, None if device == "auto" else device)
    if precision != "auto":
        model = model.to(getattr(torch, precision))
    return model, processor


def input_settings(processor: Any) -> Entries:
    """Protocol entries: a LLaVA's image preprocessing and chat template, as its directory records them."""
    from PIL.Image import Resampling

    images = processor.image_processor
    resolution = int(max(value for value in dict(images.size).values() if value))
    template = processor.chat_template or processor.tokenizer.chat_template or ""
    if is_anyres_processor(images):
        tokens = max_image_tokens(processor)  # of the most tiles
    else:
        # as the processor counts them in pixels; its own method for sizes counts a crop, made or not
        others = processor.num_additional_image_tokens - (processor.vision_feature_select_strategy == "default")
        tokens = int((resolution // processor.patch_size) ** 2 + others)
    return {
        "input_resolution": resolution,
        "input_resize": describe_resize(images),
        "input_interpolation": Resampling(int(images.resample)).name.lower(),
        "input_tokens": tokens,
        "input_template": hashlib.sha256(str(template).encode()).hexdigest()[:16],
        **PIXELS,
    }


def describe_resize(images: Any) -> str:
    """How an image processor fits an image into its size, as results state it."""
    if pinpoints := getattr(images, "image_grid_pinpoints", None):
        return "anyres " + " ".join(f"{height}x{width}" for height, width in pinpoints)
    if getattr(images, "do_center_crop", False):
        return "shortest side, center crop"
    if getattr(images, "do_pad", False):
        return "pad"
    return "squash" if "height" in dict(images.size) else "other"
