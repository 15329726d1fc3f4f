"""Compositional benchmarks by similarity: the caption whose vector is nearest to the image's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.tasks.compositional.caption_scores import compute_evaluation, data_settings, load_pairs
from benchmarks.tasks.evaluation import Evaluation

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Accuracy of a model's encoder that chooses the most similar caption."""
    from benchmarks.tasks.encoders.cached_embeddings import image_embeddings, text_embeddings
    from benchmarks.tasks.encoders.embedding import encoder_settings

    pairs = load_pairs(config)
    images = {image: number for number, image in enumerate(pairs.pictures)}
    texts = {
        text: number for number, text in enumerate(dict.fromkeys(t for case in pairs.cases for t in case.captions))
    }
    names = [image.reference for image in images]
    seen = image_embeddings(row, lambda index: pairs.open(pairs.pictures[index]), names, pairs.images_hash)
    read = text_embeddings(row, list(texts))
    scores = [
        (seen[[images[image] for image in case.images]] @ read[[texts[text] for text in case.captions]].T).cpu().numpy()
        for case in pairs.cases
    ]
    return compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, by similarity",
            "caption_text": "as given, casing and punctuation kept; no prompt around it",
            "similarity": "cosine",
        }
        | data_settings(pairs, config)
        | row.encoder.how
        | encoder_settings(row.encoder),
    )
