"""Groups of questions that one point is given for: MMBench's orders of options, MME's pairs, NaturalBench's fours."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from unittest import mock

import numpy as np

from benchmarks.tasks.mllm.items import Sample

CIRCULAR = 1_000_000
"""MMBench's index of a question with its options in another order is larger by a multiple of it."""
HIT = "hit"
_NATURALBENCH_GROUP = 4  # both questions about the first image and both about the second, in the order of lmms-eval
NATURALBENCH_ENTRY = "naturalbench_G_ACC"
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
    return int(doc["index"]) % CIRCULAR


def circular_groups(samples: Sequence[Sample]) -> np.ndarray:
    """(N,) the question whose options a sample shows in one order, or NaturalBench's group; else each its own."""
    if all(NATURALBENCH_ENTRY in sample for sample in samples):
        return np.array([int(sample[NATURALBENCH_ENTRY]["id"]) // _NATURALBENCH_GROUP for sample in samples])
    entries = [sample.get("gpt_eval_score") for sample in samples]
    if not all(isinstance(entry, Mapping) and "index" in entry for entry in entries):
        return np.arange(len(samples))
    return np.array([int(entry["index"]) % CIRCULAR for entry in entries if entry])


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
        entry[HIT] = hits.get(int(entry["index"]))


def accept_some_groups(task: Any) -> None:
    """Make NaturalBench's aggregations take any number of its groups; lmms-eval's assert all 1,900."""
    for score, name in NATURALBENCH_METRICS.items():
        if name in task.aggregation():
            task.aggregation()[name] = functools.partial(_naturalbench_mean, score=score)


def _naturalbench_mean(entries: Sequence[Mapping[str, Any]], score: str) -> float:
    values = naturalbench_points(entries)[score]
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def naturalbench_points(entries: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
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
