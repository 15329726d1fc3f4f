"""Zero-shot classification: the class whose prompts are most similar to the image."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.registry import BenchmarkConfig, benchmark
from clips.errors import UserError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.eval_model import EvalModel

PRIMARY = ("acc1",)
CUTS = (1, 5)
METRICS: dict[str, MetricSpec] = {
    **{f"acc{k}": MetricSpec(label=f"acc@{k}", columns=(f"acc{k}",)) for k in CUTS},
    "mean_per_class_recall": MetricSpec(
        label="mean per-class recall", aggregation="mean_of_group_means", columns=("acc1", "category")
    ),
}
TEMPLATE_SETS = {"openai_imagenet": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""Config value → open_clip's list: CLIP's 80 templates for ImageNet, and the seven that its authors found as good."""


def _check_templates(templates: str | Sequence[str], field: str) -> None:
    if isinstance(templates, str) and templates not in TEMPLATE_SETS:
        raise unknown_name_error(templates, TEMPLATE_SETS, f"set of {field}, or a list of strings,")
    for template in [] if isinstance(templates, str) else templates:
        if "{}" not in template and "{c}" not in template:
            raise UserError(f"{field}: expected {{}} where the class goes, got '{template:.80}'")
    if not templates:
        raise UserError(f"{field}: expected at least one string")


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(BenchmarkConfig):
    """Zero-shot classification.

    Args:
        data: a directory of WebDataset shards, class directories or parquet files.
        split: split of the data, if it has any.
        templates: prompts: ``openai_imagenet``, ``simple``, or strings with ``{}`` for the class name; by default those
            in the file next to the data.
    """

    split: str = "test"
    templates: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.templates is not None:
            _check_templates(self.templates, "templates")


def data_hash(config: ClassificationConfig) -> str:
    """Return the SHA-256 of the images, their classes and the templates."""
    images = _load(config)
    return hashlib.sha256(f"{images.hash} {_templates(images, config)}".encode()).hexdigest()


