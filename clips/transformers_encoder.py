"""Encoders with a text tower that transformers loads: CLIP, MetaCLIP 2, SigLIP, SigLIP 2, AIMv2, TIPSv2."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.errors import UserError
from clips.model_refs import DUAL_MODELS

if TYPE_CHECKING:
    import torch

_CLEANING = {
    "clip": "whitespace",  # as OpenAI's code and open_clip do, and `clips import` too; transformers keeps curly quotes
    "siglip": "canonicalize",
    "siglip2": "canonicalize",  # its tokenizer of fixed resolution keeps case and punctuation
}
"""Model type → open_clip's cleaning of texts in its configs."""
_MASKED_PADDING = ("tipsv2",)  # the text towers of the others were trained with visible or later padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformersEncoder:
    """A loaded directory in the transformers format, with the interface of `clips.encoder.LoadedEncoder`.

    Args:
        model: both towers, in evaluation mode, on CPU, float32.
        preprocess: image → (3, size, size) float tensor.
        tokenizer: list of n strings, and optionally another length → (n, length) int64 tokens.
        processor: transformers' image processor.
        cleaning: open_clip's name of the function that cleans texts, if there is one.
    """

    model: TransformersTowers
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Callable[..., torch.Tensor]
    processor: Any
    cleaning: str | None


def load_transformers_encoder(path: str | Path) -> TransformersEncoder:
    """Load image and text tower of a directory in the transformers format, with its own preprocessing and tokenizer.

    Args:
        path: the directory.

    Raises:
        UserError: it is of another type, or its files are incomplete.
    """
    import torch
    from open_clip.tokenizer import get_clean_fn
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    from clips.model.loading import library_errors_as_user_errors, load_pretrained, require_finite
    from clips.model.tokenizer import truncate_text

    with library_errors_as_user_errors(f"encoder: {path}: expected a directory in the transformers format"):
        config = AutoConfig.from_pretrained(path)
    if config.model_type not in DUAL_MODELS:
        expected = f"expected a text tower as well, that of a {', '.join(DUAL_MODELS)}"
        raise UserError(f"encoder: {path} is a {config.model_type}; {expected}")
    length = config.text_config.max_position_embeddings
    # AIMv2's texts are causal, but under SDPA transformers ignores it in a batch without padding.
    options = {"attn_implementation": "eager"} if config.model_type == "aimv2" else {}
    model = load_pretrained(AutoModel, Path(path), f"encoder: {path}", dtype=torch.float32, **options)
    require_finite(model.state_dict(), f"encoder: {path}")
    with library_errors_as_user_errors(f"encoder: {path}: expected the files of its preprocessing and tokenizer"):
        images, tokenizer = AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    cleaning = _CLEANING.get(config.model_type)
    clean = get_clean_fn(cleaning) if cleaning else str

    def tokenize(texts: list[str], context_length: int | None = None) -> torch.Tensor:
        most = context_length or length
        shortened = [clean(truncate_text(text, most)) for text in texts]
        return tokenizer(
            shortened, padding="max_length", truncation=True, max_length=most, return_tensors="pt"
        ).input_ids

    padding = tokenizer.pad_token_id if config.model_type in _MASKED_PADDING else None

    def preprocess(image: Any) -> torch.Tensor:
        if config.model_type == "siglip2":  # NaFlex, whose processor would keep the aspect ratio
            side = math.isqrt(images.max_num_patches)
            square = image.convert("RGB").resize([side * images.patch_size] * 2, images.resample)
            return images(square, return_tensors="pt").pixel_values[:, : side**2]
        return images(image, return_tensors="pt").pixel_values[0]

    return TransformersEncoder(
        model=TransformersTowers(model.eval(), padding),
        preprocess=preprocess,
        tokenizer=tokenize,
        processor=images,
        cleaning=cleaning,
    )


class TransformersTowers:
    """A transformers model with the functions of open_clip's.

    Args:
        model: with ``get_image_features`` and ``get_text_features``.
        padding: the token that texts do not attend to; None if padding has no effect or is part of the text.
    """

    def __init__(self, model: Any, padding: int | None) -> None:
        self.model = model
        self.padding = padding

    def to(self, **options: Any) -> TransformersTowers:
        """Move or convert the model, in place."""
        self.model.to(**options)
        return self

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, E) of pixels (B, 3, S, S), or of a square's patches (B, 1, N, P · P · 3), for SigLIP 2 NaFlex."""
        grid: dict[str, torch.Tensor] = {}
        if pixels.shape[1] == 1:
            pixels = pixels[:, 0]
            mask = pixels.new_ones(pixels.shape[:2]).long()
            grid = {"pixel_attention_mask": mask, "spatial_shapes": mask[:, :2] * math.isqrt(pixels.shape[1])}
        return self.model.get_image_features(pixel_values=pixels, **grid).pooler_output

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, E) of tokens (B, L)."""
        mask = tokens.new_ones(tokens.shape) if self.padding is None else (tokens != self.padding).long()
        return self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
