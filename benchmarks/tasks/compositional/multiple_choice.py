"""Compositional benchmarks as multiple choice: the prompt offers two captions as A and B, and again in reverse order.

The answer is the more probable of the two letters. The score is the log-probability difference between the right and
the wrong letter, averaged over both orders, so that a preference for A or for the last option cancels out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.compositional.caption_scores import compute_evaluation, data_settings, load_pairs
from benchmarks.tasks.compositional.loglikelihood import llava_protocol, score_texts
from benchmarks.tasks.evaluation import Evaluation, MetricSpec
from clips.data.formats.dataset_format import Pair
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

PROMPT = (
    "Which caption fits the image?\nA. {a}\nB. {b}\nAnswer with the option's letter from the given choices directly."
)
"""The multiple-choice format on which LLaVA-1.5 was trained (arXiv 2310.03744, table 7)."""
OPTION_LETTERS = ("A", "B")
_LIKES_A = MetricSpec(label="share of A", columns=("said_a",), higher_is_better=None)


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Accuracy of a model's LLaVA that names the right caption."""
    pairs = load_pairs(config)
    prompt = config.prompt or PROMPT
    if "{a}" not in prompt or "{b}" not in prompt:
        raise UserError(f"benchmarks.prompt: expected {{a}} and {{b}} where the captions go, got '{prompt:.80}'")
    asked = [
        (case.images[place], _filled(prompt, *texts), letter)
        for case in pairs.cases
        for place, wrong in _questions(case)
        for texts in ((case.captions[place], case.captions[wrong]), (case.captions[wrong], case.captions[place]))
        for letter in OPTION_LETTERS
    ]
    found = np.array([each.total for each in score_texts(row, pairs, asked, end=False)]).reshape(-1, 2, 2)
    ahead = found[:, :, 0] - found[:, :, 1]  # of A, with the right caption first and last
    margins, said_a = iter((ahead[:, 0] - ahead[:, 1]) / 2), iter((ahead > 0).mean(axis=1))
    scores, likes = [], []
    for case in pairs.cases:
        each = np.zeros((len(case.images), len(case.captions)))
        for place, wrong in _questions(case):
            each[place, wrong] = -next(margins)
        scores.append(each)
        likes.append(float(np.mean([next(said_a) for _ in _questions(case)])))
    return compute_evaluation(
        pairs,
        scores,
        {
            "task": "choice between a caption and one that differs in a detail, asked in words",
            "prompt": prompt,
            "score": "log-likelihood of the letter of the right caption less that of the other, mean of both orders",
        }
        | data_settings(pairs, config)
        | llava_protocol(*row.llava),
        uncompared="asked in words, a picture's captions are compared, not pictures",
        extra={"said_a": (_LIKES_A, likes)},
    )


def _questions(case: Pair) -> list[tuple[int, int]]:
    """(image and its caption, wrong caption) of every question about a case."""
    return [
        (place, wrong) for place in range(len(case.images)) for wrong in range(len(case.captions)) if wrong != place
    ]


def _filled(prompt: str, first: str, second: str) -> str:
    return re.sub(r"\{[ab]\}", lambda mark: first if mark[0] == "{a}" else second, prompt)
