"""Zero-shot classification: the class whose prompts are most similar to the image."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.result_types import IMAGE_HASH
from benchmarks.results.results import CHANCE, Metric
from benchmarks.tasks.data.classification_sets import (
    TEMPLATES_FILE,
    ClassificationSet,
    load_classification_set,
    log_skipped,
)
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE, RetrievalRanks
from benchmarks.tasks.encoders.zero_shot_classifier import check_templates, class_embeddings, class_prompts
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

PRIMARY = ("acc1",)
CUTS = (1, 5)
MAJORITY_CLASS = "majority class"
METRICS: dict[str, MetricSpec] = {
    **{f"acc{k}": MetricSpec(label=f"acc@{k}", columns=(f"acc{k}",)) for k in CUTS},
    "mean_per_class_recall": MetricSpec(
        label="mean per-class recall", aggregation="mean_of_group_means", columns=("acc1", "category")
    ),
}
_MAX_BLOCK_ELEMENTS = 16_000_000


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Compute accuracy at 1 and 5 and mean per-class recall of a model's encoder."""
    from benchmarks.tasks.encoders.cached_embeddings import image_embeddings, text_embeddings

    found = _load(config)
    log_skipped(found)
    templates = _templates(found, config)
    classes = class_embeddings(functools.partial(text_embeddings, model), templates, found.classes)
    images = image_embeddings(model, found.open, found.images, found.image_hashes, "encoder")
    ranks = class_ranks(iter_similarities(images, classes), found.targets)
    items = items_table(found, ranks)
    return Evaluation(
        metrics=metrics(items, found),
        primary=PRIMARY,
        missing_metrics=undefined_metrics(found),
        protocol={"task": "zero-shot classification"}
        | data_settings(found, config)
        | {
            "prompt": " | ".join(class_prompts(templates, "{}")),
            "class_names": found.named_by,
            "class_embedding": "normalized mean of the prompts' unit vectors",
            "similarity": "cosine",
            "ties": f"expected value over random order of classes within {TIE_TOLERANCE}",
            "scorer": "benchmarks.classification 1",
        }
        | model.encoder.settings,
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of the images, their classes and the templates."""
    found = _load(config)
    return hashlib.sha256(f"{found.hash} {_templates(found, config)}".encode()).hexdigest()


def _load(config: BenchmarkConfig) -> ClassificationSet:
    return load_classification_set(config.data, split=config.split, limit=config.limit, prompted=True)


def data_settings(found: ClassificationSet, config: BenchmarkConfig) -> Entries:
    """Return protocol entries about the test data."""
    return {
        "benchmark": config.name,
        "data_hash": found.hash,
        "split": found.split,
        "images": len(found.images),
        "classes": len(found.classes),
        **full_size_entry(len(found.images), found.available),
    }


def metrics(items: pd.DataFrame, found: ClassificationSet) -> dict[str, Metric]:
    """Return the metrics that are meaningful for this number of classes."""
    baselines = {CHANCE: chance_hits(found), MAJORITY_CLASS: majority_class_hits(found)}
    return {
        name: compute_metric(items, spec, baselines=baselines)
        for name, spec in METRICS.items()
        if name not in undefined_metrics(found)
    }


def chance_hits(found: ClassificationSet) -> dict[str, np.ndarray]:
    """Return the expected hits of random classes."""
    none, ones = np.zeros(len(found.targets), int), np.ones(len(found.targets), int)
    ranks = RetrievalRanks(above=none, tied=len(found.classes) * ones, right=ones, first=none)
    return {f"acc{k}": ranks.hit(k) for k in CUTS}


def majority_class_hits(found: ClassificationSet) -> dict[str, np.ndarray]:
    """Return the hits of the majority classes, the most frequent first."""
    by_frequency = np.argsort(-np.bincount(found.targets, minlength=len(found.classes)), kind="stable")
    rank = np.argsort(by_frequency)[found.targets]
    return {f"acc{k}": (rank < k).astype(float) for k in CUTS}


def undefined_metrics(found: ClassificationSet) -> Mapping[str, str]:
    """Return the undefined metrics and the reason."""
    few = len(found.classes) <= CUTS[-1]
    return {f"acc{CUTS[-1]}": f"there are only {len(found.classes)} classes"} if few else {}


def _templates(found: ClassificationSet, config: BenchmarkConfig) -> str | Sequence[str]:
    templates = config.templates or found.templates
    if not templates:
        raise UserError(
            f"{config.data}: expected {TEMPLATES_FILE} next to it, or 'templates:' openai_imagenet, simple or a "
            "list of strings"
        )
    if not config.templates:
        check_templates(templates, f"{found.source}: {TEMPLATES_FILE}")
    return templates


def iter_similarities(images: torch.Tensor, classes: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield blocks (n, C) of the similarity of (N, D) images to (C, D) classes."""
    for block in images.split(max(1, _MAX_BLOCK_ELEMENTS // len(classes))):
        yield (block @ classes.T).cpu().numpy()


def class_ranks(scores: Iterator[np.ndarray], targets: np.ndarray) -> RetrievalRanks:
    """Return the rank of each image's class, from blocks (n, C) of the (N, C) scores and the (N,) right classes."""
    parts, start = [], 0
    for block in scores:
        right = np.take_along_axis(block, targets[start : start + len(block), None], axis=1)
        tied = (np.abs(block - right) <= TIE_TOLERANCE).sum(axis=1)
        parts.append(((block > right + TIE_TOLERANCE).sum(axis=1), tied, block.argmax(axis=1)))
        start += len(block)
    above, tied, first = (np.concatenate(part) for part in zip(*parts, strict=True))
    return RetrievalRanks(above=above, tied=tied, right=np.ones_like(tied), first=first)


def items_table(found: ClassificationSet, ranks: RetrievalRanks) -> pd.DataFrame:
    """Build one item per image; its ``category`` is index and name of the class, because names may repeat."""
    import pandas as pd

    hits = {f"acc{k}": ranks.hit(k) for k in CUTS}
    return pd.DataFrame(
        {
            "item": found.images,
            "image": found.images,
            IMAGE_HASH: [digest[:16] for digest in found.image_hashes],
            "direction": "",
            "category": [f"{target} {found.classes[target]}" for target in found.targets],
            "question": "",
            "prediction": [found.classes[index] for index in ranks.first],
            "target": [found.classes[index] for index in found.targets],
            "score": hits["acc1"],
            "thumbnail": thumbnails(found.images, found.open),
            **hits,
        }
    )
