"""Images at their own aspect ratio with a budget of patches, as SigLIP 2's NaFlex encoders read them.

An image is resized to whole patches, as many as the budget allows, with its aspect ratio up to a patch; each patch
becomes a token, so the number of tokens depends on the image. Preprocessing is that of transformers'
``Siglip2ImageProcessor``; the LLaVA is transformers' own, which splits the tokens of all images by ``image_sizes``.

Source: SigLIP 2 (arXiv 2502.14786, section 2.4.2), NaViT (arXiv 2307.06304).

This module does not import torch, so that configs are checked quickly.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from clips.errors import UserError
from llava_bridge.projectors import ProjectorConfig, is_per_feature

if TYPE_CHECKING:
    from PIL import Image

    from llava_bridge.encoders.encoder import ImagePreprocess

NATIVE = "native"
"""The value of ``image_aspect_ratio``."""
NO_CACHE = f"cache_vision_features: expected false with image_aspect_ratio {NATIVE}"
_PATCH_SIZE = 16  # the number of patches hardly depends on their size


def check_encoder(patch_size: int | None, encoder: str) -> None:
    """Raise UserError if ``encoder`` reads squares only: its tower has no ``patch_size``."""
    if patch_size is None:
        raise UserError(
            f"encoder: expected one for any aspect ratio with image_aspect_ratio {NATIVE}: SigLIP 2 NaFlex of "
            f"transformers, or timm:naflexvit_…; got {encoder}"
        )


def check_native(image_size: int | None, projector: ProjectorConfig) -> None:
    """Raise UserError if images cannot keep their aspect ratio with these settings of a LLaVA."""
    if image_size is not None:
        raise UserError(
            f"image_size: expected none with image_aspect_ratio {NATIVE}, where max_num_patches limits the size, "
            f"got {image_size}"
        )
    if not is_per_feature(projector):
        raise UserError(
            f"projector.type: expected mlpNx_gelu or linear with image_aspect_ratio {NATIVE}, got {projector.type}"
        )


def make_native_processor(pixels: ImagePreprocess, patch_size: int, max_num_patches: int) -> Any:
    """Return the image processor for images of at most ``max_num_patches`` patches."""
    from llava_bridge.model.image_processing import PIL_RESAMPLING
    from llava_bridge.model.native_processing import NativeImageProcessor

    return NativeImageProcessor(
        patch_size=patch_size,
        max_num_patches=max_num_patches,
        resample=PIL_RESAMPLING[pixels.interpolation],
        image_mean=list(pixels.mean),
        image_std=list(pixels.std),
    )


def patch_budget(image_processor: Any) -> int | None:
    """Return the maximum number of patches of an image; None if an image processor makes squares."""
    return getattr(image_processor, "max_num_patches", None)


def square_size(image_processor: Any) -> int:
    """Return the size in pixels of the largest square within the budget of an image processor."""
    return int(image_processor.patch_size) * math.isqrt(image_processor.max_num_patches)


def num_patches(max_num_patches: int, image: Image.Image) -> int:
    """Return the number of patches of an image."""
    from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

    sides = get_image_size_for_max_num_patches(image.height, image.width, _PATCH_SIZE, max_num_patches)
    return math.prod(side // _PATCH_SIZE for side in sides)
