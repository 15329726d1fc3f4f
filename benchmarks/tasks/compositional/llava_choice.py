"""Compositional benchmarks of a LLaVA: the caption with the highest likelihood as its answer, or a multiple-choice
question that offers two captions as A and B, and again in reverse order.

A question's answer is the more probable letter. The score is the log-probability difference between the right and the
wrong one, averaged over both orders, so that a preference for A or for the last option cancels out.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.results.protocol import Entries
from benchmarks.tasks.blind import NO_OTHER_IMAGE, BlindConfig, blank_images, blind_settings, draw_sample, mean_color
from benchmarks.tasks.compositional import caption_scores
from benchmarks.tasks.compositional.caption_scores import BlindScores, PairConfig, Scores
from benchmarks.tasks.data.pair_sets import PairSet
from benchmarks.tasks.evaluation import Evaluation, MetricSpec
from benchmarks.tasks.mllm.llava_input import input_settings
from benchmarks.tasks.output_cache import cache_key, run_on_all
from clips.commandline.progress import progress_iter
from clips.core.artifact import library_versions
from clips.data.formats.dataset_format import ImageRegion, Pair
from clips.data.lazy_images import LazyImage
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from llava_bridge.inference.loglikelihood import LogLikelihood

CAPTION_PROMPT = "Provide a one-sentence caption for the provided image."  # lmms-eval's prompt for NoCaps
CHOICE_PROMPT = (
    "Which caption fits the image?\nA. {a}\nB. {b}\nAnswer with the option's letter from the given choices directly."
)
"""The multiple-choice format on which LLaVA-1.5 was trained (arXiv 2310.03744, table 7)."""
_SCORES = {
    "sum": "log-likelihood, summed over the caption's tokens and the end token",
    "mean": "log-likelihood, mean over the caption's tokens and the end token",
    "mutual_info": "log-likelihood, summed over the caption's tokens and the end token, minus that without the image",
}
_Request = tuple[ImageRegion | None, str, str]  # image, prompt, text


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


@caption_scores.pair_benchmarks("_likelihood", how="by likelihood", config=LikelihoodConfig, needs="llava")
def evaluate_likelihood(model: EvalModel, config: LikelihoodConfig) -> Evaluation:
    """Accuracy of a model's LLaVA that chooses the caption with the highest likelihood."""
    pairs = caption_scores.load_pairs(config)
    prompt = config.prompt or CAPTION_PROMPT
    llava, processor = model.llava
    blind = _blind_scores(pairs, config, processor, lambda each: _caption_scores(model, each, prompt, config))
    scores = _caption_scores(model, pairs, prompt, config)
    return caption_scores.compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, by likelihood",
            "prompt": prompt,
            "score": _SCORES[config.likelihood_score],
        }
        | caption_scores.data_settings(pairs, config)
        | llava_protocol(llava, processor)
        | blind_settings(config, processor),
        blind=blind,
    )


def _caption_scores(model: EvalModel, pairs: PairSet, prompt: str, config: LikelihoodConfig) -> Scores:
    requests = [(image, prompt, text) for case in pairs.cases for image in case.images for text in case.captions]
    texts = list(dict.fromkeys(text for _, _, text in requests)) if config.likelihood_score == "mutual_info" else []
    scores = _score_texts(model, pairs, [*requests, *((None, prompt, text) for text in texts)])
    without_image = {text: each.total for text, each in zip(texts, scores[len(requests) :], strict=True)}
    values = iter(
        each.total / (each.tokens if config.likelihood_score == "mean" else 1) - without_image.get(text, 0.0)
        for each, (_, _, text) in zip(scores[: len(requests)], requests, strict=True)
    )
    return [np.array([[next(values) for _ in case.captions] for _ in case.images], dtype=float) for case in pairs.cases]


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceConfig(PairConfig, BlindConfig):
    """A choice between captions as a multiple-choice question.

    Args:
        prompt: the question, with ``{a}`` and ``{b}`` for the captions; by default the benchmark's own.
    """

    prompt: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not ("{a}" in self.prompt and "{b}" in self.prompt):
            raise UserError(f"prompt: expected {{a}} and {{b}} where the captions go, got '{self.prompt:.80}'")


@caption_scores.pair_benchmarks("_mcq", how="multiple choice, A or B", config=MultipleChoiceConfig, needs="llava")
def evaluate_choice(model: EvalModel, config: MultipleChoiceConfig) -> Evaluation:
    """Accuracy of a model's LLaVA that names the right caption."""
    pairs = caption_scores.load_pairs(config)
    prompt = config.prompt or CHOICE_PROMPT
    blind = _blind_scores(pairs, config, model.llava[1], lambda each: _letter_scores(model, each, prompt)[0])
    scores, a_ratios = _letter_scores(model, pairs, prompt)
    return caption_scores.compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, as multiple choice",
            "prompt": prompt,
            "score": "log-likelihood of the right caption's letter minus that of the other, mean of both orders",
        }
        | caption_scores.data_settings(pairs, config)
        | llava_protocol(*model.llava)
        | blind_settings(config, model.llava[1]),
        uncompared="multiple choice compares the captions of one image, not images",
        extra={"said_a": (MetricSpec(label="ratio of A", columns=("said_a",), higher_is_better=None), a_ratios)},
        blind=blind,
    )


