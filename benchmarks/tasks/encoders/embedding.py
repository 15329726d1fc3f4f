"""The unit vectors of images and texts, read from the cache or computed by all processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks.tasks.encoders.dual_encoder import DualEncoder
from benchmarks.tasks.output_cache import CACHE_DIR, INPUT_LIBRARIES, Batches, EmbeddingCache, NoCache, cache_key
from clips.commandline.progress import progress_iter
from clips.core.artifact import library_versions
from clips.core.identity import digest
from clips.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel, RequiredModel

VectorCache = EmbeddingCache | NoCache
NO_CACHE = NoCache()


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
    # the tokenizer may be one that the model's directory only names: tokens of a thousand texts are part of the key
    sample = unique[:: max(1, len(unique) // 1000)]
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


def embed_images(
    encoder: DualEncoder,
    opener: Callable[[int], Image],
    names: Sequence[str],
    batch_size: int,
    cache: VectorCache = NO_CACHE,
) -> torch.Tensor:
    """Return (N, D) float32 vectors of the images ``opener(0) … opener(N - 1)``; raises as `image_embeddings`."""
    import torch

    dtype = getattr(torch, encoder.precision)

    def prefetch(pool: ThreadPoolExecutor, chosen: Batches) -> Iterator[list[torch.Tensor]]:
        pending: deque[list[Future]] = deque()
        for batch in chosen:
            pending.append([pool.submit(lambda index: encoder.preprocess(opener(index)), index) for index in batch])
            if len(pending) > 2:  # batches ahead
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]

    def compute(chosen: Batches) -> Iterator[torch.Tensor]:
        with torch.inference_mode(), ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            prepared = prefetch(pool, chosen)
            for batch, images in zip(progress_iter(chosen, "embedding images", "batches"), prepared, strict=True):
                # channels last is faster for convolutions
                pixels = torch.stack(images).to(encoder.device, dtype, memory_format=torch.channels_last)
                yield unit_vectors(encoder.model.encode_image(pixels), [names[index] for index in batch], "image")

    return cache.collect(batches(range(len(names)), batch_size), compute)


def embed_texts(
    encoder: DualEncoder, texts: Sequence[str], batch_size: int, cache: VectorCache = NO_CACHE
) -> torch.Tensor:
    """Return (M, D) float32 vectors of the texts, in batches of similar length; raises as `text_embeddings`."""
    import torch
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    from clips.model.towers import encode_text_features

    model = encoder.model
    without_padding = type(model) is CLIP or (type(model) is CustomTextCLIP and type(model.text) is TextTransformer)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # characters, before tokenization

    def compute(chosen: Batches) -> Iterator[torch.Tensor]:
        with torch.inference_mode():
            for batch in progress_iter(chosen, "embedding texts", "batches"):
                named = [texts[index] for index in batch]
                tokens = encoder.tokenizer(named)
                if without_padding:  # on the CPU, which knows the lengths
                    features = encode_text_features(model, tokens)
                else:
                    features = model.encode_text(tokens.to(encoder.device))
                yield unit_vectors(features, named, "text")

    return cache.collect(batches(order, batch_size), compute)


def batches(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Split a sequence into batches."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def unit_vectors(features: torch.Tensor, names: Sequence[str], what: str) -> torch.Tensor:
    """Features (N, D) divided by their lengths, in float32 on the CPU.

    Raises:
        UserError: those of a named ``what`` are not finite.
    """
    import torch

    features = torch.nn.functional.normalize(features.float(), dim=-1).cpu()
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"the encoder returns features that are not finite for {what} '{names[broken[0]]:.100}'{more}")
    return features
