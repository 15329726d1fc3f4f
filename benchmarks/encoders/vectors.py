"""A row's unit vectors of pictures and texts: found where they are kept, otherwise computed by all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.encoders.embed import DualEncoder, computed_by, embed_images, embed_texts
from benchmarks.kept import KEPT, KeptVectors, key_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.models import Row


def image_vectors(
    row: Row, opener: Callable[[int], Image], names: Sequence[str], contents: Sequence[str]
) -> torch.Tensor:
    """(N, D) unit vectors of pictures, on the row's device.

    Args:
        row: the row.
        opener: opens picture ``index``; called by several threads.
        names: (N,) for messages.
        contents: (N,) hash of each.

    Raises:
        UserError: a picture cannot be opened, or its features are not finite; it is named.
    """
    encoder = row.encoder
    kept = _kept(row, encoder, pictures=list(contents))
    return embed_images(encoder, opener, names, row.config.batch_size, kept).to(encoder.device)


def text_vectors(row: Row, texts: Sequence[str]) -> torch.Tensor:
    """(M, D) unit vectors of texts, on the row's device.

    Raises:
        UserError: features that are not finite; the text is named.
    """
    kept = _kept(row, row.encoder, texts=list(texts))
    return embed_texts(row.encoder, texts, row.config.batch_size, kept).to(row.encoder.device)


def _kept(row: Row, encoder: DualEncoder, **content: list[str]) -> KeptVectors:
    key = key_of(
        model=row.model("encoder")["hash"],
        device=encoder.device,
        how={**encoder.how, **computed_by(encoder)},
        **content,
    )
    folder = Path(row.config.results) / KEPT / "vectors"
    return KeptVectors(folder=folder, key=key, processes=row.processes, again=row.config.again)
