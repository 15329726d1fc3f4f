"""Encoders of other libraries: with a text tower of transformers, without one from any source that a LLaVA can use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries
from benchmarks.tasks.encoders.embedding import DualEncoder, library_entry
from clips.errors import UserError

if TYPE_CHECKING:
    import torch


def load_transformers_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load a directory in the transformers format, see `clips.transformers_encoder.load_transformers_encoder`."""
    import torch
    from PIL.Image import Resampling

    from clips import transformers_encoder
    from llava_bridge.encoders.transformers_source import image_size_of

    encoder = transformers_encoder.load_transformers_encoder(path)
    images, precision = encoder.processor, "float32" if precision == "auto" else precision
    fit = "shortest" if getattr(images, "do_center_crop", False) else "squash"
    side = image_size_of(images) or images.patch_size * math.isqrt(images.max_num_patches)  # SigLIP 2 NaFlex's square
    sizes: Entries = {"input_resolution": side, "input_resize": fit}
    sizes |= {"input_interpolation": Resampling(int(images.resample)).name.lower()}
    sizes |= {"input_text_cleaning": f"open_clip's {encoder.cleaning}"} if encoder.cleaning else {}
    return DualEncoder(
        model=encoder.model.to(device=device, dtype=getattr(torch, precision)),
        preprocess=encoder.preprocess,
        tokenizer=encoder.tokenizer,
        preprocessing=sizes | library_entry("transformers"),
        device=device,
        precision=precision,
    )


def load_image_tower(spec: str, device: str, precision: str) -> DualEncoder:
    """Load the tower ``spec`` (see :mod:`llava_bridge.encoders`); it rejects texts.

    Its image embedding is the class token of the last hidden state, or the mean over the tokens if there is none.
    Images are resized by their shorter side and center-cropped.

    Args:
        spec: the encoder; an open_clip directory as well.
        device: torch device.
        precision: dtype, or ``auto``.

    Raises:
        UserError: no such encoder, or its weights do not match.
    """
    import torch

    from llava_bridge.encoders import build_tower, load_encoder
    from llava_bridge.encoders.spec import parse_spec
    from llava_bridge.model.image_processing import make_image_processor

    torch.manual_seed(0)  # for a tower without pretrained weights
    encoder = load_encoder(spec)
    tower = build_tower(encoder.source, encoder.architecture)
    if encoder.weights is not None:
        tower.load_state_dict(dict(encoder.weights))
    precision = "float32" if precision == "auto" else precision
    processor = make_image_processor(encoder.pixels, "crop")
    source, _ = parse_spec(spec)
    pooled = "class token" if tower.class_token else "mean of the tokens"
    settings: Entries = {
        "input_resolution": encoder.pixels.size,
        "input_resize": "shortest",
        "input_interpolation": encoder.pixels.interpolation,
        "input_features": f"{pooled} of {tower.describe(-1)}",
    }
    return DualEncoder(
        model=_Pooled(tower.to(device=device, dtype=getattr(torch, precision)).eval()),
        preprocess=lambda image: processor(image, return_tensors="pt")["pixel_values"][0],
        tokenizer=_reject_texts,
        preprocessing=settings | (library_entry(source) if source in ("timm", "transformers") else {}),
        device=device,
        precision=precision,
    )


class _Pooled:
    def __init__(self, tower: Any) -> None:
        self.tower = tower

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (B, D) of pixels (B, 3, S, S)."""
        *_, last = self.tower.states(pixels, self.tower.depth)
        return last[:, 0] if self.tower.class_token else last.mean(dim=1)


def _reject_texts(texts: list[str]) -> torch.Tensor:
    raise UserError("this encoder has no text tower")
