"""Images at their own aspect ratio as patches, as many as a budget allows, for NaFlex towers.

A packed image is one tensor (1, 1 + N, C), so that whatever copies, splits and stacks squares does the same with it.
Its first row begins with the grid (rows and columns of patches, each as two digits of base 256, which are exact in
uint8 and bfloat16), the next ones are patches, row by row, the last ones padding.

Source: SigLIP 2 (arXiv 2502.14786, section 2.4.2), NaViT (arXiv 2307.06304).

Legend: B images, N patches of the longest one, P patch size in pixels, C = P · P · 3 values of a patch, channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_BASE = 256


@dataclass(frozen=True)
class PatchBudget:
    """The size of images at their own aspect ratio.

    Args:
        patch_size: in pixels.
        max_num_patches: of an image.
    """

    patch_size: int
    max_num_patches: int

    def resized(self, height: float, width: float) -> tuple[int, int]:
        """Return height and width in pixels, whole patches, of an image of this size: as many as the budget allows."""
        from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

        return get_image_size_for_max_num_patches(height, width, self.patch_size, self.max_num_patches)  # type: ignore[arg-type]


ImageSize = int | PatchBudget
"""Pixels of a square's side, or the budget of images at their own aspect ratio."""


def resized(size: ImageSize, height: float, width: float) -> tuple[int, int]:
    """Return height and width in pixels of the view of an image of this height and width."""
    return (size, size) if isinstance(size, int) else size.resized(height, width)


def stored_shape(size: ImageSize) -> tuple[int, int, int]:
    """Return the shape of a view in memory, the dimension of its channels last."""
    if isinstance(size, int):
        return size, size, 3
    return 1 + size.max_num_patches, size.patch_size**2 * 3, 1


def view(pixels: Tensor, size: ImageSize) -> Tensor:
    """Return pixels (3, H, W) of a resized image as it is batched: themselves, or packed patches up to the budget."""
    if isinstance(size, int):
        return pixels
    grid = [side // size.patch_size for side in pixels.shape[1:]]
    patches = to_patches(pixels[None], size.patch_size)[0]
    padding = size.max_num_patches - len(patches)
    return pack(torch.nn.functional.pad(patches, (0, 0, 0, padding)), torch.tensor(grid))


def to_patches(pixels: Tensor, side: int) -> Tensor:
    """Split pixels (B, 3, H, W) into patches (B, N, C) of ``side`` pixels."""
    cells = pixels.unflatten(2, (-1, side)).unflatten(4, (-1, side))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def patch_mask(grids: Tensor, length: int) -> Tensor:
    """Return which of ``length`` patches (B, N) belong to the images of ``grids`` (B, 2); the others are padding."""
    return torch.arange(length, device=grids.device) < grids.prod(dim=1, keepdim=True)


class Patches(NamedTuple):
    """A batch of patches.

    Args:
        values: (B, N, C).
        grids: rows and columns of each image, (B, 2) int64.
    """

    values: Tensor
    grids: Tensor

    @property
    def valid(self) -> Tensor:
        """Which patches are no padding, (B, N) bool."""
        return patch_mask(self.grids, self.values.shape[1])

    def naflex_inputs(self) -> dict[str, Tensor]:
        """Return the arguments of ``forward_features`` of timm's NaFlexVit."""
        columns, valid = self.grids[:, 1:], self.valid
        places = torch.arange(self.values.shape[1], device=self.grids.device)
        coordinates = torch.stack([places // columns, places % columns], dim=2) * valid[..., None]
        device = self.values.device
        return {"patches": self.values, "patch_coord": coordinates.to(device), "patch_valid": valid.to(device)}


def pack(patches: Tensor, grid: Tensor) -> Tensor:
    """Return the packed image (1, 1 + N, C) of patches (N, C) with padding and their grid (2,)."""
    first = patches.new_zeros(1, patches.shape[1])
    first[0, :2], first[0, 2:4] = grid // _BASE, grid % _BASE
    return torch.cat([first, patches])[None]


def is_packed(images: Tensor) -> bool:
    """Whether images are packed, (B, 1, 1 + N, C), instead of (B, 3, H, W)."""
    return images.ndim == 4 and images.shape[1] == 1


def unpack(images: Tensor) -> Patches:
    """Return the patches of packed images (B, 1, 1 + N, C)."""
    digits = images[:, 0, 0, :4].long()
    return Patches(images[:, 0, 1:], digits[:, :2] * _BASE + digits[:, 2:])


def valid_patches(images: Tensor) -> Tensor | None:
    """Return which patches of packed images are no padding, (B, N) bool; None for other images."""
    return unpack(images).valid if is_packed(images) else None


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images (B, 3, H, W) as normalized floats, channels last in memory; or packed ones."""
    if is_packed(images):
        colors = images[:, :, 1:].unflatten(3, (-1, 3)).float() / 255
        return torch.cat([images[:, :, :1].float(), ((colors - mean.flatten()) / std.flatten()).flatten(3)], dim=2)
    return (images.contiguous(memory_format=torch.channels_last).float() / 255 - mean) / std


def trim_padding(images: Tensor) -> Tensor:
    """Return packed images without the rows that are padding in all of them, and other images unchanged."""
    return images[:, :, : 1 + int(unpack(images).grids.prod(dim=1).max())] if is_packed(images) else images


def make_packer(processor: Any) -> Callable[[Any], Tensor]:
    """Return a function from an image to its packed patches by transformers' image processor of SigLIP 2 NaFlex."""

    def pack_image(image: Any) -> Tensor:
        found = processor(image.convert("RGB"), return_tensors="pt")
        return pack(found["pixel_values"][0], found["spatial_shapes"][0])

    return pack_image
