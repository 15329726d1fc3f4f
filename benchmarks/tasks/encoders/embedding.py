"""Unit vectors of images and texts from an encoder with a text tower."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results.protocol import Entries
from benchmarks.tasks.output_cache import Batches, EmbeddingCache, NoCache
from clips.commandline.progress import progress_iter
from clips.core.artifact import library_versions
from clips.errors import UserError
from clips.jsontext import safe_json_loads
from clips.model_refs import OPEN_CLIP_CONFIG

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_DECODERS = min(16, os.cpu_count() or 1)  # threads that open images while the tower computes
_BATCHES_AHEAD = 2
Kept = EmbeddingCache | NoCache
NO_CACHE = NoCache()


@dataclass(frozen=True, kw_only=True)
class DualEncoder:
    """An encoder ready to embed.

    Args:
        model: has ``encode_image(pixels (B, 3, H, W))`` and ``encode_text(tokens (B, L))``.
        preprocess: PIL image → (3, H, W).
        tokenizer: list of texts → (B, L).
        how: the model's preprocessing, as its directory records it, as protocol entries.
        device: torch device.
        precision: the dtype of the towers.
    """

    model: Any
    preprocess: Callable[[Any], torch.Tensor]
    tokenizer: Callable[[list[str]], torch.Tensor]
    how: Entries
    device: str
    precision: str


def load_dual_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load an encoder directory: of this suite, or any in open_clip's Hub format.

    Raises:
        UserError: not such a directory.
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
        how=_how(model, path),
        device=device,
        precision=precision,
    )


def encoder_settings(encoder: DualEncoder) -> Entries:
    """Return the runtime of an encoder as protocol entries. A build (``2.9.0+cpu``) is not another version."""
    found = {name: library_versions()[name].partition("+")[0] for name in ("torch", "open_clip_torch")}
    return {"precision": encoder.precision, **found}


def _how(model: Any, path: str) -> Entries:
    """Return resolution, resize and interpolation, from open_clip's own record."""
    settings = getattr(model.visual, "preprocess_cfg", None)
    if not settings:
        settings = safe_json_loads((Path(path) / OPEN_CLIP_CONFIG).read_text(encoding="utf-8")).get(
            "preprocess_cfg", {}
        )
    size = settings.get("size") or model.visual.image_size
    return {
        "input_resolution": max(size) if isinstance(size, list | tuple) else int(size),
        "input_resize": str(settings.get("resize_mode", "shortest")),
        "input_interpolation": str(settings.get("interpolation", "bicubic")),
    }


def embed_images(
    encoder: DualEncoder,
    opener: Callable[[int], Image],
    names: Sequence[str],
    batch_size: int,
    kept: Kept = NO_CACHE,
) -> torch.Tensor:
    """Return (N, D) float32 unit vectors of the images ``opener(0) … opener(N - 1)``.

    Args:
        encoder: the encoder.
        opener: opens image ``index``; called by several threads.
        names: (N,) for messages.
        batch_size: images per batch.
        kept: cache of the vectors.

    Raises:
        UserError: an image cannot be opened, or its features are not finite; it is named.
    """
    import torch

    def prepare(index: int) -> torch.Tensor:
        return encoder.preprocess(opener(index))

    def compute(batches: Batches) -> Iterator[torch.Tensor]:
        with torch.inference_mode(), ThreadPoolExecutor(_DECODERS) as pool:
            for batch, pixels in zip(
                progress_iter(batches, "embedding images"), _ahead(pool, prepare, batches), strict=True
            ):
                features = _unit(encoder.model.encode_image(_place(encoder, torch.stack(pixels))))
                yield _finite(features, [names[index] for index in batch], "picture")

    return kept.collect(_batches(range(len(names)), batch_size), compute)


def embed_texts(encoder: DualEncoder, texts: Sequence[str], batch_size: int, kept: Kept = NO_CACHE) -> torch.Tensor:
    """Return (M, D) float32 unit vectors of the texts, computed in batches of similar length.

    Args:
        encoder: the encoder.
        texts: (M,) texts.
        batch_size: texts per batch.
        kept: cache of the vectors.

    Raises:
        UserError: features that are not finite; the text is named.
    """
    import torch

    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # characters: tokens are not known yet

    def compute(batches: Batches) -> Iterator[torch.Tensor]:
        with torch.inference_mode():
            for batch in progress_iter(batches, "embedding texts"):
                chosen = [texts[index] for index in batch]
                tokens = encoder.tokenizer(chosen).to(encoder.device)
                yield _finite(_unit(_encode_text(encoder.model, tokens)), chosen, "text")

    return kept.collect(_batches(order, batch_size), compute)


def _encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return text features without padding where it has no effect; otherwise use the model's own function."""
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    from clips.model.towers import encode_text_features

    if type(model) is CLIP or (type(model) is CustomTextCLIP and type(model.text) is TextTransformer):
        return encode_text_features(model, tokens)
    return model.encode_text(tokens)


def _batches(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _ahead(pool: ThreadPoolExecutor, prepare: Callable[[int], Any], batches: Batches) -> Iterator[list[Any]]:
    """Yield batches of prepared items; the next ones are prepared while the caller works on this one."""
    waiting: deque[list[Future]] = deque()
    for batch in batches:
        waiting.append([pool.submit(prepare, index) for index in batch])
        if len(waiting) > _BATCHES_AHEAD:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def _place(encoder: DualEncoder, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    dtype = getattr(torch, encoder.precision)
    return pixels.to(device=encoder.device, dtype=dtype, memory_format=torch.channels_last)  # faster for convolutions


def _unit(features: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()


def _finite(features: torch.Tensor, names: Sequence[str], what: str) -> torch.Tensor:
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"the encoder gives features that are not finite for {what} '{names[broken[0]]:.100}'{more}")
    return features
