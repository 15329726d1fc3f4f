"""The processors of LLaVAs that read images at their own aspect ratio (:mod:`llava_bridge.model.native_aspect`).

Legend: P images, N patches of the largest image of a batch, S patch size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchFeature, LlavaProcessor, Siglip2ImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches
from transformers.processing_utils import MultiModalData


class NativeImageProcessor(Siglip2ImageProcessor):
    """transformers' preprocessing of SigLIP 2 NaFlex, padded to the largest image of a batch instead of the budget."""

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012  as in transformers

    def preprocess(self, images: Any, **options: Any) -> BatchFeature:
        """``pixel_values`` (P, N, S · S · 3) and ``image_sizes`` (P, 2), height and width in pixels after resizing."""
        found = super().preprocess(images, **{**options, "return_tensors": "pt"})
        grids = found["spatial_shapes"]
        length = int(grids.prod(dim=1).max())
        return BatchFeature({"pixel_values": found["pixel_values"][:, :length], "image_sizes": grids * self.patch_size})


class NativeLlavaProcessor(LlavaProcessor):
    """transformers' LLaVA processor, with as many tokens of an image as it has patches."""

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        """The tokens of a preprocessed image."""
        height, width = image_inputs["image_sizes"][image_idx].tolist()
        return self.image_token * self._count(height, width)

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> MultiModalData:
        """The number of tokens of images of these heights and widths, before resizing."""
        images = self.image_processor
        resized = [
            get_image_size_for_max_num_patches(height, width, images.patch_size, images.max_num_patches)
            for height, width in image_sizes or []
        ]
        return MultiModalData(
            num_image_tokens=[self._count(*size) for size in resized], num_image_patches=[1] * len(resized)
        )

    def _count(self, height: int, width: int) -> int:
        side = self.image_processor.patch_size
        return (height // side) * (width // side)
