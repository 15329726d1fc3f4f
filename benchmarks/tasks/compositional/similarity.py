"""Compositional benchmarks by similarity: the caption whose vector is nearest to the image's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.tasks.compositional.caption_scores import compute_evaluation, data_settings, load_pairs
from benchmarks.tasks.evaluation import Evaluation

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Accuracy of a model's encoder that chooses the most similar caption."""
    from benchmarks.tasks.encoders.cached_embeddings import image_embeddings, text_embeddings
    from benchmarks.tasks.encoders.embedding import encoder_settings

    pairs = load_pairs(config)
    images = {image: number for number, image in enumerate(pairs.images)}
    unique = dict.fromkeys(text for case in pairs.cases for text in case.captions)
    texts = {text: number for number, text in enumerate(unique)}
    names = [image.reference for image in images]
    image_vectors = image_embeddings(model, lambda index: pairs.open(pairs.images[index]), names, pairs.images_hash)
    text_vectors = text_embeddings(model, list(texts))
    scores = []
    for case in pairs.cases:
        of_images = image_vectors[[images[image] for image in case.images]]
        of_captions = text_vectors[[texts[text] for text in case.captions]]
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
        | model.encoder.preprocessing
        | encoder_settings(model.encoder),
    )
