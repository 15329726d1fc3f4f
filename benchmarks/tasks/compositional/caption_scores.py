"""Compositional benchmarks: metrics from caption scores, the same for encoders and LLaVAs; an encoder's similarities.

Letters: P images of an item (one, or two in Winoground), C captions of it; caption i < P describes image i.

An item with one image counts as correct if its caption has the highest score (accuracy). Items with two images have
Winoground's three scores: text (each image gives its own caption the highest score), image (each caption gets its
highest score from its own image) and group (both). Scores within ``TIE_TOLERANCE`` of each other count as tied in
random order, and the expected value is used, so that equal scores yield the chance level: 1 / C, or 25, 25 and 16.7
percent for two images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.results.baselines import SIGHTED, add_blind_columns
from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.result_types import IMAGE_HASH
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.pair_sets import PairSet, load_pair_set
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, blind_metrics, compute_metric, thumbnails
from benchmarks.tasks.registry import Benchmark, BenchmarkConfig, Function, benchmark, get_benchmark
from clips.core.identity import RUN_ONLY
from clips.data.formats.dataset_format import Pair
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel

Scores = Sequence[np.ndarray]  # (P, C) scores of each case
_GROUPS = {"image_score": "image", "group_score": "group"}


@dataclass(frozen=True, kw_only=True)
class PairConfig(BenchmarkConfig):
    """A choice between captions.

    Args:
        data: the benchmark's own file or directory of files, or JSON lines of {image, caption, negative}.
        image_root: directory of the images; by default ``images`` next to the file, or the file's directory.
    """

    image_root: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)

    @property
    def format(self) -> str:
        """The format of the data, a name in ``clips.data.formats.FORMATS``."""
        entry = get_benchmark(self.entry)
        assert isinstance(entry, PairBenchmark)
        return entry.format


@dataclass(frozen=True, kw_only=True)
class PairBenchmark(Benchmark):
    """One benchmark of choices between captions; ``format`` is that of its data."""

    format: str


_ARO = "arXiv 2210.01936, mertyg/vision-language-models-are-bows"
_TEXT_ALONE = "Without the image, a text model solves much of it, because it recognizes the human caption."
_DATA: Mapping[str, tuple[str, int | None, str, dict[str, str]]] = {
    # benchmark → what it measures, its number of items, its license, what `clips-bench list NAME` prints of it
    "choice": (
        "a caption or one that differs in a detail: JSON lines of pairs", None, "",
        {"data": "lines of {image, caption, negative, kind}; negative is a string, or several"},
    ),
    "sugarcrepe": (
        "a caption or one with something added, replaced or swapped (SugarCrepe)", 7511, "MIT",
        {"data": "its data/, with add_att.json …; images of COCO val2017",
         "source": "arXiv 2306.14610, RAIVNLab/sugar-crepe"},
    ),
    "aro_relation": (
        "order of relations: 'A on B' or 'B on A' (ARO, VG-Relation)", 23937, "MIT",
        {"data": "visual_genome_relation.json; boxes are cropped",
         "scorer": "mean over relations that have a direction", "source": _ARO,
         "pitfalls": f"{_TEXT_ALONE} The mean excludes symmetric relations ('near'), by a list in its authors' "
         "notebook (benchmarks/tasks/data/pair_sets.py). Their argmax counts ties as wrong."},
    ),
    "aro_attribution": (  # its authors round the number of items
        "which object has which attribute (ARO, VG-Attribution)", 28700, "MIT",
        {"data": "visual_genome_attribution.json; boxes are cropped",
         "scorer": "mean over pairs of attributes with 25 cases or more", "source": _ARO,
         "pitfalls": f"{_TEXT_ALONE} Its authors' argmax counts ties as wrong."},
    ),
    "valse": (
        "a caption or a foil: existence, number, relation, action, reference (VALSE)", None, "as its sources",
        {"data": "its data/, with existence.json …; images of five datasets",
         "source": "arXiv 2112.07566, Heidelberg-NLP/VALSE (MIT)",
         "pitfalls": f"{_TEXT_ALONE} The files contain all 8,782 generated items. Only the 7,702 count for which at "
         "least two of three people chose the caption and not the foil, as in its authors' code."},
    ),
    "winoground": (
        "two images and two captions of the same words (Winoground)", 400, "its own terms, for research",
        {"data": "the Hub's parquet, or examples.jsonl and images/",
         "scorer": "text: each of two images prefers its own caption; image: each caption prefers its own image; "
         "group: both",
         "source": "arXiv 2204.03162, facebook/winoground (gated)", "pitfalls": "Its authors count ties as wrong."},
    ),
}  # fmt: skip


def pair_benchmarks(suffix: str, *, how: str, **fields: Any) -> Callable[[Function], Function]:
    """Decorator: register a function for each published set of pairs, under the set's name with ``suffix``."""
    note = "A model that ignores the image may prefer one type of caption, and score above or below chance."

    def register(evaluate: Function) -> Function:
        for name, (about, items, license, details) in _DATA.items():
            benchmark(
                name + suffix,
                kind=PairBenchmark,
                data_hash=data_hash,
                benchmark_type="choice",
                about=f"{about}, {how}",
                trivial_baseline_note="" if name == "winoground" else note,
                format="jsonl" if name == "choice" else name,
                items=items,
                license=license,
                details=details,
                **fields,
            )(evaluate)
        return evaluate

    return register


