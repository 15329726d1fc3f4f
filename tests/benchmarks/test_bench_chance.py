"""What answers give that are made without looking: from the items at hand, against counting it out."""

from __future__ import annotations

import itertools
import json
from math import comb
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bench_reader import write_images

from benchmarks.results.results import CHANCE
from benchmarks.tasks.compositional.caption_scores import chance_columns, win_probabilities
from benchmarks.tasks.data.caption_sets import load_caption_set
from benchmarks.tasks.encoders.classification import chance_hits, majority_class_hits
from benchmarks.tasks.encoders.recall import compute_ranks
from benchmarks.tasks.encoders.retrieval import METRICS, hit_columns, items_of
from benchmarks.tasks.encoders.retrieval import chance_ranks as guessed_ranks
from benchmarks.tasks.evaluation import MetricSpec, compute_metric
from benchmarks.tasks.mllm.task_metrics import ALWAYS_YES, TASK_METRICS
from clips.data.formats import DatasetSpec


def test_recall_by_chance_counts_images_and_all_their_captions(tmp_path):
    captions_of = [3, 1, 2, 2, 4]
    write_images(tmp_path / "images", len(captions_of))
    rows = [
        {"image": f"images/{n}.png", "captions": [f"thing {n} {k}" for k in range(count)]}
        for n, count in enumerate(captions_of)
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = load_caption_set(DatasetSpec(path=str(tmp_path / "set.jsonl")))
    texts, pictures = sum(captions_of), len(captions_of)
    vectors = torch.nn.functional.normalize(torch.randn(texts, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    items = items_of(captions, compute_ranks(vectors[:pictures], vectors, captions.pairs), with_thumbnails=False)
    baselines = {CHANCE: hit_columns(guessed_ranks(captions))}
    found = {
        name: compute_metric(items, spec, baselines=baselines).chance_levels[CHANCE] for name, spec in METRICS.items()
    }

    def missed(right: int, answers: int, k: int) -> float:
        return comb(answers - right, k) / comb(answers, k)

    for k in (1, 5):
        assert found[f"t2i_r{k}"] == pytest.approx(1 - missed(1, pictures, k))
        assert found[f"i2t_r{k}"] == pytest.approx(1 - np.mean([missed(each, texts, k) for each in captions_of]))
    assert found["mean_r1"] == pytest.approx((found["t2i_r1"] + found["i2t_r1"]) / 2)
    assert found["t2i_median_rank"] == pytest.approx((pictures + 1) / 2)


def test_chance_of_random_and_of_majority_classes():
    found: Any = SimpleNamespace(targets=np.array([2, 2, 2, 0, 1, 6]), classes=list("abcdefgh"))
    assert chance_hits(found)["acc1"] == pytest.approx([1 / 8] * 6)
    assert chance_hits(found)["acc5"] == pytest.approx([5 / 8] * 6)
    assert majority_class_hits(found)["acc1"].tolist() == [1, 1, 1, 0, 0, 0]
    assert majority_class_hits(found)["acc5"].tolist() == [1, 1, 1, 1, 1, 1]


def test_pairs_of_captions_by_chance():
    def case(images: int, captions: int, kind: str) -> SimpleNamespace:
        return SimpleNamespace(images=range(images), captions=range(captions), kind=kind)

    pairs: Any = SimpleNamespace(cases=[case(1, 2, "two"), case(1, 5, "five")])
    assert chance_columns(pairs)["score"] == pytest.approx([1 / 2, 1 / 5])
    assert chance_columns(pairs)["score_five"] == pytest.approx([np.nan, 1 / 5], nan_ok=True)
    pairs = SimpleNamespace(cases=[case(2, 2, "")])
    assert [chance_columns(pairs)[name][0] for name in ("score", "image_score", "group_score")] == pytest.approx(
        [1 / 4, 1 / 4, 1 / 6]
    )


def _measured(task: str, samples: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    reader = TASK_METRICS[task]
    items = pd.DataFrame({**reader.columns(samples, None), "category": "a"})  # type: ignore[arg-type]
    items = items.assign(item=items.index.astype(str), image=items.index.astype(str))
    baselines = reader.baselines(samples)
    every: dict[str, MetricSpec] = {**reader.metrics, **reader.extra}
    specs = {name: spec for name, spec in every.items() if set(spec.columns) <= {*items}}
    return {name: dict(compute_metric(items, specs[name], baselines=baselines).chance_levels) for name in specs}


def test_chance_of_yes_and_no_by_a_coin_and_by_always_yes():
    truth = ["yes", "yes", "yes", "no"]
    kinds = ["random", "popular", "adversarial", "adversarial"]
    samples = [
        {"pope_accuracy": {"prediction": "no", "ground_truth": each, "score": each == "no"}, "doc": {"category": kind}}
        for each, kind in zip(truth, kinds, strict=True)
    ]
    found = _measured("pope", samples)
    assert found["pope_f1_random"] == pytest.approx({CHANCE: 2 * 0.5 / (0.5 + 1), ALWAYS_YES: 1.0})
    assert found["pope_f1_adversarial"] == pytest.approx({CHANCE: 2 * 0.5 / (1 + 1), ALWAYS_YES: 2 / 3})
    assert found["pope_f1_kinds"] == pytest.approx(
        {CHANCE: (2 / 3 + 2 / 3 + 1 / 2) / 3, ALWAYS_YES: (1 + 1 + 2 / 3) / 3}
    )
    assert found["pope_accuracy"] == {CHANCE: 0.5, ALWAYS_YES: 0.75}
    assert found["pope_f1_score"] == pytest.approx({CHANCE: 2 * 1.5 / (2 + 3), ALWAYS_YES: 2 * 3 / (4 + 3)})
    assert found["pope_yes_ratio"] == found["said_yes"] == {}


def test_points_of_pairs_are_averaged_over_all_coin_tosses():
    def sample(picture: str, answer: str, right: bool) -> dict[str, Any]:
        score = {"category": "a", "question_id": picture, "score": float(right)}
        return {"doc": {"answer": answer}, "mme_perception_score": score}

    asked = [("one", "Yes"), ("one", "No"), ("two", "Yes"), ("two", "Yes"), ("alone", "No")]
    every = [
        TASK_METRICS["mme"].columns([sample(*each, right) for each, right in zip(asked, toss, strict=True)], None)  # type: ignore[arg-type]
        for toss in itertools.product((False, True), repeat=len(asked))
    ]
    expected = np.mean([columns["points"] for columns in every], axis=0)
    samples = [sample(*each, right=True) for each in asked]
    assert TASK_METRICS["mme"].baselines(samples)[CHANCE]["points"] == pytest.approx(expected, nan_ok=True)
    assert expected == pytest.approx([75, np.nan, 75, np.nan, 50], nan_ok=True)
    assert TASK_METRICS["mme"].baselines(samples)[ALWAYS_YES]["points"] == pytest.approx(
        [50, np.nan, 200, np.nan, 0], nan_ok=True
    )
    assert _measured("mme", samples)["mme_total"] == pytest.approx({CHANCE: 200 / 3, ALWAYS_YES: 250 / 3})


def _option_sample(task: str, doc: dict[str, Any]) -> dict[str, Any]:
    answer = {"pred": "A", "answer": "A"}
    return {
        "doc": doc,
        "exact_match": 1.0,
        "mmmu_acc": {
            "id": "a",
            "subdomain": "Art",
            "question_type": "multiple-choice",
            "answer": "A",
            "parsed_pred": "A",
        },
        "seed_all": answer,
        "seed_image": answer,
        "average": {"score": 1.0, "l2_category": "a"},
    }


@pytest.mark.parametrize(
    ("task", "docs", "expected"),
    [
        ("scienceqa_img", [{"choices": ["a", "b"]}, {"choices": ["a", "b", "c", "d"]}], 3 / 8),
        ("ai2d", [{"options": ["a", "b", "c", "d"]}, {"options": ["a", "b", "c"]}], 7 / 24),
        (
            "mmmu_val",
            [
                {"options": "['a', 'b', 'c', 'd']", "question_type": "multiple-choice"},
                {"options": "[]", "question_type": "open"},
            ],
            1 / 8,
        ),
        ("seedbench", [{f"choice_{letter}": "x" for letter in "abcd"}], 1 / 4),
        ("mmstar", [{}], 1 / 4),
        (
            "realworldqa",
            [
                {"question": "Which way?\n\nA. Left\nB. Straight\nC. Right\nPlease answer directly.", "answer": "A"},
                {"question": "Is there a car? Please answer directly with a single word.", "answer": "Yes"},
                {"question": "How many? Please answer directly with a single word or number.", "answer": "2"},
            ],
            (1 / 3 + 1 / 2 + 0) / 3,
        ),
    ],
)
def test_options_are_counted_question_by_question(task, docs, expected):
    found = _measured(task, [_option_sample(task, doc) for doc in docs])
    assert found[TASK_METRICS[task].primary[0]] == pytest.approx({CHANCE: expected})


def test_free_answers_have_no_chance():
    assert _measured("gqa", [{"exact_match": 1.0}])["exact_match"] == {}


def _naive(scores: np.ndarray) -> tuple[bool, bool, bool]:
    """Winoground's three scores of four numbers that all differ, as its authors define them."""
    (c0_i0, c1_i0), (c0_i1, c1_i1) = scores
    text = c0_i0 > c1_i0 and c1_i1 > c0_i1
    image = c0_i0 > c0_i1 and c1_i1 > c1_i0
    return text, image, text and image


def test_winoground_by_its_definition():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        scores = generator.normal(size=(2, 2))
        assert win_probabilities(scores) == _naive(scores)
        seen.add(win_probabilities(scores))
    assert len(seen) == 4  # none, text alone, image alone, all three


@pytest.mark.parametrize(
    "scores", [[[1, 1], [1, 1]], [[1, 0], [1, 0]], [[1, 1], [0, 1]], [[0.5, 0.5], [0, 0.5]], [[2, 1], [1, 2]]]
)
def test_ties_are_averaged_over_random_orders(scores):
    """The expected win is the mean over many tiny disturbances."""
    generator = np.random.default_rng(1)
    scores = np.array(scores, float)
    drawn = np.mean([_naive(scores + 1e-9 * generator.normal(size=(2, 2))) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(win_probabilities(scores), drawn, atol=0.03)


@pytest.mark.parametrize(
    ("scores", "wins"),
    [
        (np.ones((2, 2)), (1 / 4, 1 / 4, 1 / 6)),  # what tells nothing apart scores chance
        (np.ones((1, 2)), (1 / 2, np.nan, np.nan)),
        (np.ones((1, 5)), (1 / 5, np.nan, np.nan)),
        ([[0.3, 0.2, 0.1]], (1, np.nan, np.nan)),
        ([[0.3, 0.2, 0.4]], (0, np.nan, np.nan)),
        ([[0.3, 0.3, 0.1]], (0.5, np.nan, np.nan)),
    ],
)
def test_by_hand(scores, wins):
    assert win_probabilities(np.array(scores)) == pytest.approx(wins, nan_ok=True)
