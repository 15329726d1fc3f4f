"""Random crops and colors for training images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageStat
from torch.nn import functional as F  # noqa: N812

from clips.data.images import load_jpeg, load_rgb, read_header, reduction_factor, upright_size
from clips.loader.data_config import AugmentConfig

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
_ASPECT = (3 / 4, 4 / 3)
_UNCHANGED = list(range(256))


def augment(image: Image.Image, size: int, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    """A random crop of an RGB image, squashed to a square: (3, size, size) uint8, channels last in memory."""
    box = random_box(image.width, image.height, config.crop_scale_min, rng)
    return _finish(_cut(image, box), size, config, rng)


def read_crop(
    content: bytes,
    size: int,
    config: AugmentConfig,
    rng: np.random.Generator,
    decoded: dict[int, Any] | None = None,
) -> torch.Tensor:
    """`augment` a file's image; a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop keeps enough pixels.

    ``decoded``, this image's pixels by the factor of reduction, is used and extended. Raises InvalidImageError.
    """
    image, decoded = read_header(content), {} if decoded is None else decoded
    width, height = upright_size(image)
    left, top, right, bottom = random_box(width, height, config.crop_scale_min, rng)
    is_jpeg = image.format in ("JPEG", "MPO")
    factor = reduction_factor(min(bottom - top, right - left) / size) if is_jpeg else 1
    if factor not in decoded:
        pixels = load_jpeg(image, content, factor)
        decoded[factor] = load_rgb(image, factor) if pixels is None else pixels
    x, y = (now / full for now, full in zip(_size(decoded[factor]), (width, height), strict=True))
    return _finish(_cut(decoded[factor], (left * x, top * y, right * x, bottom * y)), size, config, rng)


def _size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def _cut(image: Image.Image | np.ndarray, box: Box) -> np.ndarray:
    """The pixels in a box that is rounded to whole pixels: (height, width, 3) uint8."""
    (width, height), (left, top, right, bottom) = _size(image), map(round, box)
    left, top = min(left, width - 1), min(top, height - 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    if isinstance(image, Image.Image):
        return np.array(image.crop((left, top, right, bottom)))
    return np.ascontiguousarray(image[top:bottom, left:right])


def _finish(pixels: np.ndarray, size: int, config: AugmentConfig, rng: np.random.Generator) -> torch.Tensor:
    # torch's resize has vector instructions, which Pillow's lacks: a third of its time. The rest is in numpy, because
    # torch would start threads in addition to those of a training on the CPU.
    rows = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    crop = F.interpolate(rows, size=(size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    if config.horizontal_flip and rng.random() < 0.5:
        crop = crop[:, ::-1]
    if config.color_jitter and rng.random() < 0.8:
        crop = np.array(jitter_colors(Image.fromarray(crop), config.color_jitter, rng))
    if config.gray_scale_prob and rng.random() < config.gray_scale_prob:
        crop = np.array(Image.fromarray(crop).convert("L").convert("RGB"))
    return torch.from_numpy(np.ascontiguousarray(crop)).permute(2, 0, 1)


def random_box(width: int, height: int, min_area: float, rng: np.random.Generator) -> Box:
    """A box of uniform area and log-uniform aspect ratio inside the image; the full image after ten misses."""
    for _ in range(10 if min_area < 1 else 0):
        area = rng.uniform(min_area, 1) * width * height
        aspect = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)
    return 0, 0, width, height


def jitter_colors(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Random brightness, contrast, saturation and hue, applied in random order.

    Source: SimCLR's color_jitter as OpenVision calls it (simclr_aug.py), in 8 bits instead of float32.
    """
    for operation in rng.permutation(4):
        shift = rng.uniform(-1, 1)
        factor = 1 + 0.8 * strength * shift
        if operation == 0:
            image = image.point(_scaled_values(factor) * 3)
        elif operation == 1:
            means = ImageStat.Stat(image).mean
            image = image.point([value for mean in means for value in _scaled_values(factor, mean)])
        elif operation == 2:
            image = _map_hsv(image, saturation=_scaled_values(factor))
        else:
            hue_shift = 255 * 0.2 * strength * shift
            image = _map_hsv(image, hue=[round(value + hue_shift) % 255 for value in range(256)])
    return image


def _map_hsv(image: Image.Image, *, hue: list[int] = _UNCHANGED, saturation: list[int] = _UNCHANGED) -> Image.Image:
    return image.convert("HSV").point([*hue, *saturation, *_UNCHANGED]).convert("RGB")


def _scaled_values(factor: float, center: float = 0.0) -> list[int]:
    """The values 0 … 255 of a channel, their distances from ``center`` multiplied by ``factor``."""
    return [min(255, max(0, round((value - center) * factor + center))) for value in range(256)]
