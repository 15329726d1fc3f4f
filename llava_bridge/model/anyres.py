"""High-resolution images as in LLaVA-NeXT: a base image, and tiles of the encoder's image size.

An image is resized into one of several resolutions, the *pinpoints*, with its aspect ratio, and cut into tiles. Its
features are joined again, without those of the padding, with a learned token at the end of each row. The number of its
tokens therefore depends on its aspect ratio. transformers' ``LlavaNextForConditionalGeneration`` and
``LlavaNextImageProcessor`` do all this; this module has their settings and limits.

Source: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next), ``anyres`` with ``spatial_unpad`` in its code.

Nothing heavy is imported here: configs are checked before torch is.
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
"""How images become squares; with ``anyres`` several of each."""
DEFAULT_TILE_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's pinpoints: rows and columns of tiles."""


def check_pinpoints(fit: str, pinpoints: Sequence[Sequence[int]] | None) -> None:
    """Raise UserError unless ``image_grid_pinpoints`` match ``image_aspect_ratio``."""
    if pinpoints is None:
        return
    if fit != "anyres":
        raise UserError(
            f"image_grid_pinpoints: expected none but with image_aspect_ratio anyres, got image_aspect_ratio {fit}"
        )
    if not pinpoints or any(len(pair) != 2 or min(pair) < 1 for pair in pinpoints):
        raise UserError(
            "image_grid_pinpoints: expected pairs of height and width in pixels, such as [[336, 672], [672, 336]], "
            f"got {[list(pair) for pair in pinpoints]}"
        )


def resolve_pinpoints(side: int, wanted: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """Return the pinpoints (height, width) in pixels: ``wanted``, or LLaVA-NeXT's.

    Raises:
        UserError: they are not multiples of tiles of ``side`` pixels.
    """
    if wanted is None:
        return [[rows * side, columns * side] for rows, columns in DEFAULT_TILE_GRIDS]
    found = [list(pair) for pair in wanted]
    if wrong := next((pair for pair in found if any(length % side for length in pair)), None):
        raise UserError(
            f"image_grid_pinpoints: expected multiples of {side}, the encoder's side in pixels, got {wrong}"
        )
    return found


def effective_patch_size(projector: ProjectorConfig, shape: ProjectorShape, side: int) -> int:
    """Return the size in pixels of one token in a tile of ``side`` pixels; an incomplete remainder is ignored.

    Raises:
        UserError: a tile's tokens do not form a square grid, so tiles cannot be joined.
    """
    if shape.extra:
        raise UserError("vision_feature_select_strategy: expected default with image_aspect_ratio anyres, got full")
    if shape.in_turn > 1:
        raise UserError(
            "encoder: expected one token for each place with image_aspect_ratio anyres, got several:interleave"
        )
    if not preserves_grid(projector):
        raise UserError(
            "projector.type: expected one whose tokens keep their places with image_aspect_ratio anyres, "
            f"got {projector.type}"
        )
    grid = math.isqrt(num_output_tokens(projector, shape))
    if not is_unpad_compatible(side, grid):
        raise UserError(
            f"image_size: {grid} × {grid} tokens for a tile of {side} pixels cannot be told to transformers; "
            f"expected a multiple of {grid}"
        )
    return side // grid


def is_unpad_compatible(side: int, grid: int) -> bool:
    """Whether transformers, given the pixels of a token, computes ``grid`` × ``grid`` for a tile of ``side`` pixels."""
    return grid <= side and side // (side // grid) == grid


def make_anyres_processor(pixels: ImagePreprocess, pinpoints: list[list[int]]) -> Any:
    """Return transformers' image processor that makes base image and tiles, and returns the image sizes."""
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


def num_image_tokens(processor: Any, picture: Image.Image) -> int:
    """Return the number of tokens of an image, by transformers' own ``LlavaNextProcessor``."""
    return num_image_tokens_for_size(processor, picture.height, picture.width)


def num_image_tokens_for_size(processor: Any, height: int, width: int) -> int:
    """As :func:`num_image_tokens`, for an image of the given size in pixels."""
    (tokens,) = processor._get_num_multimodal_tokens([(height, width)])["num_image_tokens"]
    return int(tokens)


def max_image_tokens(processor: Any) -> int:
    """Return the maximum number of tokens of an image: one in the shape of a pinpoint, without padding."""
    return max(num_image_tokens_for_size(processor, *pair) for pair in processor.image_processor.image_grid_pinpoints)
