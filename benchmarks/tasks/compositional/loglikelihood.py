"""Compositional benchmarks by likelihood: the caption that a LLaVA finds the likeliest answer to a request for one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.protocol import Entries
from benchmarks.tasks.compositional.caption_scores import compute_evaluation, data_settings, load_pairs
from benchmarks.tasks.data.pair_sets import PairSet
from benchmarks.tasks.distributed import run_on_all
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.output_cache import cache_key
from clips.commandline.progress import progress_iter
from clips.core.artifact import library_versions
from clips.data.formats.dataset_format import ImageRegion
from clips.parallel.distributed import all_gather_objects

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig
    from llava_bridge.inference.loglikelihood import LogLikelihood

PROMPT = "Provide a one-sentence caption for the provided image."
"""The prompt of lmms-eval for NoCaps."""
_SCORES = {
    "sum": "log-likelihood, summed over the caption's tokens and the end token",
    "mean": "log-likelihood, mean over the caption's tokens and the end token",
    "mutual_info": "log-likelihood, summed over the caption's tokens and the end token, less what it is without the "
    "picture",
}


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Accuracy of a model's LLaVA that chooses the caption with the highest likelihood."""
    pairs = load_pairs(config)
    prompt = config.prompt or PROMPT
    asked = [(image, prompt, text) for case in pairs.cases for image in case.images for text in case.captions]
    model, processor = row.llava
    texts = list(dict.fromkeys(text for _, _, text in asked)) if config.likelihood_score == "mutual_info" else []
    found = score_texts(row, pairs, [*asked, *((None, prompt, text) for text in texts)])
    alone = {text: each.total for text, each in zip(texts, found[len(asked) :], strict=True)}
    values = [
        each.total / (each.tokens if config.likelihood_score == "mean" else 1) - alone.get(text, 0.0)
        for each, (_, _, text) in zip(found[: len(asked)], asked, strict=True)
    ]
    supply = iter(values)
    scores = [
        np.array([[next(supply) for _ in case.captions] for _ in case.images], dtype=float) for case in pairs.cases
    ]
    return compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, by likelihood",
            "prompt": prompt,
            "score": _SCORES[config.likelihood_score],
        }
        | data_settings(pairs, config)
        | llava_protocol(model, processor),
    )


def llava_protocol(model: Any, processor: Any) -> Entries:
    """Protocol entries about the likelihood computation and the LLaVA's input."""
    from benchmarks.tasks.mllm.evaluate_task import input_settings

    computed = {name: library_versions()[name].partition("+")[0] for name in ("torch", "transformers")}
    return {"precision": str(model.dtype).removeprefix("torch."), **computed, **input_settings(processor)}


def score_texts(
    row: EvalModel, pairs: PairSet, asked: Sequence[tuple[ImageRegion | None, str, str]], *, end: bool = True
) -> list[LogLikelihood]:
    """Log-likelihood of each text as the answer to a prompt about an image, or about no image.

    Args:
        row: the model; it has the LLaVA.
        pairs: opens the images.
        asked: (image, prompt, text).
        end: include the EOS token of the answer.
    """
    from llava_bridge.inference.loglikelihood import LogLikelihood

    kept = row.kept_answers("likelihood", pairs.hash)
    keys = [
        cache_key(picture=None if image is None else pairs.contents[image], prompt=prompt, text=text, end=end)
        for image, prompt, text in asked
    ]
    missing = [number for number, key in enumerate(keys) if key not in kept.known]
    missing.sort(key=lambda number: len(asked[number][2]))
    mine = missing[row.processes.rank :: row.processes.count]

    def score() -> None:
        size = row.config.batch_size
        for start in progress_iter(range(0, len(mine), size), "scoring captions"):
            batch = mine[start : start + size]
            found = _likelihoods(row, pairs, [asked[number] for number in batch], end=end)
            kept.add(
                {keys[number]: json.dumps(dataclasses.asdict(each)) for number, each in zip(batch, found, strict=True)}
            )

    run_on_all(row.processes, score)
    for theirs in all_gather_objects(kept.known):
        kept.known |= theirs
    return [LogLikelihood(**json.loads(kept.known[key])) for key in keys]


def _likelihoods(
    row: EvalModel, pairs: PairSet, asked: Sequence[tuple[ImageRegion | None, str, str]], *, end: bool
) -> list[LogLikelihood]:
    from llava_bridge import loglikelihoods

    opened = {image: pairs.open(image) for image, _, _ in asked if image is not None}
    images = [None if image is None else opened[image] for image, _, _ in asked]
    prompts, texts = [prompt for _, prompt, _ in asked], [text for _, _, text in asked]
    return loglikelihoods(*row.llava, images, prompts, texts, row.config.batch_size, end=end)
