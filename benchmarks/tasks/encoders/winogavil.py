"""WinoGAViL: the images that a word is associated with, among 5, 6, 10 or 12 candidates.

Given the number of associations, the model names as many images, those most similar to the word. The score of a word
is the Jaccard index of both sets. Words about the same candidates are one cluster.

Source: Bitton et al., WinoGAViL (arXiv 2207.12576); DataComp's ``eval_utils/wino_eval.py``, whose main metric is the
mean over words with 10 or 12 candidates, and whose prompt is "A" or "An" and the word in lower case.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from clips.data.formats.rows import open_rows
from clips.data.lazy_images import ImageColumn, LazyImage, TableImage
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

_COLUMNS = {"cue": str, "candidates": list, "associations": list, "candidate_images": list}
_FEW = 6  # candidates, of the easier part
METRICS = {
    "jaccard_10_12": MetricSpec(label="Jaccard, 10 or 12 candidates", columns=("jaccard_10_12",)),
    "jaccard_5_6": MetricSpec(label="Jaccard, 5 or 6 candidates", columns=("jaccard_5_6",)),
    "jaccard": MetricSpec(label="Jaccard", columns=("score",)),
}


@dataclass(frozen=True, kw_only=True)
class WinoGAViL:
    """W words and their candidates.

    Args:
        words: (W,).
        candidates: (W,) the names of each word's images.
        right: (W,) for each, a mask of the associated images.
        places: (W,) for each, the indices of its images in ``images``.
        images: the distinct images, by content.
        hash: SHA-256 of words, candidates, associations and images.
        images_hash: SHA-256 of the images.
        available: number of words without ``limit``.
    """

    words: list[str]
    candidates: list[list[str]]
    right: list[np.ndarray]
    places: list[list[int]]
    images: list[LazyImage]
    hash: str
    images_hash: str
    available: int


def load_winogavil(config: BenchmarkConfig) -> WinoGAViL:
    """Read the dataset nlphuji/winogavil, in any format of ``datasets``.

    Raises:
        UserError: missing or malformed, or a word without an associated candidate.
    """
    rows = open_rows(config.data, None, config.split)
    if missing := _COLUMNS.keys() - rows.features.keys():
        raise UserError(f"{config.data}: expected the columns {', '.join(_COLUMNS)}; missing: {', '.join(missing)}")
    column = ImageColumn(rows, "candidate_images", config.data, Path(config.image_root or config.data))
    found: dict[str, list[Any]] = {"words": [], "candidates": [], "right": [], "places": []}
    images: dict[str, LazyImage] = {}
    contents = []
    for number, row in enumerate(rows.select(range(min(len(rows), config.limit or len(rows))))):
        where, names = f"{config.data} row {number}", row["candidates"]
        for name, kind in _COLUMNS.items():
            if not isinstance(row[name], kind) or not row[name]:
                raise UserError(f"{where}: {name}: expected a {kind.__name__}, got {row[name]!r:.80}")
        right = np.isin(names, row["associations"])
        if len(names) != len(row["candidate_images"]) or not right.any():
            raise UserError(f"{where}: expected an image for each candidate, and an association among them")
        of_row = [TableImage(column, number, place, f"{number}/{name}") for place, name in enumerate(names)]
        keys = [hashlib.sha256(image.read()).hexdigest() for image in of_row]
        for key, image in zip(keys, of_row, strict=True):
            images.setdefault(key, image)
        contents.append([row["cue"], names, right.tolist(), keys])
        for field, value in (("words", row["cue"]), ("candidates", names), ("right", right), ("places", keys)):
            found[field].append(value)
    index_of = {key: index for index, key in enumerate(images)}
    return WinoGAViL(
        **found | {"places": [[index_of[key] for key in keys] for keys in found["places"]]},
        images=list(images.values()),
        hash=hashlib.sha256(json.dumps(contents, ensure_ascii=False).encode()).hexdigest(),
        images_hash=hashlib.sha256("".join(images).encode()).hexdigest(),
        available=len(rows),
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of words, candidates, associations and images."""
    return load_winogavil(config).hash


def prompt(word: str) -> str:
    """``A thorn``, ``An eagle``."""
    return f"A{'n' if word[0].lower() in 'aeiou' else ''} {word.lower()}"


def expected_jaccard(scores: np.ndarray, right: np.ndarray) -> float:
    """The Jaccard index of the right images and as many of the highest scores, ties in random order.

    Args:
        scores: (C,) of the candidates.
        right: (C,) mask of the associated ones.
    """
    from scipy import stats

    count = int(right.sum())
    last = np.sort(scores)[-count]
    above, tied = scores > last + TIE_TOLERANCE, np.abs(scores - last) <= TIE_TOLERANCE
    drawn = np.arange(count + 1)  # associated images among those drawn from the tied ones
    probability = stats.hypergeom.pmf(drawn, tied.sum(), right[tied].sum(), count - above.sum())
    hits = np.minimum(right[above].sum() + drawn, count)
    return float((probability * hits / (2 * count - hits)).sum())


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Compute the mean Jaccard index of a model's encoder."""
    import pandas as pd

    from benchmarks.tasks.encoders.cached_embeddings import image_embeddings, text_embeddings
    from benchmarks.tasks.encoders.embedding import encoder_settings

    data = load_winogavil(config)
    names = [image.name for image in data.images]
    images = image_embeddings(model, lambda index: data.images[index].open(), names, data.images_hash, "encoder")
    prompts = list(dict.fromkeys(map(prompt, data.words)))
    vectors = dict(zip(prompts, text_embeddings(model, prompts), strict=True))
    scores = [
        (images[places] @ vectors[prompt(word)]).cpu().numpy()
        for word, places in zip(data.words, data.places, strict=True)
    ]
    counts = [len(names) for names in data.candidates]
    items = pd.DataFrame(
        {
            "item": [f"{number:05d} {word}" for number, word in enumerate(data.words)],
            "image": [", ".join(names) for names in data.candidates],
            "direction": "",
            "category": [f"{count} candidates" for count in counts],
            "question": [prompt(word) for word in data.words],
            "prediction": [
                ", ".join(names[place] for place in np.argsort(-score, kind="stable")[: right.sum()])
                for names, score, right in zip(data.candidates, scores, data.right, strict=True)
            ],
            "target": [
                ", ".join(np.array(names)[right]) for names, right in zip(data.candidates, data.right, strict=True)
            ],
            "thumbnail": None,
            **_columns(data, scores),
        }
    )
    baselines = {CHANCE: _columns(data, [np.zeros(count) for count in counts])}
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items()},
        primary=("jaccard_10_12",),
        protocol={
            "task": "images associated with a word, their number given",
            "benchmark": config.name,
            "data_hash": data.hash,
            "split": config.split,
            "cases": len(data.words),
            "prompt": "A or An {}, in lower case",
            "similarity": "cosine",
            "ties": f"expected value over random order of images within {TIE_TOLERANCE}",
            "scorer": "benchmarks.winogavil 1",
            **full_size_entry(len(data.words), data.available),
        }
        | model.encoder.preprocessing
        | encoder_settings(model.encoder),
        items=items,
    )


def _columns(data: WinoGAViL, scores: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The item columns of the metrics."""
    found = np.array([expected_jaccard(each, right) for each, right in zip(scores, data.right, strict=True)])
    few = np.array([len(names) <= _FEW for names in data.candidates])
    return {"score": found, "jaccard_5_6": np.where(few, found, np.nan), "jaccard_10_12": np.where(few, np.nan, found)}
