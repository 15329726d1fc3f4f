"""Encoders of open_clip and of other libraries, loaded with their preprocessing and tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import PIXELS, Entries
from clips.core.artifact import library_versions
from clips.errors import UserError
from clips.model_refs import OPEN_CLIP_CONFIG
from llava_bridge.encoders import has_text_tower, parse_spec

if TYPE_CHECKING:
    import torch

    from clips.encoder import LoadedEncoder


@dataclass(frozen=True, kw_only=True)
class DualEncoder:
    """An encoder ready to embed."""

    model: Any  # has ``encode_image(pixels (B, 3, H, W))`` and ``encode_text(tokens (B, L))``
    preprocess: Callable[[Any], torch.Tensor]  # PIL image → (3, H, W)
    tokenizer: Callable[..., torch.Tensor]  # list of texts, and optionally another context length than its own → (B, L)
    preprocessing: Entries  # protocol entries of the image preprocessing that the model's directory records
    device: str  # torch device
    precision: str  # the dtype of the towers

    @property
    def settings(self) -> Entries:
        """Protocol entries: preprocessing, precision, library versions without build tags (``+cpu``)."""
        versions = {name: library_versions()[name].partition("+")[0] for name in ("torch", "open_clip_torch")}
        return {**self.preprocessing, **PIXELS, "precision": self.precision, **versions}


def load_dual_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load an encoder directory in open_clip's Hub format; without a text tower it rejects texts.

    Raises:
        UserError: not an encoder directory.
    """
    if not (Path(path) / OPEN_CLIP_CONFIG).is_file():
        raise UserError(f"encoder: {path}: expected a directory with {OPEN_CLIP_CONFIG}")
    import torch

    from clips.encoder import load_encoder

    precision = "float32" if precision == "auto" else precision
    encoder = load_encoder(path)
    model = encoder.model.to(device=device, dtype=getattr(torch, precision)).eval()
    return DualEncoder(
        model=model,
        preprocess=encoder.preprocess,
        tokenizer=encoder.tokenizer,
        preprocessing=describe_preprocessing(encoder, path),
        device=device,
        precision=precision,
    )


def describe_preprocessing(encoder: LoadedEncoder, path: str) -> Entries:
    """The preprocessing of an open_clip encoder, as results state it."""
    visual, stated = encoder.model.visual, encoder.config.get("preprocess_cfg", {})
    settings = getattr(visual, "preprocess_cfg", None) or stated
    size = settings.get("size") or visual.image_size
    features = {} if has_text_tower(path) else {"input_features": "mean of the patch tokens of the last layer"}
    return {
        "input_resolution": max(size) if isinstance(size, list | tuple) else int(size),
        "input_resize": str(settings.get("resize_mode", "shortest")),
        "input_interpolation": str(settings.get("interpolation", "bicubic")),
        **features,
    }


def load_transformers_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load a directory in the transformers format, see `clips.encoder.load_transformers_encoder`."""
    import torch
    from PIL.Image import Resampling

    from clips import encoder as encoders
    from llava_bridge.encoders.transformers_source import image_size_of

    encoder = encoders.load_transformers_encoder(path)
    images, precision = encoder.processor, "float32" if precision == "auto" else precision
    fit = "shortest" if getattr(images, "do_center_crop", False) else "squash"
    side = image_size_of(images) or images.patch_size * math.isqrt(images.max_num_patches)  # SigLIP 2 NaFlex's square
    settings: Entries = {
        "input_resolution": side,
        "input_resize": fit,
        "input_interpolation": Resampling(int(images.resample)).name.lower(),
        **({"input_text_cleaning": f"open_clip's {encoder.cleaning}"} if encoder.cleaning else {}),
        **_library_entry("transformers"),
    }
    return DualEncoder(
        model=encoder.model.to(device=device, dtype=getattr(torch, precision)),
        preprocess=encoder.preprocess,
        tokenizer=encoder.tokenizer,
        preprocessing=settings,
        device=device,
        precision=precision,
    )


def load_image_tower(spec: str, device: str, precision: str) -> DualEncoder:
    """Load the tower ``spec`` (see :mod:`llava_bridge.encoders`); it rejects texts.

    Its image embedding is the class token of the last hidden state, or the mean over the tokens if there is none.
    Images are resized by their shorter side and center-cropped.

    Raises:
        UserError: no such encoder, or its weights do not match.
    """
    import torch

    from llava_bridge.encoders import build_tower, load_encoder
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
        preprocessing=settings | (_library_entry(source) if source in ("timm", "transformers") else {}),
        device=device,
        precision=precision,
    )


class _Pooled:
    def __init__(self, tower: Any) -> None:
        self.tower = tower

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:  # (B, 3, S, S) → (B, D)
        *_, last = self.tower.states(pixels, self.tower.depth)
        return last[:, 0] if self.tower.class_token else last.mean(dim=1)


def _reject_texts(texts: list[str]) -> torch.Tensor:
    raise UserError("this encoder has no text tower")


def _library_entry(name: str) -> Entries:
    # the library that builds an encoder is an entry of the model: others are ranked with it
    return {"input_library": f"{name} {library_versions()[name].partition('+')[0]}"}
