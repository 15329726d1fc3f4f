"""Item columns of tasks whose metrics cover parts of the questions: orders, subjects, kinds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from benchmarks.results.results import CHANCE
from benchmarks.tasks.evaluation import ChanceLevels
from benchmarks.tasks.mllm.chance_levels import split_columns
from benchmarks.tasks.mllm.items import Sample

MMMU_DISCIPLINES: Mapping[str, tuple[str, ...]] = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
MMMU_SUBJECTS = tuple(subject for subjects in MMMU_DISCIPLINES.values() for subject in subjects)
_CIRCULAR = 1_000_000  # MMBench's index of a question with its options in another order is larger by a multiple of it
_MMBENCH_LETTERS = "ABCD"
_HIT = "hit"
_NATURALBENCH_GROUP = 4  # both questions about the first image and both about the second, in the order of lmms-eval
_NATURALBENCH_ENTRY = "naturalbench_G_ACC"
NATURALBENCH_METRICS = {"G_Acc": "naturalbench_G_ACC", "Q_Acc": "naturalbench_Q_ACC", "I_Acc": "naturalbench_I_ACC"}
"""Score of lmms-eval's ``get_scores`` → metric; its process_results misspells that of the fourth, ``Acc``."""
_GROUPS: Mapping[str, Callable[[Mapping[str, Any]], Hashable]] = {
    "mme": lambda doc: (doc["category"], doc["question_id"]),
    "hallusion_bench": lambda doc: (doc["category"], doc["subcategory"], doc["set_id"]),
    "mmvp": lambda doc: (int(doc["Index"]) - 1) // 2,
    "naturalbench": lambda doc: int(doc["Index"]) // _NATURALBENCH_GROUP,
    "3dsrbench": lambda doc: str(doc.get("qid", doc["index"]))[:8],
}
"""Directory of lmms-eval's tasks → the group of questions that a point is given for; MMBench's is its index's."""
Item = TypeVar("Item")


def in_whole_groups(found: Mapping[int, Item], docs: Sequence[Mapping[str, Any]], folder: str) -> dict[int, Item]:
    """The entries by question whose group of orders (MMBench), of pairs (MME) or of variants has an entry for each.

    lmms-eval scores a group by the members that it is given: MMBench's circular accuracy, of the first orders alone,
    would be the easier accuracy in one pass.
    """
    group = _GROUPS.get(folder)
    if group is None:
        indices = [doc.get("index") for doc in docs]
        # indices that repeat are of something else: images, or rows of each category
        if not all(isinstance(index, int) for index in indices) or len({*indices}) < len(docs):
            return dict(found)
        group = _circular_group
    groups = [group(doc) for doc in docs]
    broken = {groups[number] for number in range(len(docs)) if number not in found}
    return {number: each for number, each in found.items() if groups[number] not in broken}


def _circular_group(doc: Mapping[str, Any]) -> int:
    return int(doc["index"]) % _CIRCULAR


def mmmu_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    """MMMU's columns: over all questions, and per subject with NaN outside it; the category is the discipline."""
    subjects = np.array([sample["mmmu_acc"]["subdomain"] for sample in samples])
    disciplines = {subject: name for name, members in MMMU_DISCIPLINES.items() for subject in members}
    return {
        "correct": right,
        "category": np.array([disciplines.get(subject, "") for subject in subjects], object),
        **split_columns("correct", right, subjects, MMMU_SUBJECTS),
    }


def cv_bench_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    """CV-Bench's columns: 2D and 3D questions with NaN outside, and the dataset of the image."""
    answers = [sample["cv_bench_acc"] for sample in samples]
    return {
        "correct": right,
        "source": np.array([answer["source"] for answer in answers]),
        "category": np.array([answer["task"] for answer in answers], object),
        **split_columns("correct", right, np.array([answer["type"].lower() for answer in answers]), ("2d", "3d")),
    }


def seed_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    """SEED-Bench's columns: over all questions, and of images and of videos with NaN outside."""
    columns = {"correct": right}
    for kind in ("image", "video"):
        columns[f"on_{kind}s"] = np.where([f"seed_{kind}" in sample for sample in samples], right, np.nan)
    return columns