def load_pairs(config: PairConfig) -> PairSet:
    """The data of a compositional benchmark."""
    return load_pair_set(config.data, config.format, images=config.image_root, limit=config.limit)


def data_hash(config: PairConfig) -> str:
    """SHA-256 of the captions and images."""
    return load_pairs(config).hash


class BlindScores(NamedTuple):
    """The scores of the blind runs: positions of their cases among all, and kind → scores of these cases."""

    rows: list[int]
    scores: dict[str, Scores]


def compute_evaluation(
    pairs: PairSet,
    scores: Scores,
    protocol: Entries,
    *,
    uncompared: str = "",
    extra: Mapping[str, tuple[MetricSpec, Sequence[float]]] | None = None,
    blind: BlindScores | None = None,
) -> Evaluation:
    """Metrics and items.

    Args:
        scores: higher is better; comparable at least within each row.
        uncompared: why scores of different images are not comparable; empty if they are.
        extra: name → a metric of one additional column, and the column.

    Raises:
        UserError: a score is NaN; the message names its item.
    """
    for case, each in zip(pairs.cases, scores, strict=True):
        if not np.isfinite(each).all():
            raise UserError(f"{pairs.root}: {case.name}: the model returns a score that is not finite")
    single_image = len(pairs.cases[0].images) == 1
    compared = not single_image and not uncompared
    wins = _win_columns(pairs, scores, range(len(scores)), compared=compared)
    items = _items(pairs, scores, wins)
    specs, absent = _specs(pairs), {}
    if blind is not None:
        answers = {SIGHTED: {name: values[blind.rows] for name, values in wins.items()}}
        for kind, of_kind in blind.scores.items():
            answers[kind] = _win_columns(pairs, of_kind, blind.rows, compared=compared)
        add_blind_columns(items, blind.rows, answers)
    if uncompared and not single_image:
        absent = dict.fromkeys(_GROUPS, uncompared)
    for name, (spec, values) in (extra or {}).items():
        items[spec.columns[0]] = values
        specs[name] = spec
    baselines = {CHANCE: chance_columns(pairs)}
    first = "accuracy_of_kinds" if pairs.by_category and "accuracy_of_kinds" in specs else "accuracy"
    metrics = {
        name: compute_metric(items, spec, baselines=baselines) for name, spec in specs.items() if name not in absent
    }
    return Evaluation(
        metrics=metrics | blind_metrics(items, metrics),
        primary=tuple(name for name in (first, "text_score", *_GROUPS) if name in specs and name not in absent),
        missing_metrics=absent,
        protocol=protocol,
        items=items,
    )


def data_settings(pairs: PairSet, config: PairConfig) -> Entries:
    """Protocol entries about the data and the metrics."""
    return {
        "benchmark": config.name,
        "data_hash": pairs.hash,
        "format": config.format,
        "cases": len(pairs.cases),
        "ties": f"expected value over random order of scores within {TIE_TOLERANCE}",
        "scorer": "benchmarks.compositional 1",
        **full_size_entry(len(pairs.cases), pairs.available),
    }


def win_probabilities(scores: np.ndarray) -> tuple[float, float, float]:
    """Probability of the text, image and group win from scores (P, C), ties in random order; NaN for the latter two if
    P = 1.
    """
    if len(scores) == 1:
        if (scores[0] > scores[0, 0] + TIE_TOLERANCE).any():
            return 0.0, np.nan, np.nan
        return 1.0 / (np.abs(scores[0] - scores[0, 0]) <= TIE_TOLERANCE).sum(), np.nan, np.nan
    gaps = np.abs(scores[:, :, None, None] - scores).reshape(scores.size, scores.size) + np.eye(scores.size)
    orders = list(permutations(range(scores.size))) if (gaps <= TIE_TOLERANCE).any() else [tuple(range(scores.size))]
    text, image = np.array([_wins(scores, np.reshape(order, scores.shape)) for order in orders], float).T
    return float(text.mean()), float(image.mean()), float((text * image).mean())


def _wins(scores: np.ndarray, order: np.ndarray) -> tuple[bool, bool]:
    """Whether text and image are won if ``order`` decides ties: the later one counts as higher."""

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        gap = scores[one] - scores[other]
        return bool(order[one] > order[other] if abs(gap) <= TIE_TOLERANCE else gap > 0)

    images, captions = scores.shape
    text = all(beats((i, i), (i, j)) for i in range(images) for j in range(captions) if j != i)
    image = all(beats((i, i), (k, i)) for i in range(images) for k in range(images) if k != i)
    return text, image


