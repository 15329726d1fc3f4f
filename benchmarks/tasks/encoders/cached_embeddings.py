"""A model's unit vectors of images and texts: read from the cache, or computed by all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.tasks.encoders.embedding import DualEncoder, embed_images, embed_texts
from benchmarks.tasks.output_cache import CACHE_DIR, EmbeddingCache, cache_key
from clips.core.artifact import library_versions

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import RequiredModel


def image_embeddings(
    model: EvalModel,
    opener: Callable[[int], Image],
    names: Sequence[str],
    content: str,
    part: Literal["tower", "encoder", "patch_tower"] = "tower",
) -> torch.Tensor:
    """Return (N, D) unit vectors of images by the model's image tower, on its device.

    Args:
        opener: opens image ``index``; called by several threads.
        names: (N,) image names for messages.
        content: hash of the images and their order.
        part: ``encoder`` for vectors that are compared with those of texts, ``patch_tower`` for mean patch tokens.

    Raises:
        UserError: an image cannot be opened, or its features are not finite; the message names it.
    """
    encoder: DualEncoder = getattr(model, part)
    cache = embedding_cache(model, encoder, "encoder" if part == "encoder" else "tower", images=content)
    return embed_images(encoder, opener, names, model.config.batch_size, cache).to(encoder.device)


def text_embeddings(model: EvalModel, texts: Sequence[str]) -> torch.Tensor:
    """Return (M, D) unit vectors of texts, on the model's device.

    Raises:
        UserError: features that are not finite; the message names the text.
    """
    cache = embedding_cache(model, model.encoder, "encoder", texts=list(texts))
    return embed_texts(model.encoder, texts, model.config.batch_size, cache).to(model.encoder.device)


def embedding_cache(
    model: EvalModel, encoder: DualEncoder, part: RequiredModel, **content: str | list[str]
) -> EmbeddingCache:
    """The cache of the vectors of some data, whose content is part of the key."""
    key = cache_key(
        model=model.record(part)["hash"],
        device=encoder.device,
        settings=encoder.settings,
        libraries={name: library_versions().get(name) for name in ("timm", "transformers")},  # third-party towers
        **content,
    )
    folder = Path(model.config.output) / CACHE_DIR / "vectors"
    return EmbeddingCache(folder=folder, key=key, processes=model.processes, overwrite=model.config.overwrite)
