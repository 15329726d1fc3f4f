"""transformers image processors that map images of any shape to squares, by :data:`ASPECT_RATIO_MODES`.

They are saved with the LLaVA, so any software that loads it preprocesses images as in training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from transformers import CLIPImageProcessor, LlavaImageProcessor

from llava_bridge.encoders.encoder import ImagePreprocess

Fit = Literal["squash", "pad", "crop"]
PIL_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's constants, which transformers stores

ASPECT_RATIO_MODES: dict[str, Callable[[int], tuple[Any, dict[str, Any]]]] = {
    "squash": lambda side: (CLIPImageProcessor, {"size": _square(side), "do_center_crop": False}),
    # LLaVA-1.5's "pad": padding with the encoder's mean color, before resizing.
    "pad": lambda side: (LlavaImageProcessor, {"size": _square(side), "do_center_crop": False, "do_pad": True}),
    # CLIP's own, and LLaVA's "square".
    "crop": lambda side: (CLIPImageProcessor, {"size": {"shortest_edge": side}, "do_center_crop": True}),
}
"""Name → (size of the square in pixels → image processor's class and settings)."""


def make_image_processor(pixels: ImagePreprocess, fit: Fit) -> Any:
    """Build the image processor that maps images to ``pixels``."""
    return _build(fit, pixels.size, list(pixels.mean), list(pixels.std), PIL_RESAMPLING[pixels.interpolation])


def with_aspect_ratio(processor: Any, fit: Fit) -> Any:
    """Build an image processor of another mode, from one of :func:`make_image_processor`."""
    return _build(fit, processor.crop_size["height"], processor.image_mean, processor.image_std, processor.resample)


def _build(fit: Fit, side: int, mean: Any, std: Any, resample: Any) -> Any:
    processor_class, settings = ASPECT_RATIO_MODES[fit](side)
    return processor_class(**settings, crop_size=_square(side), resample=resample, image_mean=mean, image_std=std)


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}
