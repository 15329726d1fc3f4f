"""Metrics from caption scores, the same for encoders and LLaVAs.

Letters: P images of an item (one, or two in Winoground), C captions of it; caption i < P describes image i.

An item with one image counts as correct if its caption has the highest score (accuracy). Items with two images have
Winoground's three scores: text (each image gives its own caption the highest score), image (each caption gets its
highest score from its own image) and group (both). Scores within ``TIE_TOLERANCE`` of each other count as tied in
random order, and the expected value is used, so that a model that gives all captions the same score gets the chance
level: 1 / C, or 25, 25 and 16.7 percent for two images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.pair_sets import PairSet, load_pair_set
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.registry import get_benchmark
from clips.data.formats.dataset_format import ImageRegion, Pair
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchmarks.tasks.run_config import BenchmarkConfig

_MOST_KINDS = 20  # with a metric of their own; ARO has hundreds, of which only the mean is reported
_GROUPS = {"image_score": "image", "group_score": "group"}


def load_pairs(config: BenchmarkConfig) -> PairSet:
    """The data of a compositional benchmark."""
    return load_pair_set(config.data, get_benchmark(config.entry).format, images=config.image_root, limit=config.limit)


def data_hash(config: BenchmarkConfig) -> str:
    """SHA-256 of the captions and images."""
    return load_pairs(config).hash


def compute_evaluation(
    pairs: PairSet,
    scores: Sequence[np.ndarray],
    protocol: Entries,
    *,
    uncompared: str = "",
    extra: Mapping[str, tuple[MetricSpec, Sequence[float]]] | None = None,
) -> Evaluation:
    """Metrics and items.

    Args:
        pairs: the items.
        scores: (P, C) per item, higher is better; comparable at least within each row.
        protocol: the settings that determine the scores.
        uncompared: why scores of different images are not comparable; empty if they are.
        extra: name → a metric of one column of its own, and that column.

    Raises:
        UserError: a score is NaN; the message names its item.
    """
    for case, each in zip(pairs.cases, scores, strict=True):
        if not np.isfinite(each).all():
            raise UserError(f"{pairs.root}: {case.name}: the model gives a score that is not finite")
    alone = len(pairs.cases[0].images) == 1
    items = _items(pairs, scores, compared=not alone and not uncompared)
    specs, absent = _specs(pairs), {}
    if uncompared and not alone:
        absent = dict.fromkeys(_GROUPS, uncompared)
    for name, (spec, values) in (extra or {}).items():
        items[spec.columns[0]] = values
        specs[name] = spec
    blind = {CHANCE: _guessed(pairs)}
    first = "accuracy_of_kinds" if pairs.by_kinds and "accuracy_of_kinds" in specs else "accuracy"
    return Evaluation(
        metrics={name: compute_metric(items, spec, blind=blind) for name, spec in specs.items() if name not in absent},
        primary=tuple(name for name in (first, "text_score", *_GROUPS) if name in specs and name not in absent),
        missing_metrics=absent,
        protocol=protocol,
        items=items,
    )


def data_settings(pairs: PairSet, config: BenchmarkConfig) -> Entries:
    """Entries about the data and the way from scores to metrics."""
    return {
        "benchmark": config.name,
        "data_hash": pairs.hash,
        "format": get_benchmark(config.entry).format,
        "cases": len(pairs.cases),
        "ties": f"expected value over random order of scores within {TIE_TOLERANCE}",
        "scorer": "benchmarks.compositional 1",
        **full_size_entry(len(pairs.cases), pairs.available),
    }


def win_probabilities(scores: np.ndarray) -> tuple[float, float, float]:
    """Probability of the text, image and group win from scores (P, C), ties in random order; with P = 1 the latter two
    are meaningless.
    """
    if len(scores) == 1:
        text = (
            0.0
            if (scores[0] > scores[0, 0] + TIE_TOLERANCE).any()
            else 1.0 / (np.abs(scores[0] - scores[0, 0]) <= TIE_TOLERANCE).sum()
        )
        return text, np.nan, np.nan
    apart = np.abs(scores[:, :, None, None] - scores).reshape(scores.size, scores.size) + np.eye(scores.size)
    orders = list(permutations(range(scores.size))) if (apart <= TIE_TOLERANCE).any() else [tuple(range(scores.size))]
    found = np.array([_won(scores, np.reshape(order, scores.shape)) for order in orders], float)
    text, image = found.T
    return float(text.mean()), float(image.mean()), float((text * image).mean())


def _won(scores: np.ndarray, order: np.ndarray) -> tuple[bool, bool]:
    """Whether text and image are won where of two tied scores the one later in ``order`` counts as the higher."""

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        apart = scores[one] - scores[other]
        return bool(order[one] > order[other] if abs(apart) <= TIE_TOLERANCE else apart > 0)

    images, captions = scores.shape
    text = all(beats((i, i), (i, j)) for i in range(images) for j in range(captions) if j != i)
    image = all(beats((i, i), (k, i)) for i in range(images) for k in range(images) if k != i)
    return text, image


def _guessed(pairs: PairSet) -> dict[str, np.ndarray]:
    """The item columns if all scores were equal."""
    shapes = [(len(case.images), len(case.captions)) for case in pairs.cases]
    of_shape = {shape: win_probabilities(np.zeros(shape)) for shape in set(shapes)}
    text, image, both = np.array([of_shape[shape] for shape in shapes]).T
    kinds = np.array([case.kind for case in pairs.cases])
    parts = {f"score_{kind}": np.where(kinds == kind, text, np.nan) for kind in _kinds(pairs)}
    return {"score": text, "image_score": image, "group_score": both, **parts}


def _specs(pairs: PairSet) -> dict[str, MetricSpec]:
    alone = len(pairs.cases[0].images) == 1
    name, label = ("accuracy", "choice") if alone else ("text_score", "text")
    specs = {name: MetricSpec(label=label, columns=("score",))}
    if not alone:
        specs |= {group: MetricSpec(label=word, columns=(group,)) for group, word in _GROUPS.items()}
    if len(pairs.averaged) > 1:
        specs[f"{name}_of_kinds"] = MetricSpec(
            label=f"{label}, mean of kinds", aggregation="mean_of_group_means", columns=("score", "averaged")
        )
    return specs | {
        f"{name}_{kind}": MetricSpec(label=f"{label}, {kind.replace('_', ' ')}", columns=(f"score_{kind}",))
        for kind in _kinds(pairs)
    }


def _kinds(pairs: PairSet) -> list[str]:
    """Those that have a metric of their own."""
    kinds = sorted({case.kind for case in pairs.cases if case.kind})
    return kinds if len(kinds) <= _MOST_KINDS else []


def _items(pairs: PairSet, scores: Sequence[np.ndarray], *, compared: bool) -> pd.DataFrame:
    import pandas as pd

    cases = pairs.cases
    won = np.array([win_probabilities(each) for each in scores])
    shown = [case.images[0] for case in cases]
    small = thumbnails(
        [" ".join(map(_name, case.images)) for case in cases], lambda index: _side_by_side(pairs, cases[index])
    )
    items = pd.DataFrame(
        {
            "item": [case.name for case in cases],
            "image": [image.reference for image in shown],
            "direction": "",
            "category": [case.kind for case in cases],
            "question": [" | ".join(case.captions) for case in cases],
            "prediction": [_said(case, each) for case, each in zip(cases, scores, strict=True)],
            "target": [_numbered(case.captions[: len(case.images)]) for case in cases],
            "score": won[:, 0],
            "thumbnail": small,
            "margin": [_margin(each) for each in scores],
            "averaged": [case.kind if case.kind in pairs.averaged else None for case in cases],
        }
    )
    if compared:
        items["image_score"], items["group_score"] = won[:, 1], won[:, 2]
    for kind in _kinds(pairs):
        items[f"score_{kind}"] = items["score"].where(items["category"] == kind)
    return items


def _name(picture: ImageRegion) -> str:
    return picture.reference if picture.box is None else f"{picture.reference} {picture.box}"


def _said(case: Pair, scores: np.ndarray) -> str:
    """The caption to which each image gives the highest score; the first of tied ones."""
    return _numbered([case.captions[int(np.argmax(row > row.max() - TIE_TOLERANCE))] for row in scores])


def _numbered(texts: Sequence[str]) -> str:
    """A single caption as it is; several captions each with its image's number."""
    return texts[0] if len(texts) == 1 else " ".join(f"{place}. {text}" for place, text in enumerate(texts, 1))


def _side_by_side(pairs: PairSet, case: Pair) -> Image:
    """The images of a case in one, equally high."""
    from PIL import Image

    images = [pairs.open(image) for image in case.images]
    if len(images) == 1:
        return images[0]
    height = max(image.height for image in images)
    resized = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    whole = Image.new("RGB", (sum(image.width for image in resized), height))
    left = 0
    for image in resized:
        whole.paste(image, (left, 0))
        left += image.width
    return whole


def _margin(scores: np.ndarray) -> float:
    """Score of the right caption minus the best wrong one, for the image with the smallest margin."""
    wrong = np.where(np.eye(*scores.shape) > 0, -np.inf, scores).max(axis=1)
    return float((np.diagonal(scores) - wrong).min())
