"""Alignment of an image tower with a language model: features of images against features of their captions.

Nothing is trained. An image's features are the mean of the patch tokens that a LLaVA reads by default
(`image_tower.PatchTokens`). A caption's are the mean over its tokens, without special ones, of the text model's last
hidden state; those of an image's captions are averaged. All are scaled to unit length.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.caption_sets import CaptionSet, load_benchmark_captions
from benchmarks.tasks.encoders.feature_similarity import (
    centered_distances,
    debiased_cka,
    distance_interval,
    gromov_wasserstein,
    neighbor_overlap,
)
from benchmarks.tasks.encoders.retrieval import captions_per_image_range
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.output_cache import CACHE_DIR, Batches, EmbeddingCache, cache_key
from clips.core.artifact import directory_hash
from clips.errors import UserError
from clips.model_refs import resolve_model_dir

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

DEFAULT_IMAGES = 500  # the Gromov-Wasserstein distance costs their number cubed
MIN_IMAGES = 8
_MAX_TOKENS = 512
METRICS = {
    "cka": MetricSpec(label="CKA", aggregation="mean_of_scores", columns=("cka",)),
    "mutual_knn": MetricSpec(label="mutual neighbors", aggregation="mean_of_scores", columns=("mutual_knn",)),
}
_DISTANCE = MetricSpec(label="Gromov-Wasserstein", aggregation=None, higher_is_better=False)
PRIMARY = (*METRICS, "gromov_wasserstein")


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Compute CKA, the mutual k-nearest-neighbor score and the Gromov-Wasserstein distance."""
    from benchmarks.tasks.encoders.cached_embeddings import image_embeddings

    captions = _load(config)
    tower = model.patch_tower
    found = image_embeddings(model, captions.open, captions.images, captions.images_hash, "patch_tower")
    images = found.cpu().double().numpy()
    texts = _caption_features(model, config, captions)
    items = _items(captions, images, texts, config.num_neighbors)
    neighbors_by_chance = config.num_neighbors / (len(items) - 1)
    baselines = {CHANCE: {"cka": np.zeros(len(items)), "mutual_knn": np.full(len(items), neighbors_by_chance)}}
    structures = centered_distances(images), centered_distances(texts)
    low, high = distance_interval(*structures)
    distance = compute_metric(items, _DISTANCE, gromov_wasserstein(*structures))
    metrics = {name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items()}
    metrics["gromov_wasserstein"] = dataclasses.replace(distance, ci_low=low, ci_high=high, ci_method="jackknife")
    return Evaluation(
        metrics=metrics,
        primary=PRIMARY,
        protocol={
            "task": "alignment of image features with caption features",
            "benchmark": config.name,
            "data_hash": captions.hash,
            "split": captions.split,
            "images": len(captions.images),
            "captions": len(captions.texts),
            "captions_per_image": captions_per_image_range(captions),
            **full_size_entry(len(captions.images), captions.available),
            "text_model": f"{Path(_text_model(config)).name} {_text_model_hash(_text_model(config))[:12]}",
            "text_features": f"mean of the last hidden state, without special tokens, at most {_MAX_TOKENS} tokens",
            "cka": "linear, unbiased HSIC",
            "num_neighbors": config.num_neighbors,
            "gromov_wasserstein": "square loss, cosine distance / 2 of centered features, local minimum of 2 starts",
            "scorer": "benchmarks.alignment 1",
            **tower.settings,
        },
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of images, captions and text model."""
    return hashlib.sha256(f"{_load(config).hash}{_text_model_hash(_text_model(config))}".encode()).hexdigest()


def _load(config: BenchmarkConfig) -> CaptionSet:
    captions = load_benchmark_captions(dataclasses.replace(config, limit=config.limit or DEFAULT_IMAGES))
    least = max(MIN_IMAGES, config.num_neighbors + 2)
    if len(captions.images) < least:
        raise UserError(f"{config.data}: expected at least {least} images for alignment, got {len(captions.images)}")
    return captions


def _text_model(config: BenchmarkConfig) -> str:
    if config.text_model is None:
        raise UserError(f"benchmarks.text_model: expected a causal language model (benchmark '{config.name}')")
    return str(resolve_model_dir(config.text_model, "benchmarks.text_model"))


@functools.cache
def _text_model_hash(path: str) -> str:
    return directory_hash(path)


def _items(captions: CaptionSet, images: np.ndarray, texts: np.ndarray, num_neighbors: int) -> pd.DataFrame:
    import pandas as pd

    shared, influence = neighbor_overlap(images, texts, num_neighbors)
    return pd.DataFrame(
        {
            "item": list(captions.images),
            "image": list(captions.images),
            "direction": "",
            "category": "",
            "question": f"which {num_neighbors} images are nearest, by the image and by its captions?",
            "prediction": [f"{round(ratio * num_neighbors)} in common" for ratio in shared],
            "target": [" | ".join(group) for group in captions.captions],
            "score": shared,
            "thumbnail": thumbnails(list(captions.images), captions.open),
            "cka": debiased_cka(images, texts),
            "mutual_knn": influence,
        }
    )


def _caption_features(model: EvalModel, config: BenchmarkConfig, captions: CaptionSet) -> np.ndarray:
    """Return (N, D) unit vectors, the mean of the features of each image's captions; cached for all encoders."""
    path = _text_model(config)
    key = cache_key(text_model=_text_model_hash(path), texts=list(captions.texts), device=model.device)
    cache = EmbeddingCache(
        folder=Path(model.config.output) / CACHE_DIR / "vectors",
        key=key,
        processes=model.processes,
        overwrite=model.config.overwrite,
    )
    order = sorted(range(len(captions.texts)), key=lambda index: len(captions.texts[index]))
    size = model.config.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    features = cache.collect(batches, lambda chosen: embed_captions(path, captions.texts, chosen, model.device))
    images, texts = captions.pairs.T
    found = np.zeros((len(captions.images), features.shape[1]))
    np.add.at(found, images, features.double().numpy()[texts])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def embed_captions(path: str, texts: Sequence[str], batches: Batches, device: str) -> Iterator[torch.Tensor]:
    """Yield (b, D) unit vectors of each batch of texts: the mean last hidden state of a causal LM in float32.

    Args:
        path: directory of the LM, or of a LLaVA, whose LM is used.
        texts: (M,) texts.
        batches: indices of the texts of each batch.
        device: torch device.

    Raises:
        UserError: no such language model, or features that are not finite.
    """
    import torch

    from llava_bridge.model.build import load_llm, load_tokenizer

    try:
        tokenizer: Any = load_tokenizer(path)
        body = load_llm(path).float().base_model.to(device).eval()
    except UserError as error:
        raise UserError(f"benchmarks.text_model: {str(error).removeprefix('llm: ')}") from None
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for batch in batches:
        tokens = tokenizer(
            [texts[index] for index in batch],
            padding=True,
            truncation=True,
            max_length=_MAX_TOKENS,
            return_special_tokens_mask=True,
            return_tensors="pt",
        ).to(device)
        attended, special = tokens.attention_mask, tokens.special_tokens_mask
        with torch.inference_mode():
            states = body(input_ids=tokens.input_ids, attention_mask=attended).last_hidden_state
        weight = (attended * (1 - special))[..., None].float()
        mean = (states.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        if not mean.isfinite().all():
            raise UserError(f"benchmarks.text_model: {path} returns features that are not finite")
        yield torch.nn.functional.normalize(mean, dim=-1).cpu()
