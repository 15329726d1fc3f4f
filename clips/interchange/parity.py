"""Compare two encoders by their features for the same images and texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from clips.core.patches import resized, view
from clips.interchange.imported_encoder import Features
from clips.model.architectures import image_view

_TEXTS = ["a photo of a cat", "Two red buses stand beside a tree, and a dog runs across the street.", ""]


@torch.no_grad()
def max_feature_difference(encoder: Any, features: Features) -> float:
    """Return the largest difference between the unit features of an encoder and those of ``features``.

    Args:
        encoder: a `clips.encoder.LoadedEncoder`; images are noise of its size, or of two shapes within its budget.
        features: computes the features to compare with.
    """
    preprocess, noise = encoder.config["preprocess_cfg"], torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, *preprocess["size"], generator=noise)
    if "max_num_patches" in preprocess:
        budget = image_view(encoder.config["model_cfg"], preprocess["max_num_patches"])
        shapes = (resized(budget, *sides) for sides in ((2, 1), (1, 1)))
        pixels = torch.stack([view(torch.randn(3, *shape, generator=noise), budget) for shape in shapes])
    tokens = encoder.tokenizer(_TEXTS)
    ours = encoder.model.encode_image(pixels), encoder.model.encode_text(tokens)
    pairs = zip(ours, features(pixels, tokens), strict=True)
    return max(float((F.normalize(own, dim=-1) - F.normalize(other, dim=-1)).abs().max()) for own, other in pairs)
