"""A task's formula, applied to the items, gives the score that lmms-eval's scorer gives: both are known by hand."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import bench_world as world
import numpy as np
import pytest

from benchmarks.results.statistics import aggregate
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores, patched_caption_scorers
from benchmarks.tasks.mllm.offline_tasks import go_offline, suppress_output
from benchmarks.tasks.mllm.task_metrics import TASK_METRICS

pytestmark = world.LMMS_EVAL_WARNS


def scorers(task: str) -> Any:
    go_offline()
    with suppress_output():
        return importlib.import_module(f"lmms_eval.tasks.{task}.utils")


def from_items(
    task: str, metric: str, samples: Sequence[Mapping[str, Any]], scores: ImageCaptionScores | None = None, **more: Any
) -> float:
    columns = TASK_METRICS[task].columns(samples, scores or ImageCaptionScores())
    spec = TASK_METRICS[task].metrics[metric]
    items = {name: np.asarray(values) for name, values in {**columns, **more}.items()}
    return aggregate(str(spec.aggregation), items, spec.columns)


def test_pope():
    """Two true positives, a false positive, a false negative, a true negative."""
    utils = scorers("pope")
    answers = [("yes", "yes"), ("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")]
    samples = [
        utils.pope_process_results({"question_id": number, "answer": truth}, [answer.capitalize()])
        for number, (answer, truth) in enumerate(answers)
    ]
    by_hand = {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1_score": 2 * 2 / (3 + 3)}
    for name, value in by_hand.items():
        theirs = getattr(utils, f"pope_aggregate_{name}")([sample[f"pope_{name}"] for sample in samples])
        assert (theirs, from_items("pope", f"pope_{name}", samples)) == pytest.approx((value, value)), name


def test_mme():
    """Colors: a pair right (100 + 100) and a pair half right (50 + 0), on average 125; existence: a pair wrong, 0."""
    utils = scorers("mme")
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
        assert utils.mme_aggregate_results(scores) == pytest.approx(125)
    categories = [score["category"] for score in scores]
    assert from_items("mme", "mme_perception_score", samples, category=categories) == pytest.approx(125)


def test_vqa_accuracy():
    """Three of ten people say "cat": leaving out one of these three gives 2/3, one of the other seven 3/3."""
    utils = scorers("textvqa")
    sample = utils.textvqa_process_results({"question_id": 0, "answers": ["Cat."] * 3 + ["dog"] * 7}, ["a cat"])
    assert sample["exact_match"] == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert from_items("textvqa_val", "exact_match", [sample]) == pytest.approx(0.9)


def test_captions():
    """One caption equals its reference, the other shares no word with its own.

    Each n-gram occurs in one of two images, so that its weight is log 2 > 0; equal captions have cosine 1 for every n,
    and CIDEr-D is ten times their mean. BLEU-1: 6 of 10 words match; 10 words versus 12: e^(1 - 12/10).
    """
    go_offline()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {1: ["a dog runs on green grass"], 2: ["two boats lie in the harbour"]}
    answers = {1: ["a dog runs on green grass"], 2: ["people eat some pizza"]}
    with suppress_output(), patched_caption_scorers() as scores:
        cider, _ = Cider().compute_score(references, answers)
        Rouge().compute_score(references, answers)
        bleu, _ = Bleu(4).compute_score(references, answers, verbose=0)
    samples = [{"doc": {"image_id": number}} for number in references]
    assert cider == pytest.approx((10 + 0) / 2, abs=1e-3)
    assert bleu[0] == pytest.approx(0.6 * np.exp(1 - 12 / 10), abs=1e-4)
    assert from_items("nocaps_val", "nocaps_CIDEr", samples, scores) == pytest.approx(cider)
    assert from_items("nocaps_val", "nocaps_Bleu_1", samples, scores) == pytest.approx(bleu[0])