def chance_columns(pairs: PairSet) -> dict[str, np.ndarray]:
    """The item columns of a model whose similarities are random: the probability of each success."""
    shapes = [(len(case.images), len(case.captions)) for case in pairs.cases]
    of_shape = {shape: win_probabilities(np.zeros(shape)) for shape in set(shapes)}
    text, image, both = np.array([of_shape[shape] for shape in shapes]).T
    kinds = np.array([case.kind for case in pairs.cases])
    parts = {f"score_{kind}": np.where(kinds == kind, text, np.nan) for kind in _kinds(pairs)}
    return {"score": text, "image_score": image, "group_score": both, **parts}


def _specs(pairs: PairSet) -> dict[str, MetricSpec]:
    single_image = len(pairs.cases[0].images) == 1
    name, label = ("accuracy", "choice") if single_image else ("text_score", "text")
    specs = {name: MetricSpec(label=label, columns=("score",))}
    if not single_image:
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
    kinds = sorted({case.kind for case in pairs.cases if case.kind})
    return kinds if len(kinds) <= 20 else []  # with a metric each; of ARO's hundreds only the mean is reported


def _items(pairs: PairSet, scores: Scores, wins: Mapping[str, np.ndarray]) -> pd.DataFrame:
    import pandas as pd

    cases = pairs.cases
    first = [case.images[0] for case in cases]
    shown = [
        " ".join(each.reference if each.box is None else f"{each.reference} {each.box}" for each in case.images)
        for case in cases
    ]
    # the caption to which each image gives the highest score; the first of tied ones
    chosen = [
        [case.captions[int(np.argmax(row > row.max() - TIE_TOLERANCE))] for row in each]
        for case, each in zip(cases, scores, strict=True)
    ]
    items = pd.DataFrame(
        {
            "item": [case.name for case in cases],
            "image": [image.reference for image in first],
            IMAGE_HASH: [pairs.contents[image][0][:16] for image in first],
            "direction": "",
            "category": [case.kind for case in cases],
            "question": [" | ".join(case.captions) for case in cases],
            "prediction": [_numbered(texts) for texts in chosen],
            "target": [_numbered(case.captions[: len(case.images)]) for case in cases],
            "score": wins["score"],
            "thumbnail": thumbnails(shown, lambda index: _side_by_side(pairs, cases[index])),
            "margin": [_margin(each) for each in scores],
            "averaged": [case.kind if case.kind in pairs.averaged else None for case in cases],
        }
    )
    return items.assign(**{name: values for name, values in wins.items() if name != "score"})


def _win_columns(pairs: PairSet, scores: Scores, rows: Sequence[int], *, compared: bool) -> dict[str, np.ndarray]:
    """The item columns that depend on the scores, of the cases at ``rows``."""
    wins = np.array([win_probabilities(each) for each in scores])
    columns = {"score": wins[:, 0]} | ({"image_score": wins[:, 1], "group_score": wins[:, 2]} if compared else {})
    kinds = np.array([pairs.cases[row].kind for row in rows])
    return columns | {f"score_{kind}": np.where(kinds == kind, wins[:, 0], np.nan) for kind in _kinds(pairs)}


def _numbered(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else " ".join(f"{number}. {text}" for number, text in enumerate(texts, 1))


def _side_by_side(pairs: PairSet, case: Pair) -> Image:
    from PIL import Image

    images = [pairs.open(image) for image in case.images]
    if len(images) == 1:
        return images[0]
    height = max(image.height for image in images)
    resized = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    canvas = Image.new("RGB", (sum(image.width for image in resized), height))
    left = 0
    for image in resized:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def _margin(scores: np.ndarray) -> float:
    """Score of the right caption minus the best wrong one, the minimum over the images."""
    wrong = np.where(np.eye(*scores.shape) > 0, -np.inf, scores).max(axis=1)
    return float((np.diagonal(scores) - wrong).min())


@pair_benchmarks("", how="by similarity", config=PairConfig, needs="encoder")
def evaluate(model: EvalModel, config: PairConfig) -> Evaluation:
    """Accuracy of a model's encoder that chooses the most similar caption."""
    from benchmarks.tasks.encoders.embedding import image_embeddings, text_embeddings

    pairs = load_pairs(config)
    names = [image.reference for image in pairs.images]
    texts = list(dict.fromkeys(text for case in pairs.cases for text in case.captions))
    image_vectors = image_embeddings(
        model, lambda index: pairs.open(pairs.images[index]), names, pairs.images_hash, "encoder"
    )
    text_vectors = text_embeddings(model, texts)
    image_at = {image: number for number, image in enumerate(pairs.images)}
    text_at = {text: number for number, text in enumerate(texts)}
    scores = []
    for case in pairs.cases:
        of_images = image_vectors[[image_at[image] for image in case.images]]
        of_captions = text_vectors[[text_at[text] for text in case.captions]]
        scores.append((of_images @ of_captions.T).cpu().numpy())
    return compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, by similarity",
            "caption_text": "unchanged, without a prompt",
            "similarity": "cosine",
        }
        | data_settings(pairs, config)
        | model.encoder.settings,
    )