def _letter_scores(model: EvalModel, pairs: PairSet, prompt: str) -> tuple[list[np.ndarray], list[float]]:
    """(P, C) scores of each case, and how often A was more probable."""

    def fill(first: str, second: str) -> str:
        return re.sub(r"\{[ab]\}", lambda slot: first if slot[0] == "{a}" else second, prompt)

    requests = [
        (case.images[right], fill(*texts), letter)
        for case in pairs.cases
        for right, wrong in _questions(case)
        for texts in ((case.captions[right], case.captions[wrong]), (case.captions[wrong], case.captions[right]))
        for letter in "AB"
    ]
    totals = np.array([each.total for each in _score_texts(model, pairs, requests, end=False)]).reshape(-1, 2, 2)
    lead = totals[:, :, 0] - totals[:, :, 1]  # of A over B, with the right caption first and last
    margins, said_a = iter((lead[:, 0] - lead[:, 1]) / 2), iter((lead > 0).mean(axis=1))
    scores, a_ratios = [], []
    for case in pairs.cases:
        each = np.zeros((len(case.images), len(case.captions)))
        for right, wrong in _questions(case):
            each[right, wrong] = -next(margins)
        scores.append(each)
        a_ratios.append(float(np.mean([next(said_a) for _ in _questions(case)])))
    return scores, a_ratios


def _questions(case: Pair) -> list[tuple[int, int]]:
    # (index of image and right caption, index of wrong caption)
    return [
        (right, wrong) for right in range(len(case.images)) for wrong in range(len(case.captions)) if wrong != right
    ]


def llava_protocol(model: Any, processor: Any) -> Entries:
    """Protocol entries about the computation of likelihoods and the LLaVA's input."""
    versions = {name: library_versions()[name].partition("+")[0] for name in ("torch", "transformers")}
    return {"precision": str(model.dtype).removeprefix("torch."), **versions, **input_settings(processor)}


def _score_texts(
    model: EvalModel, pairs: PairSet, requests: Sequence[_Request], *, end: bool = True
) -> list[LogLikelihood]:
    """Log-likelihood of each text as the answer to a prompt about an image, or about no image; cached.

    Args:
        end: include the EOS token of the answer.
    """
    from llava_bridge import loglikelihoods
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
        for start in progress_iter(range(0, len(mine), size), "scoring captions", "batches"):
            batch = mine[start : start + size]
            regions, prompts, texts = zip(*(requests[number] for number in batch), strict=True)
            opened = {region: pairs.open(region) for region in regions if region is not None}
            images = [None if region is None else opened[region] for region in regions]
            likelihoods = loglikelihoods(*model.llava, images, list(prompts), list(texts), size, end=end)
            lines = (json.dumps(dataclasses.asdict(each)) for each in likelihoods)
            cache.add({keys[number]: line for number, line in zip(batch, lines, strict=True)})

    run_on_all(model.processes, score)
    cache.share(model.processes)
    return [LogLikelihood(**json.loads(cache.known[key])) for key in keys]


@dataclass(frozen=True, slots=True)
class _BlankImage(LazyImage):
    size: tuple[int, int]
    color: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"blank {self.size}"

    def read(self) -> bytes:
        from PIL import Image

        stream = io.BytesIO()
        Image.new("RGB", self.size, self.color).save(stream, "PNG")
        return stream.getvalue()


def _blind_scores(
    pairs: PairSet, config: BlindConfig, processor: Any, score: Callable[[PairSet], Scores]
) -> BlindScores | None:
    """The blind runs' scores; None without such runs. Images are the same if their files are, whatever the box."""
    if not config.blind:
        return None
    files = {region: file for region, (file, _) in pairs.contents.items()}
    regions = {name: region for region, name in reversed(files.items())}
    firsts = [files[case.images[0]] for case in pairs.cases]
    sample = draw_sample(firsts, pairs.hash, config.blind_items, more=files.values())
    rows = sample.rows(firsts)
    resize = str(input_settings(processor)["input_resize"])

    def blank(own: Sequence[ImageRegion]) -> tuple[ImageRegion, ...]:
        images = blank_images(processor, [pairs.open(region) for region in own], resize)
        return tuple(ImageRegion(_BlankImage(image.size, mean_color(processor))) for image in images)

    def shuffled(own: Sequence[ImageRegion]) -> tuple[ImageRegion, ...]:
        taken = {files[region] for region in own}
        others = [name for name in sample.others(files[own[0]]) if name not in taken]
        if not others:
            raise UserError(NO_OTHER_IMAGE)
        return tuple(regions[others[number % len(others)]] for number in range(len(own)))

    replace = {"blank": blank, "shuffled": shuffled}
    cases = [pairs.cases[row] for row in rows]
    changed = {
        kind: [dataclasses.replace(case, images=replace[kind](case.images)) for case in cases] for kind in config.blind
    }
    return BlindScores(rows, {kind: score(dataclasses.replace(pairs, cases=each)) for kind, each in changed.items()})