@contextlib.contextmanager
def circular_hits(task: str) -> Iterator[dict[int, int]]:
    """Record MMBench's verdicts while its scorer runs: question → 1 if it is right with its options in every order."""
    hits: dict[int, int] = {}
    if not task.startswith("mmbench"):
        yield hits
        return
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    evaluate = MMBench_Evaluator.eval_sub_data

    def eval_sub_data(self: Any, sub_data: Any, answer_map: Any, **settings: Any) -> int:
        hit: int = evaluate(self, sub_data, answer_map, **settings)
        hits[int(sub_data["index"].min())] = hit
        return hit

    with mock.patch.object(MMBench_Evaluator, "eval_sub_data", eval_sub_data):
        yield hits


def add_circular_hits(samples: Sequence[Any], hits: Mapping[int, int]) -> None:
    """Store the recorded verdicts in lmms-eval's samples, at the question's first order."""
    for sample in samples if hits else ():
        entry = sample["gpt_eval_score"]
        entry[_HIT] = hits.get(int(entry["index"]))


def mmbench_columns(samples: Sequence[Sample]) -> dict[str, Any]:
    """Points of 100 of each question at its first order; NaN at the others."""
    hits = [sample["gpt_eval_score"].get(_HIT) for sample in samples]
    return {"points": np.array([np.nan if hit is None else 100.0 * hit for hit in hits])}


def accept_some_groups(task: Any) -> None:
    """Make NaturalBench's aggregations take any number of its groups; lmms-eval's assert all 1,900."""
    for score, name in NATURALBENCH_METRICS.items():
        if name in task.aggregation():
            task.aggregation()[name] = functools.partial(_naturalbench_mean, score=score)


def _naturalbench_mean(entries: Sequence[Mapping[str, Any]], score: str) -> float:
    values = _naturalbench_points(entries)[score]
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def _naturalbench_points(entries: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """lmms-eval's scores of each group alone, at its first question; NaN at the others and for incomplete groups."""
    from lmms_eval.tasks.naturalbench.utils import get_scores

    points = {name: np.full(len(entries), np.nan) for name in (*NATURALBENCH_METRICS, "Acc")}
    places = {int(entry["id"]): place for place, entry in enumerate(entries)}
    for first in places:
        group = [places.get(first + number) for number in range(_NATURALBENCH_GROUP)]
        if first % _NATURALBENCH_GROUP == 0 and None not in group:
            scores = get_scores([[entries[place]["score"] for place in group if place is not None]])
            for name, values in points.items():
                values[places[first]] = scores[name]
    return points


def naturalbench_columns(samples: Sequence[Sample]) -> dict[str, Any]:
    """The scores of each group at its first question; NaN at the others."""
    return _naturalbench_points([sample[_NATURALBENCH_ENTRY] for sample in samples])


def circular_groups(samples: Sequence[Sample]) -> np.ndarray:
    """(N,) the question whose options a sample shows in one order, or NaturalBench's group; else each its own."""
    if all(_NATURALBENCH_ENTRY in sample for sample in samples):
        return np.array([int(sample[_NATURALBENCH_ENTRY]["id"]) // _NATURALBENCH_GROUP for sample in samples])
    entries = [sample.get("gpt_eval_score") for sample in samples]
    if not all(isinstance(entry, Mapping) and "index" in entry for entry in entries):
        return np.arange(len(samples))
    return np.array([int(entry["index"]) % _CIRCULAR for entry in entries if entry])


def mmbench_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Uniform guesses, independent in every order, which must all be right."""
    indices = np.array([int(sample["gpt_eval_score"]["index"]) for sample in samples])
    options = [
        sum(str(sample["doc"].get(letter) or "nan") != "nan" for letter in _MMBENCH_LETTERS) for sample in samples
    ]  # a missing option is "nan" in the data
    all_right: dict[int, float] = {}
    for index, count in zip(indices % _CIRCULAR, options, strict=True):
        all_right[index] = all_right.get(index, 100.0) / max(1, count)
    points = [all_right[index] if index < _CIRCULAR else np.nan for index in indices]
    return {CHANCE: {"points": np.array(points)}}
