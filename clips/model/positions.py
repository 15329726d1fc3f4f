"""Tables of positions for another picture size or text length than they were learnt for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clips.errors import UserError


def on_grid(table: Tensor, patches: int, prefix: int, *, antialias: bool = True) -> Tensor:
    """Learnt positions for a square of so many patches, interpolated (bicubic) from those of another square.

    Args:
        table: (prefix + patches then, D).
        patches: how many there are to be.
        prefix: rows before those of the patches, which stay.
        antialias: as open_clip does; transformers does without, and takes another cubic.
    """
    before, after = math.isqrt(len(table) - prefix), math.isqrt(patches)
    if before == after:
        return table
    grid = table[prefix:].T.reshape(1, -1, before, before)
    resized = F.interpolate(grid, size=(after, after), mode="bicubic", antialias=antialias, align_corners=False)
    return torch.cat([table[:prefix], resized[0].flatten(1).T])


def on_trunks_grid(table: Tensor, trunk: Any) -> Tensor:
    """Learnt positions for a timm ViT, interpolated as timm itself does; those that fit already are given back.

    Args:
        table: (1, prefix + patches then, D).
        trunk: of the picture size that is wanted; one without such a table has nothing to fit.
    """
    own = getattr(trunk, "pos_embed", None)
    if not isinstance(own, Tensor) or own.ndim != 3 or own.shape == table.shape:
        return table
    from timm.layers import resample_abs_pos_embed

    prefix = 0 if getattr(trunk, "no_embed_class", False) else int(getattr(trunk, "num_prefix_tokens", 0))
    return resample_abs_pos_embed(table, new_size=list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix)


def sines_on_grid(table: Tensor, patches: int) -> Tensor | None:
    """Fixed positions for a square of so many patches by the formula of ``table``, open_clip's or the authors'.

    Args:
        table: (1 + patches then, D), the first for the class token.
        patches: how many there are to be.

    Returns:
        (1 + patches, D), or None where ``table`` follows neither.
    """
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    def stock(side: int, width: int) -> Tensor:
        return torch.from_numpy(get_2d_sincos_pos_embed(width, side, cls_token=True)).float()

    before, after = math.isqrt(len(table) - 1), math.isqrt(patches)
    for formula in (stock, authors_positions):
        if torch.allclose(formula(before, table.shape[1]), table.float(), atol=1e-3):
            return formula(after, table.shape[1])
    return None


def authors_positions(side: int, width: int) -> Tensor:
    """(1 + side², width) fixed positions of the released towers: sines and cosines, zeros for the class token.

    Source: [C], ``posemb_sincos_2d``, after MoCo v3. open_clip's own (``sin_cos_2d``) have slightly other frequencies.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4 - 1))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    x, y = (place.flatten()[:, None] * frequencies for place in (columns, rows))
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([table.new_zeros(1, width), table]).float()


def stretch_positions(table: Tensor, length: int, kept: int) -> Tensor:
    """(length, width) positions from ``table``: the first ``kept`` as they are, the rest interpolated.

    Raises:
        UserError: there would be no room for the rest.
    """
    if not kept < min(len(table), length):
        raise UserError(f"model.context_length: expected more than the {kept} positions that are kept, got {length}")
    rest = F.interpolate(table[kept:].t()[None], size=length - kept, mode="linear", align_corners=True)
    return torch.cat([table[:kept], rest[0].t()])
