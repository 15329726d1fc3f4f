"""Encoders with a text tower that transformers loads: CLIP, MetaCLIP 2, SigLIP, SigLIP 2, AIMv2, TIPSv2.

Images of SigLIP 2 NaFlex keep their aspect ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries
from benchmarks.tasks.encoders.embedding import DualEncoder, library_entry
from clips.errors import UserError

if TYPE_CHECKING:
    import torch

_NATIVE = "siglip2"  # SigLIP 2 NaFlex; those of fixed resolution are of type siglip
_CLEANED_TEXTS = ("siglip", "siglip2")  # SigLIP 2's tokenizer of fixed resolution keeps case and punctuation
_CLEANING = "canonicalize"  # as open_clip's configs of both do: lower case, no punctuation
_MASKED_PADDING = ("tipsv2",)  # the text towers of the others were trained with visible or later padding
_GRID_BASE = 256  # sizes of grids are stored as two digits, because larger numbers are not exact in bfloat16


def load_transformers_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load image and text tower of a directory in the transformers format, with its own preprocessing and tokenizer.

    Raises:
        UserError: it is of another type, or its files are incomplete.
    """
    import torch
    from open_clip.tokenizer import get_clean_fn
    from PIL.Image import Resampling
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

    from clips.model.loading import library_errors_as_user_errors, load_pretrained
    from clips.model.tokenizer import truncate_text
    from llava_bridge.encoders.spec import DUAL_MODELS
    from llava_bridge.encoders.transformers_source import image_size_of

    with library_errors_as_user_errors(f"encoder: {path}: expected a directory in the transformers format"):
        config = AutoConfig.from_pretrained(path)
    if config.model_type not in DUAL_MODELS:
        expected = f"expected a text tower for this benchmark, that of a {', '.join(DUAL_MODELS)}"
        raise UserError(f"encoder: {path} is a {config.model_type}; {expected}")
    length = config.text_config.max_position_embeddings
    # AIMv2's texts are causal, but under SDPA transformers ignores it in a batch without padding.
    options = {"attn_implementation": "eager"} if config.model_type == "aimv2" else {}
    model = load_pretrained(AutoModel, Path(path), f"encoder: {path}", dtype=torch.float32, **options)
    with library_errors_as_user_errors(f"encoder: {path}: expected the files of its preprocessing and tokenizer"):
        images, tokenizer = AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path)

    cleaned = config.model_type in _CLEANED_TEXTS
    clean = get_clean_fn(_CLEANING) if cleaned else str

    def tokenize(texts: list[str]) -> torch.Tensor:
        shortened = [clean(truncate_text(text, length)) for text in texts]
        return tokenizer(
            shortened, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).input_ids

    precision = "float32" if precision == "auto" else precision
    padding = tokenizer.pad_token_id if config.model_type in _MASKED_PADDING else None
    native = config.model_type == _NATIVE
    if native:
        sizes: Entries = {"input_resolution": images.patch_size * math.isqrt(images.max_num_patches)}
        sizes |= {"input_resize": f"own aspect ratio, at most {images.max_num_patches} patches"}
    else:
        fit = "shortest" if getattr(images, "do_center_crop", False) else "squash"
        sizes = {"input_resolution": image_size_of(images), "input_resize": fit}
    sizes |= {"input_interpolation": Resampling(int(images.resample)).name.lower()}
    sizes |= {"input_text_cleaning": f"open_clip's {_CLEANING}"} if cleaned else {}
    return DualEncoder(
        model=_Towers(model.to(device=device, dtype=getattr(torch, precision)).eval(), padding, native=native),
        preprocess=_pack_patches(images)
        if native
        else lambda image: images(image, return_tensors="pt").pixel_values[0],
        tokenizer=tokenize,
        preprocessing=sizes | library_entry("transformers"),
        device=device,
        precision=precision,
    )


def _pack_patches(processor: Any) -> Callable[[Any], torch.Tensor]:
    """Return a function from an image to (1, N + 1, C): patches, padded to N, and a row that begins with the grid."""
    import torch

    def pack(image: Any) -> torch.Tensor:
        found = processor(image, return_tensors="pt")
        patches = found["pixel_values"][0]
        grid = patches.new_zeros(1, patches.shape[1])
        sizes = found["spatial_shapes"][0]
        grid[0, :2], grid[0, 2:4] = sizes // _GRID_BASE, sizes % _GRID_BASE
        return torch.cat([patches, grid])[None]

    return pack


class _Towers:
    """A transformers model with the functions of open_clip's.

    Args:
        model: with ``get_image_features`` and ``get_text_features``.
        padding: the token that texts do not attend to; None if padding has no effect or is part of the text.
        native: whether images keep their aspect ratio.
    """

    def __init__(self, model: Any, padding: int | None, *, native: bool) -> None:
        self.model = model
        self.padding = padding
        self.native = native

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, E) of pixels (B, 3, S, S), or of packed patches (B, 1, N + 1, C)."""
        import torch

        if not self.native:
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        patches, grid = pixels[:, 0, :-1], pixels[:, 0, -1, :4].long()
        shapes = grid[:, :2] * _GRID_BASE + grid[:, 2:]
        numbers = torch.arange(1, patches.shape[1] + 1, device=pixels.device)  # bfloat16 has no 257
        mask = numbers <= shapes.prod(dim=1, keepdim=True)
        found = self.model.get_image_features(
            pixel_values=patches, pixel_attention_mask=mask.int(), spatial_shapes=shapes
        )
        return found.pooler_output

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, E) of tokens (B, L)."""
        mask = tokens.new_ones(tokens.shape) if self.padding is None else (tokens != self.padding).long()
        return self.model.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
