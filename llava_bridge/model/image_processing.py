"""How images become the squares that an encoder reads: one square, or a base image and tiles (``anyres``).

The image processors are saved with the LLaVA, so any software that loads it preprocesses images as in training. This
module imports neither torch nor transformers, so that configs are checked quickly.
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

Fit = Literal["squash", "pad", "crop"]
ImageAspectRatio = Literal["squash", "pad", "crop", "anyres"]
"""How an image becomes a square, or several with ``anyres``."""
DEFAULT_TILE_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's pinpoints: rows and columns of tiles."""
_PIL_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's constants, which transformers stores


def make_image_processor(pixels: ImagePreprocess, fit: Fit) -> Any:
    """Build the image processor that maps images to ``pixels``."""
    return _square_processor(
        fit, pixels.size, list(pixels.mean), list(pixels.std), _PIL_RESAMPLING[pixels.interpolation]
    )


def with_aspect_ratio(processor: Any, fit: Fit) -> Any:
    """Build an image processor of another mode, from one of :func:`make_image_processor`."""
    side = processor.crop_size["height"]
    return _square_processor(fit, side, processor.image_mean, processor.image_std, processor.resample)


def _square_processor(fit: Fit, side: int, mean: Any, std: Any, resample: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaImageProcessor

    square = {"height": side, "width": side}
    modes: dict[str, tuple[Any, dict[str, Any]]] = {
        "squash": (CLIPImageProcessor, {"size": square, "do_center_crop": False}),
        # LLaVA-1.5's "pad": padding with the encoder's mean color, before resizing.
        "pad": (LlavaImageProcessor, {"size": square, "do_center_crop": False, "do_pad": True}),
        # CLIP's own, and LLaVA's "square".
        "crop": (CLIPImageProcessor, {"size": {"shortest_edge": side}, "do_center_crop": True}),
    }
    processor_class, settings = modes[fit]
    return processor_class(**settings, crop_size=square, resample=resample, image_mean=mean, image_std=std)


# ---------------------------------------------------------------- tiles
# An image is resized into one of several resolutions, the *pinpoints*, with its aspect ratio, and cut into tiles. The
# tiles' features are joined, without those of the padding, with a learned token at the end of each row. The number of
# tokens therefore depends on the aspect ratio. transformers' `LlavaNextForConditionalGeneration` and
# `LlavaNextImageProcessor` do all this; here are their settings and limits.
# Source: LLaVA-NeXT (llava-vl.github.io/blog/2024-01-30-llava-next), `anyres` with `spatial_unpad` in its code.


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
    """The pinpoints (height, width) in pixels; LLaVA-NeXT's if None.

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
    """The size in pixels of one token in a tile of ``side`` pixels; an incomplete remainder is ignored.

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
    """transformers' image processor for base image and tiles."""
    from transformers import LlavaNextImageProcessor

    square = {"height": pixels.size, "width": pixels.size}
    return LlavaNextImageProcessor(
        size=square,
        crop_size=square,
        do_center_crop=False,
        resample=_PIL_RESAMPLING[pixels.interpolation],
        image_mean=list(pixels.mean),
        image_std=list(pixels.std),
        image_grid_pinpoints=pinpoints,
    )


def is_anyres_processor(image_processor: Any) -> bool:
    """Whether an image processor makes tiles, so that the number of tokens depends on the image."""
    return getattr(image_processor, "image_grid_pinpoints", None) is not None


def num_image_tokens(processor: Any, image: Image.Image) -> int:
    """The number of tokens of an image, by transformers' own ``LlavaNextProcessor``."""
    return _num_tokens(processor, image.height, image.width)


def max_image_tokens(processor: Any) -> int:
    """The maximum number of tokens of an image: that of an image of a pinpoint's size."""
    return max(_num_tokens(processor, *pair) for pair in processor.image_processor.image_grid_pinpoints)


def _num_tokens(processor: Any, height: int, width: int) -> int:
    (tokens,) = processor._get_num_multimodal_tokens([(height, width)])["num_image_tokens"]
    return int(tokens)
