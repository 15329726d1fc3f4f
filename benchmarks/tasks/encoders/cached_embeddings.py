"""A model's unit vectors of images and texts: read from the cache, or computed by all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.tasks.encoders.embedding import DualEncoder, embed_images, embed_texts, encoder_settings
from benchmarks.tasks.output_cache import CACHE_DIR, EmbeddingCache, cache_key
from clips.core.artifact import library_versions

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import RequiredModel


def image_embeddings(
    row: EvalModel, opener: Callable[[int], Image], names: Sequence[str], content: str
) -> torch.Tensor:
    """Return (N, D) unit vectors of images by the model's image tower, on its device.

    Args:
        row: the model.
        opener: opens image ``index``; called by several threads.
        names: (N,) for messages.
        content: hash that fixes the images and their order.

    Raises:
        UserError: an image cannot be opened, or its features are not finite; it is named.
    """
    encoder = row.tower
    kept = _kept(row, encoder, "tower", pictures=content)
    return embed_images(encoder, opener, names, row.config.batch_size, kept).to(encoder.device)


def text_embeddings(row: EvalModel, texts: Sequence[str]) -> torch.Tensor:
    """Return (M, D) unit vectors of texts, on the model's device.

    Raises:
        UserError: features that are not finite; the text is named.
    """
    kept = _kept(row, row.encoder, "encoder", texts=list(texts))
    return embed_texts(row.encoder, texts, row.config.batch_size, kept).to(row.encoder.device)


def _kept(row: EvalModel, encoder: DualEncoder, part: RequiredModel, **content: str | list[str]) -> EmbeddingCache:
    key = cache_key(
        model=row.model(part)["hash"],
        device=encoder.device,
        how={**encoder.how, **encoder_settings(encoder)},
        libraries={name: library_versions().get(name) for name in ("timm", "transformers")},  # towers may be theirs
        **content,
    )
    folder = Path(row.config.output) / CACHE_DIR / "vectors"
    return EmbeddingCache(folder=folder, key=key, processes=row.processes, again=row.config.overwrite)
