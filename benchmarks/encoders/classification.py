"""Zero-shot classification: the class whose prompts are most similar to the image."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.class_sets import TEMPLATES, ClassSet, load_class_set, say_skipped
from benchmarks.encoders.prompts import class_vectors, prompts
from benchmarks.encoders.recall import TIE, Ranks
from benchmarks.outcome import MetricSpec, Outcome, measure, thumbnails
from benchmarks.protocol import Entries, full_size_entry
from benchmarks.results import CHANCE, Metric
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row

PRIMARY = ("acc1",)
CUTS = (1, 5)
COMMONEST = "commonest class"
METRICS: dict[str, MetricSpec] = {
    **{f"acc{k}": MetricSpec(label=f"acc@{k}", columns=(f"acc{k}",)) for k in CUTS},
    "mean_per_class_recall": MetricSpec(
        label="mean per-class recall", formula="mean_of_group_means", columns=("acc1", "category")
    ),
}
_CELLS_AT_ONCE = 16_000_000


def evaluate(row: Row, config: BenchmarkConfig) -> Outcome:
    """Compute accuracy at 1 and 5 and mean per-class recall of a model's encoder."""
    from benchmarks.encoders.embed import computed_by
    from benchmarks.encoders.vectors import image_vectors, text_vectors

    found = load_class_set(config.data, split=config.split, limit=config.limit)
    say_skipped(found)
    templates = _templates(found, config)
    classes = class_vectors(functools.partial(text_vectors, row), templates, found.classes)
    pictures = image_vectors(row, found.open, found.pictures, found.hash)
    items = items_table(found, placed(similarities(pictures, classes), found.targets))
    return Outcome(
        metrics=metrics(items, found),
        primary=PRIMARY,
        absent=absent(found),
        protocol={"task": "zero-shot classification"}
        | data_protocol(found, config)
        | {
            "prompt": " | ".join(prompts(templates, "{}")),
            "class_names": found.named_by,
            "class_embedding": "mean of the prompts' unit vectors, made a unit vector",
            "similarity": "cosine",
            "ties": f"expected value over random order of classes within {TIE}",
            "scorer": "benchmarks.classification 1",
        }
        | row.encoder.how
        | computed_by(row.encoder),
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of the images, their classes and the templates."""
    found = load_class_set(config.data, split=config.split, limit=config.limit)
    return hashlib.sha256(f"{found.hash} {_templates(found, config)}".encode()).hexdigest()


def data_protocol(found: ClassSet, config: BenchmarkConfig) -> Entries:
    """Return protocol entries about the test data."""
    return {
        "benchmark": config.name,
        "data_hash": found.hash,
        "split": found.split,
        "pictures": len(found.pictures),
        "classes": len(found.classes),
        **full_size_entry(len(found.pictures), found.available),
    }


def metrics(items: pd.DataFrame, found: ClassSet) -> dict[str, Metric]:
    """Return the metrics that are meaningful for this number of classes."""
    blind = {CHANCE: guessed(found), COMMONEST: by_frequency(found)}
    return {name: measure(items, spec, blind=blind) for name, spec in METRICS.items() if name not in absent(found)}


def guessed(found: ClassSet) -> dict[str, np.ndarray]:
    """Return the hits of random classes."""
    none, ones = np.zeros(len(found.targets), int), np.ones(len(found.targets), int)
    ranks = Ranks(above=none, tied=len(found.classes) * ones, right=ones, first=none)
    return {f"acc{k}": ranks.hit(k) for k in CUTS}


def by_frequency(found: ClassSet) -> dict[str, np.ndarray]:
    """Return the hits of the majority classes, the most frequent first."""
    common = np.argsort(-np.bincount(found.targets, minlength=len(found.classes)), kind="stable")
    place = np.argsort(common)[found.targets]
    return {f"acc{k}": (place < k).astype(float) for k in CUTS}


def absent(found: ClassSet) -> Mapping[str, str]:
    """Return the omitted metrics, and why."""
    few = len(found.classes) <= CUTS[-1]
    return {f"acc{CUTS[-1]}": f"there are only {len(found.classes)} classes"} if few else {}


def _templates(found: ClassSet, config: BenchmarkConfig) -> str | Sequence[str]:
    templates = config.templates or found.templates
    if not templates:
        raise UserError(
            f"{config.data}: expected {TEMPLATES} beside it, or 'templates:' openai_imagenet, simple or a list of texts"
        )
    return templates


def similarities(pictures: torch.Tensor, classes: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield blocks (n, C) of the similarity of (N, D) images to (C, D) classes."""
    for block in pictures.split(max(1, _CELLS_AT_ONCE // len(classes))):
        yield (block @ classes.T).cpu().numpy()


def placed(scores: Iterator[np.ndarray], targets: np.ndarray) -> Ranks:
    """Return the rank of each image's class.

    Args:
        scores: blocks (n, C), together (N, C); more is more probable.
        targets: (N,) the correct classes.
    """
    parts, start = [], 0
    for block in scores:
        right = np.take_along_axis(block, targets[start : start + len(block), None], axis=1)
        tied = (np.abs(block - right) <= TIE).sum(axis=1)
        parts.append(((block > right + TIE).sum(axis=1), tied, block.argmax(axis=1)))
        start += len(block)
    above, tied, first = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Ranks(above=above, tied=tied, right=np.ones_like(tied), first=first)


def items_table(found: ClassSet, ranks: Ranks) -> pd.DataFrame:
    """Build one item per image; its ``category`` is index and name of its class, because names may repeat."""
    import pandas as pd

    hits = {f"acc{k}": ranks.hit(k) for k in CUTS}
    return pd.DataFrame(
        {
            "item": found.pictures,
            "image": found.pictures,
            "direction": "",
            "category": [f"{target} {found.classes[target]}" for target in found.targets],
            "question": "",
            "prediction": [found.classes[index] for index in ranks.first],
            "target": [found.classes[index] for index in found.targets],
            "score": hits["acc1"],
            "thumbnail": thumbnails(found.pictures, found.open),
            **hits,
        }
    )
