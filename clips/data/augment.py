"""Random crops and colors for training pictures."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageStat

from clips.data.data_config import AugmentConfig

_ASPECT = (3 / 4, 4 / 3)
_JITTER_PROBABILITY = 0.8
_OF_STRENGTH, _HUE_OF_STRENGTH = 0.8, 0.2  # of color_jitter: brightness, contrast, saturation; hue
_SAME = list(range(256))


def min_decode_size(size: int, config: AugmentConfig) -> int:
    """The least picture side to decode so that the smallest crop still has about ``size`` pixels a side."""
    return math.ceil(size / math.sqrt(config.crop_scale_min))


def augment(image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """A random crop of an RGB picture, squashed to a square of ``size`` pixels: uint8 (3, size, size).

    In memory its channels stand last, as the decoder gives them and as the model wants them.
    """
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
    """Brightness, contrast, saturation and hue changed in random order, each by a factor or shift of its own.

    Source: SimCLR's color_jitter as the authors call it (simclr_aug.py of OpenVision), in 8 bits instead of float32.
    """
    width = _OF_STRENGTH * strength
    for number in rng.permutation(4):
        shift = rng.uniform(-1, 1)
        if number == 0:
            image = image.point(_line(1 + width * shift) * 3)
        elif number == 1:
            image = _contrasted(image, 1 + width * shift)
        elif number == 2:
            image = _in_hsv(image, saturation=_line(1 + width * shift))
        else:
            turn = 255 * _HUE_OF_STRENGTH * strength * shift
            image = _in_hsv(image, hue=[round(value + turn) % 255 for value in range(256)])
    return image


def _contrasted(image: Image.Image, factor: float) -> Image.Image:
    """Each channel's distances from its own mean times ``factor``."""
    return image.point([value for mean in ImageStat.Stat(image).mean for value in _line(factor, mean)])


def _in_hsv(image: Image.Image, *, hue: list[int] = _SAME, saturation: list[int] = _SAME) -> Image.Image:
    return image.convert("HSV").point([*hue, *saturation, *_SAME]).convert("RGB")


def _line(factor: float, middle: float = 0.0) -> list[int]:
    """What becomes of the values 0 … 255 of a channel."""
    return [min(255, max(0, round((value - middle) * factor + middle))) for value in range(256)]
