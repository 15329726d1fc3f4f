"""Compositional benchmarks as multiple choice: the prompt offers two captions as A and B, and again in reverse order.

The answer is the more probable of the two letters. The score is the log-probability difference between the right and
the wrong letter, averaged over both orders, so that a preference for A or for the last option cancels out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.blind_images import BlindConfig, blind_settings
from benchmarks.tasks.compositional.blind_pairs import blind_pairs
from benchmarks.tasks.compositional.caption_scores import (
    PairConfig,
    compute_evaluation,
    data_settings,
    load_pairs,
    pair_benchmarks,
)
from benchmarks.tasks.compositional.loglikelihood import llava_protocol, score_texts
from benchmarks.tasks.data.pair_sets import PairSet
from benchmarks.tasks.evaluation import Evaluation, MetricSpec
from clips.data.formats.dataset_format import Pair
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel

PROMPT = (
    "Which caption fits the image?\nA. {a}\nB. {b}\nAnswer with the option's letter from the given choices directly."
)
"""The multiple-choice format on which LLaVA-1.5 was trained (arXiv 2310.03744, table 7)."""
OPTION_LETTERS = ("A", "B")
_A_RATIO = MetricSpec(label="ratio of A", columns=("said_a",), higher_is_better=None)


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


@pair_benchmarks("_mcq", how="multiple choice, A or B", config=MultipleChoiceConfig, needs="llava")
def evaluate(model: EvalModel, config: MultipleChoiceConfig) -> Evaluation:
    """Accuracy of a model's LLaVA that names the right caption."""
    pairs = load_pairs(config)
    prompt = config.prompt or PROMPT
    blind = blind_pairs(pairs, config, model.llava[1], lambda each: _scores(model, each, prompt)[0])
    scores, a_ratios = _scores(model, pairs, prompt)
    return compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, as multiple choice",
            "prompt": prompt,
            "score": "log-likelihood of the right caption's letter minus that of the other, mean of both orders",
        }
        | data_settings(pairs, config)
        | llava_protocol(*model.llava)
        | blind_settings(config, model.llava[1]),
        uncompared="multiple choice compares the captions of one image, not images",
        extra={"said_a": (_A_RATIO, a_ratios)},
        blind=blind,
    )


def _scores(model: EvalModel, pairs: PairSet, prompt: str) -> tuple[list[np.ndarray], list[float]]:
    """(P, C) scores of each case, and how often A was more probable."""
    requests = [
        (case.images[right], _fill(prompt, *texts), letter)
        for case in pairs.cases
        for right, wrong in _questions(case)
        for texts in ((case.captions[right], case.captions[wrong]), (case.captions[wrong], case.captions[right]))
        for letter in OPTION_LETTERS
    ]
    found = np.array([each.total for each in score_texts(model, pairs, requests, end=False)]).reshape(-1, 2, 2)
    lead = found[:, :, 0] - found[:, :, 1]  # of A over B, with the right caption first and last
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
    """(index of image and right caption, index of wrong caption) of every question about a case."""
    return [
        (right, wrong) for right in range(len(case.images)) for wrong in range(len(case.captions)) if wrong != right
    ]


def _fill(prompt: str, first: str, second: str) -> str:
    return re.sub(r"\{[ab]\}", lambda slot: first if slot[0] == "{a}" else second, prompt)
