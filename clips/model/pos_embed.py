"""Resize position embeddings to another image size or text length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.errors import UserError


def resize_pos_embed(table: Tensor, patches: int, prefix: int, *, antialias: bool = True) -> Tensor:
    """Interpolate learned positions (bicubic) to a square of ``patches`` patches.

    Args:
        table: (prefix + old patches, D), or (1, prefix + old patches, D); the result has its dimensions.
        patches: the new number of patches.
        prefix: rows before those of the patches, which stay unchanged.
        antialias: as open_clip; transformers does not, and uses another cubic kernel.
    """
    if table.ndim == 3:
        return resize_pos_embed(table[0], patches, prefix, antialias=antialias)[None]
    before, after = math.isqrt(len(table) - prefix), math.isqrt(patches)
    if before == after:
        return table
    grid = table[prefix:].T.reshape(1, -1, before, before)
    resized = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([table[:prefix], resized[0].flatten(1).T])


def resize_timm_pos_embed(table: Tensor, trunk: Any) -> Tensor:
    """Interpolate learned positions for a timm ViT, as timm does; matching ones are returned unchanged.

    Args:
        table: (1, prefix + old patches, D).
        trunk: of the requested image size; one without such a table needs no interpolation.
    """
    own = getattr(trunk, "pos_embed", None)
    if not isinstance(own, Tensor) or own.ndim != 3 or own.shape == table.shape:
        return table
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if getattr(trunk, "no_embed_class", False) else int(getattr(trunk, "num_prefix_tokens", 0))
    return resample_abs_pos_embed(table, new_size=list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix)


def resize_sincos_pos_embed(table: Tensor, patches: int) -> Tensor | None:
    """Return fixed positions for a square of ``patches`` by the formula of ``table``, open_clip's or the authors'.

    Args:
        table: (1 + old patches, D), the first for the class token.
        patches: the new number of patches.

    Returns:
        (1 + patches, D), or None if ``table`` follows neither.
    """
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    def open_clip_sincos_pos_embed(side: int, width: int) -> Tensor:
        return torch.from_numpy(get_2d_sincos_pos_embed(width, side, cls_token=True)).float()

    before, after = math.isqrt(len(table) - 1), math.isqrt(patches)
    for formula in (open_clip_sincos_pos_embed, openvision_sincos_pos_embed):
        if torch.allclose(formula(before, table.shape[1]), table.float(), atol=1e-3):
            return formula(after, table.shape[1])
    return None


def openvision_sincos_pos_embed(side: int, width: int) -> Tensor:
    """Return (1 + side², width) fixed positions of the published towers: sines and cosines, zeros for the class token.

    Source: [C], ``posemb_sincos_2d``, after MoCo v3. open_clip's own (``sin_cos_2d``) have slightly different
    frequencies.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x, y = (index.flatten()[:, None] * frequencies for index in (columns, rows))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([table.new_zeros(1, width), table]).float()


def resize_text_pos_embed(table: Tensor, length: int, fixed: int) -> Tensor:
    """Interpolate learned positions linearly to (length, width), except the first ``fixed``, which stay unchanged.

    Raises:
        UserError: ``length`` is not above ``fixed``.
    """
    if not fixed < min(len(table), length):
        raise UserError(f"model.context_length: expected more than the {fixed} fixed positions, got {length}")
    resized = F.interpolate(table[fixed:].t()[None], size=length - fixed, mode="linear", align_corners=True)
    return torch.cat([table[:fixed], resized[0].t()])
