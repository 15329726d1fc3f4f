"""Random crops and colors for training images."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageStat

from clips.data.data_config import AugmentConfig

_ASPECT = (3 / 4, 4 / 3)
_JITTER_PROBABILITY = 0.8
_COLOR_RANGE, _HUE_RANGE = 0.8, 0.2  # times color_jitter: brightness, contrast, saturation; hue
_UNCHANGED = list(range(256))


def min_decode_size(size: int, config: AugmentConfig) -> int:
    """The minimum image side to decode, so that the smallest crop has about ``size`` pixels per side."""
    return math.ceil(size / math.sqrt(config.crop_scale_min))


def augment(image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """A random crop of an RGB image, squashed to a square: uint8 (3, size, size) in channels-last memory format."""
    box = _random_box(image.width, image.height, config.crop_scale_min, rng) if config.crop_scale_min < 1 else None
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if config.horizontal_flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.color_jitter and rng.random() < _JITTER_PROBABILITY:
        image = _jitter(image, config.color_jitter, rng)
    if config.gray_scale_prob and rng.random() < config.gray_scale_prob:
        image = image.convert("L").convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _random_box(
    width: int, height: int, min_area: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box of uniform area and log-uniform aspect ratio inside the image; the full image after ten misses."""
    for _ in range(10):
        area = rng.uniform(min_area, 1) * width * height
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)
    return 0, 0, width, height


def _jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Random brightness, contrast, saturation and hue, applied in random order.

    Source: SimCLR's color_jitter as OpenVision calls it (simclr_aug.py), in 8 bits instead of float32.
    """
    for operation in rng.permutation(4):
        shift = rng.uniform(-1, 1)
        factor = 1 + _COLOR_RANGE * strength * shift
        if operation == 0:
            image = image.point(_scaled_values(factor) * 3)
        elif operation == 1:
            means = ImageStat.Stat(image).mean
            image = image.point([value for mean in means for value in _scaled_values(factor, mean)])
        elif operation == 2:
            image = _map_hsv(image, saturation=_scaled_values(factor))
        else:
            hue_shift = 255 * _HUE_RANGE * strength * shift
            image = _map_hsv(image, hue=[round(value + hue_shift) % 255 for value in range(256)])
    return image


def _map_hsv(image: Image.Image, *, hue: list[int] = _UNCHANGED, saturation: list[int] = _UNCHANGED) -> Image.Image:
    return image.convert("HSV").point([*hue, *saturation, *_UNCHANGED]).convert("RGB")


def _scaled_values(factor: float, center: float = 0.0) -> list[int]:
    """The values 0 … 255 of a channel, their distances from ``center`` multiplied by ``factor``."""
    return [min(255, max(0, round((value - center) * factor + center))) for value in range(256)]
