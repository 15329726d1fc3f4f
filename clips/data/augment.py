"""Random crops and colours for training pictures."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance

from clips.data.config import AugmentConfig

_ASPECT = (3 / 4, 4 / 3)
_JITTER_PROBABILITY = 0.8


def decoding_size(size: int, config: AugmentConfig) -> int:
    """The least picture side to decode so that the smallest crop still has about ``size`` pixels a side."""
    return math.ceil(size / math.sqrt(config.min_area))


def augment(image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """A random crop of an RGB picture, squashed to a square of ``size`` pixels: uint8 (3, size, size).

    In memory its channels stand last, as the decoder gives them and as the model wants them.
    """
    box = _random_box(image.width, image.height, config.min_area, rng) if config.min_area < 1 else None
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if config.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.colour_jitter and rng.random() < _JITTER_PROBABILITY:
        image = _jitter(image, config.colour_jitter, rng)
    if config.greyscale and rng.random() < config.greyscale:
        image = image.convert("L").convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _random_box(
    width: int, height: int, min_area: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box of uniform area and log-uniform aspect ratio inside the picture; all of it after ten misses."""
    for _ in range(10):
        area = rng.uniform(min_area, 1) * width * height
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)
    return 0, 0, width, height


def _jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.permutation(len(enhancers)):
        image = enhancers[number](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image
