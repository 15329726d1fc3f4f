"""Encoders of open_clip and of other libraries, and the unit vectors of images and texts, read from the cache or
computed by all processes."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.results.protocol import PIXELS, Entries
from benchmarks.tasks.output_cache import CACHE_DIR, INPUT_LIBRARIES, Batches, EmbeddingCache, NoCache, cache_key
from clips.commandline.progress import progress_iter
from clips.core.artifact import library_versions
from clips.core.identity import digest
from clips.errors import UserError
from clips.model_refs import OPEN_CLIP_CONFIG
from llava_bridge.encoders import has_text_tower, parse_spec

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.registry import RequiredModel
    from clips.encoder import LoadedEncoder

VectorCache = EmbeddingCache | NoCache
NO_CACHE = NoCache()


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
        found = {name: library_versions()[name].partition("+")[0] for name in ("torch", "open_clip_torch")}
        return {**self.preprocessing, **PIXELS, "precision": self.precision, **found}


def load_dual_encoder(path: str, device: str, precision: str) -> DualEncoder:
    """Load an encoder directory in open_clip's Hub format; without a text tower it rejects texts.

    Raises UserError: not an encoder directory.
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
        preprocessing=_preprocessing(encoder, path),
        device=device,
        precision=precision,
    )


def _preprocessing(encoder: LoadedEncoder, path: str) -> Entries:
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

    Raises UserError: no such encoder, or its weights do not match.
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

    Raises UserError: an image cannot be opened, or its features are not finite; the message names it.
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

    Raises UserError: features that are not finite; the message names the text.
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
                yield _unit_vectors(encoder.model.encode_image(pixels), [names[index] for index in batch], "image")

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
                yield _unit_vectors(features, named, "text")

    return cache.collect(batches(order, batch_size), compute)


def batches(order: Sequence[int], batch_size: int) -> list[Sequence[int]]:
    """Split a sequence into batches."""
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _unit_vectors(features: torch.Tensor, names: Sequence[str], what: str) -> torch.Tensor:
    import torch

    features = torch.nn.functional.normalize(features.float(), dim=-1).cpu()
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"the encoder returns features that are not finite for {what} '{names[broken[0]]:.100}'{more}")
    return features
