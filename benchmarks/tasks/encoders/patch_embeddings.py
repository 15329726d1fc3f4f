"""Patch embeddings of an encoder in the joint space of images and texts.

An image's embedding is pooled from its patches. Here every patch passes through the pooling alone: an attention over a
single patch returns that patch's value, regardless of the query. Source: MaskCLIP (Zhou, Loy and Dai 2022, arXiv
2112.01071), which uses the value path of CLIP's last attention; by tower:

- ViT with a class token: each patch passes through the last block alone, then final norm and projection.
- ViT with the mean of the patches, or with attention pooling: each patch passes through pooling and projection alone.
- CLIP's ResNet: the value and output projection of its attention pooling, positions included.
- timm's trunks: each patch passes through the trunk's own pooling and head alone.

Letters: B images, I patches in h rows of w, D width of a token, E width of the joint space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clips.errors import UserError


def patch_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """Return (B, h, w, E) vectors of the patches of images, not normalized.

    Args:
        model: an open_clip model.
        pixels: (B, 3, H, W), normalized.

    Raises:
        UserError: the image tower pools its patches in another way than those above.
    """
    from open_clip.transformer import VisionTransformer

    visual = model.visual
    try:
        if hasattr(visual, "trunk"):
            places = _of_trunk(visual, pixels)
        elif hasattr(visual, "attnpool"):
            places = _of_resnet(visual, pixels)
        elif isinstance(visual, VisionTransformer):
            places = _of_vit(visual, pixels)
        else:
            raise UserError(f"encoder: it cannot be looked into place by place ({type(visual).__name__})")
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UserError(f"encoder: it cannot be looked into place by place ({error})") from None
    height, width = _grid(places.shape[1], pixels.shape[2], pixels.shape[3])
    return places.unflatten(1, (height, width))


def _of_vit(visual: Any, pixels: Tensor) -> Tensor:
    by_class_token = visual.attn_pool is None and visual.pool_type == "tok"
    blocks = visual.transformer.resblocks
    x = visual._embeds(pixels)
    for block in blocks[:-1] if by_class_token else blocks:
        x = block(x)
    alone = _alone(x[:, 1:], 2)  # twice: pooling expects the class token at the first position
    if by_class_token:
        alone = blocks[-1](alone)
    pooled, _ = visual._pool(alone)
    projected = pooled if visual.proj is None else pooled @ visual.proj
    return projected.unflatten(0, (len(pixels), -1))


def _of_resnet(visual: Any, pixels: Tensor) -> Tensor:
    pool = visual.attnpool
    features = visual.forward_intermediates(pixels, indices=1)["image_intermediates"][0]
    tokens = features.flatten(2).transpose(1, 2) + pool.positional_embedding[1:].to(features.dtype)
    return pool.c_proj(pool.v_proj(tokens))


def _of_trunk(visual: Any, pixels: Tensor) -> Tensor:
    trunk = visual.trunk
    features = trunk.forward_features(pixels)
    if features.ndim == 3:
        prefix = getattr(trunk, "num_prefix_tokens", 0)
        alone = _alone(features[:, prefix:], prefix + 1)
    elif getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        alone = features.flatten(0, 2)[:, None, None, :]
    else:
        alone = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
    return visual.head(trunk.forward_head(alone)).unflatten(0, (len(pixels), -1))


def _alone(tokens: Tensor, copies: int) -> Tensor:
    """Reshape (B, I, D) tokens to (B · I, copies, D), each a sequence of its own."""
    return tokens.flatten(0, 1)[:, None].expand(-1, copies, -1)


def _grid(places: int, height: int, width: int) -> tuple[int, int]:
    rows = round((places * height / width) ** 0.5)
    if rows < 1 or places % rows:
        raise UserError(f"encoder: its {places} places are no grid over an image of {width}x{height}")
    return rows, places // rows


def similarity_maps(places: Tensor, texts: Tensor) -> Tensor:
    """Return (P, h, w) cosine of each patch of one image with each of P phrases.

    Args:
        places: (h, w, E).
        texts: (P, E) unit vectors.
    """
    unit = torch.nn.functional.normalize(places.float(), dim=-1)
    return torch.einsum("hwe,pe->phw", unit, texts.float())
