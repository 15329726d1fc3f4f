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
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from clips.data.formats.rows import check_column, open_rows, utf8_rows
from clips.data.lazy_images import ImageColumn, LazyImage, TableImage
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

_COLUMNS = ("cue", "candidates", "associations", "candidate_images")
_FEW = 6  # candidates, of the easier part
METRICS = {
    "jaccard_10_12": MetricSpec(label="Jaccard, 10 or 12 candidates", columns=("jaccard_10_12",)),
    "jaccard_5_6": MetricSpec(label="Jaccard, 5 or 6 candidates", columns=("jaccard_5_6",)),
    "jaccard": MetricSpec(label="Jaccard", columns=("score",)),
}


@dataclass(frozen=True)
class Cue:
    """A word, the names of its C candidates, a mask of the associated ones, and the indices of their C images."""

    word: str
    names: list[str]
    right: np.ndarray
    places: list[int]

    @property
    def prompt(self) -> str:
        """``A thorn``, ``An eagle``."""
        return f"A{'n' if self.word[0].lower() in 'aeiou' else ''} {self.word.lower()}"


@dataclass(frozen=True)
class WinoGAViL:
    """The cues, the distinct images, a SHA-256 of both, and the number of cues without ``limit``."""

    cues: list[Cue]
    images: list[LazyImage]
    hash: str
    available: int


def load_winogavil(config: BenchmarkConfig) -> WinoGAViL:
    """Read the dataset nlphuji/winogavil, in any format of ``datasets``.

    Raises:
        UserError: missing or malformed, or a word without an associated candidate.
    """
    rows = open_rows(config.data, None, config.split)
    for name in _COLUMNS:
        check_column(name, rows.column_names, "WinoGAViL", config.data)
    column = ImageColumn(rows, "candidate_images", config.data, Path(config.image_root or config.data))
    cues, digest = [], hashlib.sha256()
    images: dict[str, tuple[int, LazyImage]] = {}
    for number, row in enumerate(utf8_rows(config.data, rows.select(range(min(len(rows), config.limit or len(rows)))))):
        word, names, associated, shown = (row[name] for name in _COLUMNS)
        right = np.isin(names or [], associated or [])
        if not word or not right.any() or len(names) != len(shown):
            raise UserError(f"{config.data} row {number}: expected a cue, an image per candidate, and an association")
        keys = []
        for place, name in enumerate(names):
            image = TableImage(column, number, place, f"{number}/{name}")
            keys.append(hashlib.sha256(image.read()).hexdigest())
            images.setdefault(keys[-1], (len(images), image))
        cues.append(Cue(word, names, right, [images[key][0] for key in keys]))
        digest.update(json.dumps([word, names, right.tolist(), keys]).encode())
    return WinoGAViL(cues, [image for _, image in images.values()], digest.hexdigest(), len(rows))


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of words, candidates, associations and images."""
    return load_winogavil(config).hash


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

    data = load_winogavil(config)
    cues, names = data.cues, [image.name for image in data.images]
    images = image_embeddings(model, lambda index: data.images[index].open(), names, data.hash, "encoder")
    prompts = list(dict.fromkeys(cue.prompt for cue in cues))
    vectors = dict(zip(prompts, text_embeddings(model, prompts), strict=True))
    scores = [(images[cue.places] @ vectors[cue.prompt]).cpu().numpy() for cue in cues]
    chosen = [np.argsort(-each, kind="stable")[: cue.right.sum()] for each, cue in zip(scores, cues, strict=True)]
    items = pd.DataFrame(
        {
            "item": [f"{number:05d} {cue.word}" for number, cue in enumerate(cues)],
            "image": [", ".join(cue.names) for cue in cues],
            "direction": "",
            "category": [f"{len(cue.names)} candidates" for cue in cues],
            "question": [cue.prompt for cue in cues],
            "prediction": [", ".join(np.array(cue.names)[places]) for cue, places in zip(cues, chosen, strict=True)],
            "target": [", ".join(np.array(cue.names)[cue.right]) for cue in cues],
            "thumbnail": None,
            **_columns(cues, scores),
        }
    )
    baselines = {CHANCE: _columns(cues, [np.zeros(len(cue.names)) for cue in cues])}
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items()},
        primary=("jaccard_10_12",),
        protocol={
            "task": "images associated with a word, their number given",
            "benchmark": config.name,
            "data_hash": data.hash,
            "split": config.split,
            "cases": len(cues),
            "prompt": "A or An {}, in lower case",
            "similarity": "cosine",
            "ties": f"expected value over random order of images within {TIE_TOLERANCE}",
            "scorer": "benchmarks.winogavil 1",
            **full_size_entry(len(cues), data.available),
        }
        | model.encoder.settings,
        items=items,
    )


def _columns(cues: list[Cue], scores: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The item columns of the metrics."""
    found = np.array([expected_jaccard(each, cue.right) for each, cue in zip(scores, cues, strict=True)])
    few = np.array([len(cue.names) <= _FEW for cue in cues])
    return {"score": found, "jaccard_5_6": np.where(few, found, np.nan), "jaccard_10_12": np.where(few, np.nan, found)}
