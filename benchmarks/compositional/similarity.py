"""Compositional benchmarks by similarity: the caption whose vector is nearest to the picture's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.compositional.scoring import data_protocol, load, outcome
from benchmarks.outcome import Outcome

if TYPE_CHECKING:
    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row


def evaluate(row: Row, config: BenchmarkConfig) -> Outcome:
    """How often a row's encoder finds the right caption the most similar."""
    from benchmarks.encoders.embed import computed_by
    from benchmarks.encoders.vectors import image_vectors, text_vectors

    pairs = load(config)
    pictures = {picture: number for number, picture in enumerate(pairs.pictures)}
    texts = {
        text: number for number, text in enumerate(dict.fromkeys(t for case in pairs.cases for t in case.captions))
    }
    names = [picture.reference for picture in pictures]
    seen = image_vectors(row, lambda index: pairs.open(pairs.pictures[index]), names, pairs.pictures_hash)
    read = text_vectors(row, list(texts))
    scores = [
        (seen[[pictures[picture] for picture in case.pictures]] @ read[[texts[text] for text in case.captions]].T)
        .cpu()
        .numpy()
        for case in pairs.cases
    ]
    return outcome(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, by similarity",
            "caption_text": "as given, casing and punctuation kept; no prompt around it",
            "similarity": "cosine",
        }
        | data_protocol(pairs, config)
        | row.encoder.how
        | computed_by(row.encoder),
    )
