"""Scorers on small cases with a known score; comments show the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.analysis.checks import VerifyConfig, expect_close
from benchmarks.results.statistics import aggregate, holm_correction, wilson_interval
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores, patched_caption_scorers
from benchmarks.tasks.mllm.offline_tasks import go_offline, suppress_output
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS


def check_pope(_: VerifyConfig) -> str:
    """Five questions: two true positives, one false positive, one false negative, one true negative."""
    utils = _scorers("pope")
    answers = [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    samples = [
        utils.pope_process_results({"question_id": number, "answer": truth}, [answer.capitalize()])
        for number, (answer, truth) in enumerate(answers)
    ]
    expected = {
        "pope_accuracy": 3 / 5,
        "pope_precision": 2 / 3,  # two of three answers yes are correct
        "pope_recall": 2 / 3,  # two of three present objects are found
        "pope_f1_score": 2 * 2 / (3 + 3),  # twice the true positives over predicted plus present
    }
    for name, value in expected.items():
        scores, aggregate_name = [sample[name] for sample in samples], f"pope_aggregate_{name.removeprefix('pope_')}"
        expect_close(getattr(utils, aggregate_name)(scores), value, f"lmms-eval's {name}")
    _expect_from_items("pope", samples, expected)
    return "accuracy 3/5, precision 2/3, recall 2/3, F1 2·2/(3+3)"


def check_mme(_: VerifyConfig) -> str:
    """Colors: a pair right (100 + 100), a pair half right (50 + 0), on average 125; existence: a pair wrong, 0."""
    utils = _scorers("mme")
    right = {("color", "1"): (1, 1), ("color", "2"): (1, 0), ("existence", "3"): (0, 0)}
    samples = [
        utils.mme_process_results(
            {"question_id": image, "category": kind, "answer": truth}, ["Yes" if hit == (truth == "Yes") else "No"]
        )
        for (kind, image), hits in right.items()
        for hit, truth in zip(hits, ("Yes", "No"), strict=True)
    ]
    scores = [sample["mme_perception_score"] for sample in samples]
    with suppress_output():
        expect_close(utils.mme_aggregate_results(scores), 125 + 0, "lmms-eval's MME points")
    categories = np.array([score["category"] for score in scores])
    _expect_from_items("mme", samples, {"mme_perception_score": 125.0}, category=categories)
    return "(200 + 50)/2 + 0 = 125 points"


def check_vqa(_: VerifyConfig) -> str:
    """Three of ten people say "cat": leaving out one of these three gives 2/3, one of the other seven 3/3."""
    utils = _scorers("textvqa")
    sample = utils.textvqa_process_results({"question_id": 0, "answers": ["Cat."] * 3 + ["dog"] * 7}, ["a cat"])
    expect_close(sample["exact_match"], (3 * 2 / 3 + 7 * 1) / 10, "lmms-eval's VQA accuracy")
    _expect_from_items("textvqa_val", [sample], {"exact_match": 0.9})
    return "(3 · 2/3 + 7 · 1)/10 = 0.9, without articles and full stops"


def check_exact_match(_: VerifyConfig) -> str:
    """GQA's settings: case and punctuation do not count, other words do."""
    go_offline()
    from lmms_eval.api.metrics import exact_match_hf_evaluate

    found = exact_match_hf_evaluate(
        predictions=["Yes.", "red", "a dog"],
        references=["yes", "Red", "dog"],
        ignore_case=True,
        ignore_punctuation=True,
    )
    expect_close(float(found["exact_match"]), 2 / 3, "lmms-eval's exact match")
    return "yes = Yes., red = Red, dog ≠ a dog: 2/3"


def check_captions(_: VerifyConfig) -> str:
    """For two images, one caption equals its reference, the other shares no word with its own.

    Each n-gram occurs in one of two images, so that its weight is log 2 > 0; equal captions have cosine 1 for every n,
    and CIDEr-D is ten times their mean.
    """
    go_offline()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {1: ["a dog runs on green grass"], 2: ["two boats lie in the harbour"]}
    answers = {1: ["a dog runs on green grass"], 2: ["people eat some pizza"]}
    with suppress_output(), patched_caption_scorers() as scores:
        corpus, _each = Cider().compute_score(references, answers)
        Rouge().compute_score(references, answers)
        bleu, _each = Bleu(4).compute_score(references, answers, verbose=0)
    expect_close(float(corpus), (10 + 0) / 2, "CIDEr", tolerance=1e-3)
    items = _columns("nocaps_val", [{"doc": {"image_id": number}} for number in (1, 2)], scores)
    for name, value in (("nocaps_CIDEr", float(corpus)), ("nocaps_Bleu_1", bleu[0])):
        spec = TASK_METRICS["nocaps_val"].metrics[name]
        expect_close(aggregate(str(spec.aggregation), items, spec.columns), float(value), f"{name} from the items")
    # 6 of 10 words match; 10 words versus 12: e^(1 - 12/10)
    expect_close(float(bleu[0]), 0.6 * np.exp(1 - 12 / 10), "BLEU-1", tolerance=1e-4)
    return "CIDEr (10 + 0)/2 = 5, BLEU-1 6/10 · e^(1 − 12/10)"


def check_statistics(_: VerifyConfig) -> str:
    """Wilson's interval of 81 in 263 (Newcombe 1998, table I), and Holm's correction of three p-values."""
    low, high = wilson_interval(81, 263)
    expect_close(low, 0.2553, "Wilson's lower end", tolerance=1e-4)
    expect_close(high, 0.3662, "Wilson's upper end", tolerance=1e-4)
    for found, value in zip(holm_correction([0.01, 0.04, 0.03]), (3 * 0.01, 0.06, 2 * 0.03), strict=True):
        expect_close(found, value, "Holm's correction")
    return "81/263: 25.53 to 36.62 %; p 0.01, 0.04, 0.03 become 0.03, 0.06, 0.06"


def _scorers(task: str) -> Any:
    """The module with the scorers of an lmms-eval task."""
    import importlib

    go_offline()
    with suppress_output():
        return importlib.import_module(f"lmms_eval.tasks.{task}.utils")


def _columns(task: str, samples: Sequence[Mapping[str, Any]], scores: ImageCaptionScores) -> Mapping[str, np.ndarray]:
    return {name: np.asarray(values) for name, values in TASK_METRICS[task].columns(samples, scores).items()}


def _expect_from_items(
    task: str, samples: Sequence[Mapping[str, Any]], expected: Mapping[str, float], **more: np.ndarray
) -> None:
    """Fail unless the aggregations, the base of intervals and tests, give the same values from the items."""
    columns = {**_columns(task, samples, ImageCaptionScores()), **more}
    for name, value in expected.items():
        spec = TASK_METRICS[task].metrics[name]
        expect_close(aggregate(str(spec.aggregation), columns, spec.columns), value, f"{name} from the items")
