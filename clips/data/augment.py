"""Random crops and colours for training pictures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from PIL import Image, ImageEnhance

from clips.errors import UserError

_ASPECT = (3 / 4, 4 / 3)
_JITTER_PROBABILITY = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training pictures are varied; evaluation always sees the whole picture.

    Args:
        min_area: a random crop covers at least this share of the picture; 1 squashes the whole picture instead.
        colour_jitter: brightness, contrast and saturation change by up to this share, in four pictures of five.
        greyscale: the share of pictures that lose their colour.
        flip: mirror half of the pictures; wrong where captions say left and right.
    """

    min_area: float = 0.4
    colour_jitter: float = 0.0
    greyscale: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1:
            raise UserError(f"data.augment.min_area: expected a share above 0 and at most 1, got {self.min_area}")
        for name in ("colour_jitter", "greyscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.augment.{name}: expected a share from 0 to 1, got {getattr(self, name)}")

    @property
    def varies(self) -> bool:
        """Whether a picture can look different from one time to the next."""
        return self.min_area < 1 or self.flip or self.colour_jitter > 0 or self.greyscale > 0


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
