"""High-resolution images as in LLaVA-NeXT: a base image, and tiles of the encoder's image size.

An image is resized into one of several resolutions, the *pinpoints*, with its aspect ratio, and cut into tiles. The
tiles' features are joined, without those of the padding, with a learned token at the end of each row. The number of
tokens therefore depends on the aspect ratio. transformers' ``LlavaNextForConditionalGeneration`` and
``LlavaNextImageProcessor`` do all this; this module has their settings and limits.

Source: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next), ``anyres`` with ``spatial_unpad`` in its code.

This module does not import torch, so that configs are checked quickly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from clips.errors import UserError
from llava_bridge.projectors import ProjectorConfig, ProjectorShape, num_output_tokens, preserves_grid

if TYPE_CHECKING:
    from PIL import Image

    from llava_bridge.encoders.encoder import ImagePreprocess

ImageAspectRatio = Literal["squash", "pad", "crop", "anyres"]
"""How an image becomes a square, or several with ``anyres``."""
DEFAULT_TILE_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's pinpoints: rows and columns of tiles."""


def check_pinpoints(aspect: str, pinpoints: Sequence[Sequence[int]] | None) -> None:
    """Raise UserError unless ``image_grid_pinpoints`` match ``image_aspect_ratio``."""
    if pinpoints is None:
        return
    if aspect != "anyres":
        raise UserError(
            f"image_grid_pinpoints: expected none without image_aspect_ratio anyres, got image_aspect_ratio {aspect}"
        )
    if not pinpoints or any(len(pair) != 2 or min(pair) < 1 for pair in pinpoints):
        raise UserError(
            "image_grid_pinpoints: expected pairs of height and width in pixels, such as [[336, 672], [672, 336]], "
            f"got {[list(pair) for pair in pinpoints]}"
        )


def resolve_pinpoints(side: int, pinpoints: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """Return the pinpoints (height, width) in pixels; LLaVA-NeXT's if None.

    Raises:
        UserError: they are not multiples of tiles of ``side`` pixels.
    """
    if pinpoints is None:
        return [[rows * side, columns * side] for rows, columns in DEFAULT_TILE_GRIDS]
    pairs = [list(pair) for pair in pinpoints]
    if wrong := next((pair for pair in pairs if any(length % side for length in pair)), None):
        raise UserError(f"image_grid_pinpoints: expected multiples of {side}, the encoder's image size, got {wrong}")
    return pairs


def effective_patch_size(projector: ProjectorConfig, shape: ProjectorShape, side: int) -> int:
    """Return the size in pixels of one token in a tile of ``side`` pixels; an incomplete remainder is ignored.

    Raises:
        UserError: a tile's tokens do not form a square grid, so tiles cannot be joined.
    """
    if shape.extra:
        raise UserError("vision_feature_select_strategy: expected default with image_aspect_ratio anyres, got full")
    if not preserves_grid(projector):
        raise UserError(
            f"projector.type: expected one that preserves the grid with image_aspect_ratio anyres, got {projector.type}"
        )
    grid = math.isqrt(num_output_tokens(projector, shape))
    if not is_unpad_compatible(side, grid):
        raise UserError(
            f"image_size: transformers does not support {grid} × {grid} tokens for a tile of {side} pixels; "
            f"expected a multiple of {grid}"
        )
    return side // grid


def is_unpad_compatible(side: int, grid: int) -> bool:
    """Whether transformers computes ``grid`` × ``grid`` tokens for a tile of ``side`` pixels."""
    return grid <= side and side // (side // grid) == grid


def make_anyres_processor(pixels: ImagePreprocess, pinpoints: list[list[int]]) -> Any:
    """Return transformers' image processor for base image and tiles."""
    from transformers import LlavaNextImageProcessor

    from llava_bridge.model.image_processing import PIL_RESAMPLING

    square = {"height": pixels.size, "width": pixels.size}
    return LlavaNextImageProcessor(
        size=square,
        crop_size=square,
        do_center_crop=False,
        resample=PIL_RESAMPLING[pixels.interpolation],
        image_mean=list(pixels.mean),
        image_std=list(pixels.std),
        image_grid_pinpoints=pinpoints,
    )


def is_anyres_processor(image_processor: Any) -> bool:
    """Whether an image processor makes tiles, so that the number of tokens depends on the image."""
    return getattr(image_processor, "image_grid_pinpoints", None) is not None


def num_image_tokens(processor: Any, image: Image.Image) -> int:
    """Return the number of tokens of an image, by transformers' own ``LlavaNextProcessor``."""
    return num_image_tokens_for_size(processor, image.height, image.width)


def num_image_tokens_for_size(processor: Any, height: int, width: int) -> int:
    """As :func:`num_image_tokens`, for an image of the given size in pixels."""
    (tokens,) = processor._get_num_multimodal_tokens([(height, width)])["num_image_tokens"]
    return int(tokens)


def max_image_tokens(processor: Any) -> int:
    """Return the maximum number of tokens of an image: that of an image of a pinpoint's size."""
    return max(num_image_tokens_for_size(processor, *pair) for pair in processor.image_processor.image_grid_pinpoints)
