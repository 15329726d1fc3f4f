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
    """Return (B, h, w, E) vectors of the images' patches, not normalized.

    Args:
        model: an open_clip model.
        pixels: (B, 3, H, W), normalized.

    Raises:
        UserError: an image tower of another type.
    """
    from open_clip.transformer import VisionTransformer

    visual = getattr(model, "visual", None)
    try:
        if hasattr(visual, "trunk"):
            patches = _embed_timm(visual, pixels)
        elif hasattr(visual, "attnpool"):
            patches = _embed_resnet(visual, pixels)
        elif isinstance(visual, VisionTransformer):
            patches = _embed_vit(visual, pixels)
        else:
            raise UserError(f"encoder: no patch embeddings for {type(visual).__name__}")
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UserError(f"encoder: no patch embeddings ({error})") from None
    return patches.unflatten(1, _grid_size(patches.shape[1], pixels.shape[2], pixels.shape[3]))


def _embed_vit(visual: Any, pixels: Tensor) -> Tensor:
    by_class_token = visual.attn_pool is None and visual.pool_type == "tok"
    blocks = visual.transformer.resblocks
    x = visual._embeds(pixels)
    for block in blocks[:-1] if by_class_token else blocks:
        x = block(x)
    single = _as_sequences(x[:, 1:], 2)  # twice: pooling expects the class token at the first position
    if by_class_token:
        single = blocks[-1](single)
    pooled, _ = visual._pool(single)
    projected = pooled if visual.proj is None else pooled @ visual.proj
    return projected.unflatten(0, (len(pixels), -1))


def _embed_resnet(visual: Any, pixels: Tensor) -> Tensor:
    pool = visual.attnpool
    features = visual.forward_intermediates(pixels, indices=1)["image_intermediates"][0]
    tokens = features.flatten(2).transpose(1, 2) + pool.positional_embedding[1:].to(features.dtype)
    return pool.c_proj(pool.v_proj(tokens))


def _embed_timm(visual: Any, pixels: Tensor) -> Tensor:
    trunk = visual.trunk
    features = trunk.forward_features(pixels)
    if features.ndim == 3:
        prefix = getattr(trunk, "num_prefix_tokens", 0)
        single = _as_sequences(features[:, prefix:], prefix + 1)
    elif getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        single = features.flatten(0, 2)[:, None, None, :]
    else:
        single = features.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
    return visual.head(trunk.forward_head(single)).unflatten(0, (len(pixels), -1))


def _as_sequences(tokens: Tensor, copies: int) -> Tensor:
    """Reshape (B, I, D) tokens to (B · I, copies, D), each a sequence of its own."""
    return tokens.flatten(0, 1)[:, None].expand(-1, copies, -1)


def _grid_size(patches: int, height: int, width: int) -> tuple[int, int]:
    rows = round((patches * height / width) ** 0.5)
    if rows < 1 or patches % rows:
        raise UserError(f"encoder: its {patches} patches form no grid over an image of {width}x{height}")
    return rows, patches // rows


def similarity_maps(patches: Tensor, texts: Tensor) -> Tensor:
    """Return (P, h, w) cosine of each patch (h, w, E) of one image with each of P phrases, (P, E) unit vectors."""
    unit = torch.nn.functional.normalize(patches.float(), dim=-1)
    return torch.einsum("hwe,pe->phw", unit, texts.float())
