"""A model's unit vectors of images and texts: read from the cache, or computed by all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.encoders.embed import DualEncoder, computed_by, embed_images, embed_texts
from benchmarks.kept import KEPT, KeptVectors, key_of
from clips.core.artifact import versions

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.config import Needs
    from benchmarks.models import Row


def image_vectors(row: Row, opener: Callable[[int], Image], names: Sequence[str], content: str) -> torch.Tensor:
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


def text_vectors(row: Row, texts: Sequence[str]) -> torch.Tensor:
    """Return (M, D) unit vectors of texts, on the model's device.

    Raises:
        UserError: features that are not finite; the text is named.
    """
    kept = _kept(row, row.encoder, "encoder", texts=list(texts))
    return embed_texts(row.encoder, texts, row.config.batch_size, kept).to(row.encoder.device)


def _kept(row: Row, encoder: DualEncoder, part: Needs, **content: str | list[str]) -> KeptVectors:
    key = key_of(
        model=row.model(part)["hash"],
        device=encoder.device,
        how={**encoder.how, **computed_by(encoder)},
        libraries={name: versions().get(name) for name in ("timm", "transformers")},  # towers may be theirs
        **content,
    )
    folder = Path(row.config.results) / KEPT / "vectors"
    return KeptVectors(folder=folder, key=key, processes=row.processes, again=row.config.again)
