"""The items of a task, from lmms-eval's samples: their images, and the groups of questions that one point is given for
(MMBench's orders of options, MME's pairs, NaturalBench's fours)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

import numpy as np
from PIL.Image import Image

from benchmarks.results.result_types import RAW_ANSWER
from benchmarks.tasks.evaluation import MAX_THUMBNAILS, thumbnail
from clips.data.images import to_rgb

if TYPE_CHECKING:
    import pandas as pd

Sample = Mapping[str, Any]
"""lmms-eval's log of a question: its row, the prompt and answer, and the entries of each metric."""
Item = TypeVar("Item")


def items_table(
    samples: Sequence[Sample], images: Mapping[int, Any], columns: Mapping[str, Any], score: str
) -> pd.DataFrame:
    """The items of a task, with the columns that its metrics need; ``score`` names the one with the item's score."""
    import pandas as pd

    numbers = [sample["doc_id"] for sample in samples]
    questions = [sample["doc"].get("question") for sample in samples]
    predictions = [_text(sample["filtered_resps"][0]) for sample in samples]
    answers = [sample.get(RAW_ANSWER, prediction) for sample, prediction in zip(samples, predictions, strict=True)]
    return pd.DataFrame(
        {
            "item": [str(number) for number in numbers],
            "image": [images[number].name if number in images else str(number) for number in numbers],
            "direction": "",
            "category": [_text(_category(sample["doc"])) for sample in samples],
            "question": [
                question.strip() if isinstance(question, str) else _text(sample["arguments"][0])
                for question, sample in zip(questions, samples, strict=True)
            ],
            "prediction": predictions,
            # of VQA tasks the annotators' answers, because their own target names a column
            "target": [_text(sample["doc"].get("answers") or sample["target"]) for sample in samples],
            "score": columns.get(score, np.full(len(samples), np.nan)),
            "thumbnail": [images[number].thumbnail if number in images else None for number in numbers],
            **({RAW_ANSWER: answers} if answers != predictions else {}),
            **columns,
        }
    )


def _category(doc: Mapping[str, Any]) -> Any:
    types = doc.get("types")
    if isinstance(types, Mapping) and types.get("structural"):  # GQA has several types of types
        return types["structural"]
    names = ("category", "question_type", "type", "capability", "data_type")
    return next((doc[name] for name in names if doc.get(name) is not None), "")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " | ".join(dict.fromkeys(map(_text, value)))
    return value.strip() if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class QuestionImage:
    """The record of a question's first image."""

    name: str  # hash of its pixels; questions about the same image share it
    # a small JPEG, only for the first question about the image, and for at most ``MAX_THUMBNAILS`` images
    thumbnail: bytes | None


def image_hash_name(image: Image) -> str:
    """A name derived from an image's decoded pixels."""
    rgb = to_rgb(image)  # bytes of a palette do not determine colors
    content = hashlib.sha256(f"{rgb.mode}{rgb.size}".encode())
    content.update(rgb.tobytes())
    return content.hexdigest()[:16]


def record_image(name: str, image: Image, recorded: set[str]) -> QuestionImage:
    """The record of an image; its name is added to ``recorded``, the images that have a thumbnail already."""
    is_new = name not in recorded and len(recorded) < MAX_THUMBNAILS
    recorded.add(name)
    return QuestionImage(name, thumbnail(image) if is_new else None)


def question_images(model: Any, task: Any, numbers: Sequence[int]) -> Mapping[int, QuestionImage]:
    """Question index → its first image, as recorded by this suite's model, or read again if answers were cached."""
    images = {number: image for (_, number), image in getattr(model, "images", {}).items()}
    if images.keys() >= set(numbers):
        return images
    images, recorded = {}, set[str]()
    for number in numbers:
        visuals = task.doc_to_visual(task.eval_docs[number]) or []
        first = next((visual for visual in visuals if isinstance(visual, Image)), None)
        if first is not None:
            images[number] = record_image(image_hash_name(first), first, recorded)
    return images


# Groups of questions

CIRCULAR = 1_000_000  # MMBench's index of a question with its options in another order is larger by a multiple of it
HIT = "hit"
NATURALBENCH_ENTRY = "naturalbench_G_ACC"
NATURALBENCH_METRICS = {"G_Acc": "naturalbench_G_ACC", "Q_Acc": "naturalbench_Q_ACC", "I_Acc": "naturalbench_I_ACC"}
"""Score of lmms-eval's ``get_scores`` → metric; its process_results misspells that of the fourth, ``Acc``."""
_NATURALBENCH_GROUP = 4  # both questions about the first image and both about the second, in the order of lmms-eval
_GROUPS: Mapping[str, Callable[[Mapping[str, Any]], Hashable]] = {
    "mme": lambda doc: (doc["category"], doc["question_id"]),
    "hallusion_bench": lambda doc: (doc["category"], doc["subcategory"], doc["set_id"]),
    "mmvp": lambda doc: (int(doc["Index"]) - 1) // 2,
    "naturalbench": lambda doc: int(doc["Index"]) // _NATURALBENCH_GROUP,
    "3dsrbench": lambda doc: str(doc.get("qid", doc["index"]))[:8],
}
"""Directory of lmms-eval's tasks → the group of questions that a point is given for; MMBench's is its index's."""


def in_whole_groups(items: Mapping[int, Item], docs: Sequence[Mapping[str, Any]], folder: str) -> dict[int, Item]:
    """The entries by question whose group of orders (MMBench), of pairs (MME) or of variants has an entry for each.

    lmms-eval scores a group by the members that it is given: MMBench's circular accuracy, of the first orders alone,
    would be the easier accuracy in one pass.
    """
    groups: list[Hashable]
    if folder in _GROUPS:
        groups = [_GROUPS[folder](doc) for doc in docs]
    else:
        indices = [doc.get("index") for doc in docs]
        # indices that repeat are of something else: images, or rows of each category
        if not all(isinstance(index, int) for index in indices) or len({*indices}) < len(docs):
            return dict(items)
        groups = [int(doc["index"]) % CIRCULAR for doc in docs]
    broken = {groups[number] for number in range(len(docs)) if number not in items}
    return {number: each for number, each in items.items() if groups[number] not in broken}


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


def accept_some_groups(task: Any) -> None:
    """Make NaturalBench's aggregations take any number of its groups; lmms-eval's assert all 1,900."""

    def mean(entries: Sequence[Mapping[str, Any]], score: str) -> float:
        values = naturalbench_points(entries)[score]
        return float("nan") if np.isnan(values).all() else float(np.nanmean(values))

    for score, name in NATURALBENCH_METRICS.items():
        if name in task.aggregation():
            task.aggregation()[name] = functools.partial(mean, score=score)


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
