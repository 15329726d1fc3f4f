"""Compare two encoders by their features for the same images and texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from clips.interchange.imported_encoder import Features

_TEXTS = ["a photo of a cat", "Two red buses stand beside a tree, and a dog runs across the street.", ""]


@torch.no_grad()
def max_feature_difference(encoder: Any, features: Features) -> float:
    """Return the largest difference between the unit features of an encoder and those of ``features``.

    Args:
        encoder: a `clips.encoder.LoadedEncoder`; images are noise of its size.
        features: computes the features to compare with.
    """
    size = encoder.config["preprocess_cfg"]["size"]
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    tokens = encoder.tokenizer(_TEXTS)
    ours = encoder.model.encode_image(pixels), encoder.model.encode_text(tokens)
    pairs = zip(ours, features(pixels, tokens), strict=True)
    return max(float((F.normalize(own, dim=-1) - F.normalize(other, dim=-1)).abs().max()) for own, other in pairs)
