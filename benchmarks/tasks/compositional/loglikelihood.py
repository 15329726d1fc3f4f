"""Compositional benchmarks by likelihood: the caption with the highest likelihood as a LLaVA's answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.results.protocol import Entries
from benchmarks.tasks.blind_images import BlindConfig, blind_settings
from benchmarks.tasks.compositional.blind_pairs import blind_pairs
from benchmarks.tasks.compositional.caption_scores import (
    PairConfig,
    compute_evaluation,
    data_settings,
    load_pairs,
    pair_benchmarks,
)
from benchmarks.tasks.data.pair_sets import PairSet
from benchmarks.tasks.distributed import run_on_all
from benchmarks.tasks.evaluation import Evaluation
from benchmarks.tasks.output_cache import cache_key
from clips.commandline.progress import progress_iter
from clips.core.artifact import library_versions
from clips.data.formats.dataset_format import ImageRegion

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from llava_bridge.inference.loglikelihood import LogLikelihood

PROMPT = "Provide a one-sentence caption for the provided image."
"""lmms-eval's prompt for NoCaps."""
_SCORES = {
    "sum": "log-likelihood, summed over the caption's tokens and the end token",
    "mean": "log-likelihood, mean over the caption's tokens and the end token",
    "mutual_info": "log-likelihood, summed over the caption's tokens and the end token, minus that without the image",
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig(PairConfig, BlindConfig):
    """A choice between captions by a LLaVA's likelihood.

    Args:
        prompt: the LLaVA's prompt for captions; by default the benchmark's own.
        likelihood_score: a caption's score: the ``sum`` of its token log-likelihoods, their ``mean``, or
            ``mutual_info``, the sum minus that without the image (pointwise mutual information).
    """

    prompt: str | None = None
    likelihood_score: Literal["sum", "mean", "mutual_info"] = "sum"


@pair_benchmarks("_likelihood", how="by likelihood", config=LikelihoodConfig, needs="llava")
def evaluate(model: EvalModel, config: LikelihoodConfig) -> Evaluation:
    """Accuracy of a model's LLaVA that chooses the caption with the highest likelihood."""
    pairs = load_pairs(config)
    prompt = config.prompt or PROMPT
    llava, processor = model.llava
    blind = blind_pairs(pairs, config, processor, lambda each: _scores(model, each, prompt, config))
    scores = _scores(model, pairs, prompt, config)
    return compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, by likelihood",
            "prompt": prompt,
            "score": _SCORES[config.likelihood_score],
        }
        | data_settings(pairs, config)
        | llava_protocol(llava, processor)
        | blind_settings(config, processor),
        blind=blind,
    )


def _scores(model: EvalModel, pairs: PairSet, prompt: str, config: LikelihoodConfig) -> list[np.ndarray]:
    """(P, C) scores of each case."""
    requests = [(image, prompt, text) for case in pairs.cases for image in case.images for text in case.captions]
    texts = list(dict.fromkeys(text for _, _, text in requests)) if config.likelihood_score == "mutual_info" else []
    found = score_texts(model, pairs, [*requests, *((None, prompt, text) for text in texts)])
    without_image = {text: each.total for text, each in zip(texts, found[len(requests) :], strict=True)}
    values = iter(
        each.total / (each.tokens if config.likelihood_score == "mean" else 1) - without_image.get(text, 0.0)
        for each, (_, _, text) in zip(found[: len(requests)], requests, strict=True)
    )
    return [np.array([[next(values) for _ in case.captions] for _ in case.images], dtype=float) for case in pairs.cases]


def llava_protocol(model: Any, processor: Any) -> Entries:
    """Protocol entries about the computation of likelihoods and the LLaVA's input."""
    from benchmarks.tasks.mllm.llava_input import input_settings

    versions = {name: library_versions()[name].partition("+")[0] for name in ("torch", "transformers")}
    return {"precision": str(model.dtype).removeprefix("torch."), **versions, **input_settings(processor)}


def score_texts(
    model: EvalModel, pairs: PairSet, requests: Sequence[tuple[ImageRegion | None, str, str]], *, end: bool = True
) -> list[LogLikelihood]:
    """Log-likelihood of each text as the answer to a prompt about an image, or about no image.

    Args:
        requests: (image, prompt, text).
        end: include the EOS token of the answer.
    """
    from clips.parallel.distributed import all_gather_objects
    from llava_bridge.inference.loglikelihood import LogLikelihood

    cache = model.answer_cache("likelihood", pairs.hash)
    keys = [
        cache_key(image=None if image is None else json.dumps(pairs.contents[image]), prompt=prompt, text=text, end=end)
        for image, prompt, text in requests
    ]
    missing = [number for number, key in enumerate(keys) if key not in cache.known]
    missing.sort(key=lambda number: len(requests[number][2]))
    mine = missing[model.processes.rank :: model.processes.count]

    def score() -> None:
        size = model.config.batch_size
        for start in progress_iter(range(0, len(mine), size), "scoring captions"):
            batch = mine[start : start + size]
            found = _likelihoods(model, pairs, [requests[number] for number in batch], end=end)
            texts = (json.dumps(dataclasses.asdict(each)) for each in found)
            cache.add({keys[number]: text for number, text in zip(batch, texts, strict=True)})

    run_on_all(model.processes, score)
    for known in all_gather_objects(cache.known):
        cache.known |= known
    return [LogLikelihood(**json.loads(cache.known[key])) for key in keys]


def _likelihoods(
    model: EvalModel, pairs: PairSet, requests: Sequence[tuple[ImageRegion | None, str, str]], *, end: bool
) -> list[LogLikelihood]:
    from llava_bridge import loglikelihoods

    opened = {image: pairs.open(image) for image, _, _ in requests if image is not None}
    images = [None if image is None else opened[image] for image, _, _ in requests]
    prompts, texts = [prompt for _, prompt, _ in requests], [text for _, _, text in requests]
    return loglikelihoods(*model.llava, images, prompts, texts, model.config.batch_size, end=end)
