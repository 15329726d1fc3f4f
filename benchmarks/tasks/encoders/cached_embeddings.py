"""A model's unit vectors of images and texts: read from the cache, or computed by all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.tasks.encoders.embedding import DualEncoder, embed_images, embed_texts
from benchmarks.tasks.output_cache import CACHE_DIR, INPUT_LIBRARIES, EmbeddingCache, cache_key
from clips.core.artifact import library_versions
from clips.core.identity import digest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import RequiredModel


_SAMPLED_TEXTS = 1000  # tokenized for the key


def image_embeddings(
    model: EvalModel,
    opener: Callable[[int], Image],
    names: Sequence[str],
    content: str | Sequence[str],
    part: Literal["tower", "encoder"] = "tower",
) -> torch.Tensor:
    """Return (N, D) unit vectors of images by the model's image tower, on its device.

    Args:
        opener: opens image ``index``; called by several threads.
        names: (N,) image names for messages.
        content: hash of the images and their order; or (N,) the hash of each, and equal ones are embedded once: in
            another batch their vectors would differ, in bf16 by more than other images' do.
        part: ``encoder`` for vectors that are compared with those of texts.

    Raises:
        UserError: an image cannot be opened, or its features are not finite; the message names it.
    """
    encoder: DualEncoder = getattr(model, part)
    unique, places = _distinct(names if isinstance(content, str) else content)
    key = content if isinstance(content, str) else digest([content[index] for index in unique])
    cache = embedding_cache(model, encoder, part, images=key)
    vectors = embed_images(
        encoder,
        lambda number: opener(unique[number]),
        [names[index] for index in unique],
        model.config.batch_size,
        cache,
    )
    return vectors[places].to(encoder.device)


def text_embeddings(model: EvalModel, texts: Sequence[str]) -> torch.Tensor:
    """Return (M, D) unit vectors of texts, on the model's device; equal texts have equal vectors.

    Raises:
        UserError: features that are not finite; the message names the text.
    """
    encoder = model.encoder
    indices, places = _distinct(texts)
    unique = [texts[index] for index in indices]
    # the tokenizer may be one that the model's directory only names
    sample = unique[:: max(1, len(unique) // _SAMPLED_TEXTS)]
    cache = embedding_cache(
        model, encoder, "encoder", texts=unique, tokens=digest([encoder.tokenizer([text]).tolist() for text in sample])
    )
    return embed_texts(encoder, unique, model.config.batch_size, cache)[places].to(encoder.device)


def _distinct(values: Sequence[str]) -> tuple[list[int], list[int]]:
    """The index of each value's first appearance, and each value's place among these."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        first.setdefault(value, index)
    place_of = {value: place for place, value in enumerate(first)}
    return [*first.values()], [place_of[value] for value in values]


def embedding_cache(
    model: EvalModel, encoder: DualEncoder, part: RequiredModel, **content: str | list[str]
) -> EmbeddingCache:
    """The cache of the vectors of some data, whose content is part of the key."""
    key = cache_key(
        model=model.record(part)["hash"],
        device=encoder.device,
        settings=encoder.settings,
        libraries={name: library_versions().get(name) for name in ("timm", "transformers", *INPUT_LIBRARIES)},
        **content,
    )
    folder = Path(model.config.output) / CACHE_DIR / "vectors"
    return EmbeddingCache(folder=folder, key=key, processes=model.processes, overwrite=model.config.overwrite)
