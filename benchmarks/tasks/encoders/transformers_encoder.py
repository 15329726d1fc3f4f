"""Encoders with a text tower that transformers loads, as benchmarks embed with them."""

from __future__ import annotations

import math

from benchmarks.results.protocol import Entries
from benchmarks.tasks.encoders.embedding import DualEncoder, library_entry


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