@benchmark(
    "classification",
    config=ClassificationConfig,
    data_hash=data_hash,
    benchmark_type="classification",
    about="zero-shot classification by prompts: ImageNet, its shifts, any dataset in CLIP_benchmark's format",
    needs="encoder",
)
def evaluate(model: EvalModel, config: ClassificationConfig) -> Evaluation:
    """Compute accuracy at 1 and 5 and mean per-class recall of a model's encoder."""
    from benchmarks.tasks.encoders.embedding import image_embeddings, text_embeddings

    data = _load(config)
    log_skipped(data)
    templates = _templates(data, config)
    classes = class_embeddings(functools.partial(text_embeddings, model), templates, data.classes)
    images = image_embeddings(model, data.open, data.images, data.image_hashes, "encoder")
    blocks = images.split(max(1, 16_000_000 // len(classes)))
    ranks = class_ranks(((block @ classes.T).cpu().numpy() for block in blocks), data.targets)
    items = items_table(data, ranks)
    return Evaluation(
        metrics=metrics(items, data),
        primary=PRIMARY,
        missing_metrics=undefined_metrics(data),
        protocol={"task": "zero-shot classification"}
        | data_settings(data, config)
        | {
            "prompt": " | ".join(class_prompts(templates, "{}")),
            "class_names": data.named_by,
            "class_embedding": "normalized mean of the prompts' unit vectors",
            "similarity": "cosine",
            "ties": f"expected value over random order of classes within {TIE_TOLERANCE}",
            "scorer": "benchmarks.classification 1",
        }
        | model.encoder.settings,
        items=items,
    )


def _load(config: ClassificationConfig) -> ClassificationSet:
    return load_classification_set(config.data, split=config.split, limit=config.limit, prompted=True)


def data_settings(data: ClassificationSet, config: BenchmarkConfig) -> Entries:
    """Return protocol entries about the test data."""
    return {
        "benchmark": config.name,
        "data_hash": data.hash,
        "split": data.split,
        "images": len(data.images),
        "classes": len(data.classes),
        **full_size_entry(len(data.images), data.available),
    }


def metrics(items: pd.DataFrame, data: ClassificationSet) -> dict[str, Metric]:
    """Return the metrics that are meaningful for this number of classes."""
    baselines = {CHANCE: chance_hits(data), "majority class": majority_class_hits(data)}
    absent = undefined_metrics(data)
    return {
        name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items() if name not in absent
    }


def chance_hits(data: ClassificationSet) -> dict[str, np.ndarray]:
    """Return the expected hits of random classes."""
    none, ones = np.zeros(len(data.targets), int), np.ones(len(data.targets), int)
    ranks = RetrievalRanks(above=none, tied=len(data.classes) * ones, right=ones, first=none)
    return {f"acc{k}": ranks.hit(k) for k in CUTS}


def majority_class_hits(data: ClassificationSet) -> dict[str, np.ndarray]:
    """Return the hits of the majority classes, the most frequent first."""
    by_frequency = np.argsort(-np.bincount(data.targets, minlength=len(data.classes)), kind="stable")
    rank = np.argsort(by_frequency)[data.targets]
    return {f"acc{k}": (rank < k).astype(float) for k in CUTS}


def undefined_metrics(data: ClassificationSet) -> Mapping[str, str]:
    """Return the undefined metrics and the reason."""
    few = len(data.classes) <= CUTS[-1]
    return {f"acc{CUTS[-1]}": f"there are only {len(data.classes)} classes"} if few else {}


def _templates(data: ClassificationSet, config: ClassificationConfig) -> str | Sequence[str]:
    templates = config.templates or data.templates
    if not templates:
        raise UserError(
            f"{config.data}: expected {TEMPLATES_FILE} next to it, or 'templates:' openai_imagenet, simple or a "
            "list of strings"
        )
    if not config.templates:
        _check_templates(templates, f"{data.source}: {TEMPLATES_FILE}")
    return templates


def class_prompts(templates: str | Sequence[str], name: str) -> list[str]:
    """Return the prompts of the class ``name``."""
    if isinstance(templates, str):
        from clips.lazy_import import without_wandb

        with without_wandb():
            import open_clip
        return [template(name) for template in getattr(open_clip, TEMPLATE_SETS[templates])]
    return [template.replace("{c}", name).replace("{}", name) for template in templates]


def class_embeddings(
    vectors_of: Callable[[Sequence[str]], torch.Tensor], templates: str | Sequence[str], classes: Sequence[str]
) -> torch.Tensor:
    """(C, D) unit vectors of the classes: the normalized mean of each class's normalized text vectors.

    Source: open_clip's ``build_zero_shot_classifier``. ``vectors_of`` maps texts to their unit vectors.
    """
    import torch

    texts = [class_prompts(templates, name) for name in classes]
    features = vectors_of([text for group in texts for text in group])
    means = features.reshape(len(classes), len(texts[0]), -1).mean(dim=1)
    return torch.nn.functional.normalize(means, dim=-1)


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


def items_table(data: ClassificationSet, ranks: RetrievalRanks) -> pd.DataFrame:
    """Build one item per image; its ``category`` is index and name of the class, because names may repeat."""
    import pandas as pd

    hits = {f"acc{k}": ranks.hit(k) for k in CUTS}
    return pd.DataFrame(
        {
            "item": data.images,
            "image": data.images,
            IMAGE_HASH: [digest[:16] for digest in data.image_hashes],
            "direction": "",
            "category": [f"{target} {data.classes[target]}" for target in data.targets],
            "question": "",
            "prediction": [data.classes[index] for index in ranks.first],
            "target": [data.classes[index] for index in data.targets],
            "score": hits["acc1"],
            "thumbnail": thumbnails(data.images, data.open),
            **hits,
        }
    )
