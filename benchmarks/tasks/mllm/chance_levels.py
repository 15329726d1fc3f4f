"""Item columns of the trivial baselines, which ignore the image.

``chance`` selects an option uniformly; without options no guess is right. ``always yes`` answers yes. Tasks with
free-form answers have neither.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from benchmarks.results.results import CHANCE
from benchmarks.tasks.evaluation import ChanceLevels
from benchmarks.tasks.mllm.items import Sample

ALWAYS_YES = "always yes"
POPE_KINDS = ("random", "popular", "adversarial")
"""POPE's sampling strategies of the absent objects."""
_LETTERS = "abcd"
_OPTION_LINE = re.compile(r"^[A-Z]\. ", re.MULTILINE)


def no_chance_level(samples: Sequence[Sample]) -> ChanceLevels:
    """Free-form answers have no chance level."""
    return {}


def right_answers(samples: Sequence[Sample], right: np.ndarray) -> Mapping[str, Any]:
    """The item columns of a task without further ones: the (N,) right answers."""
    return {"correct": right}


def chance_over_options(
    count: Callable[[Mapping[str, Any]], int],
    columns: Callable[[Sequence[Sample], np.ndarray], Mapping[str, Any]] = right_answers,
) -> Callable[[Sequence[Sample]], ChanceLevels]:
    """Uniform guesses among the options of each question.

    Args:
        count: a question of the dataset → its number of options; 0 if it has none.
        columns: samples and (N,) right answers → the task's item columns.
    """

    def baseline(samples: Sequence[Sample]) -> ChanceLevels:
        options = np.array([count(sample["doc"]) for sample in samples], float)
        right = np.divide(1.0, options, out=np.zeros(len(options)), where=options > 0)
        return {CHANCE: columns(samples, right)}

    return baseline


def count_listed_options(column: str) -> Callable[[Mapping[str, Any]], int]:
    """The number of options that a question lists in a column."""
    return lambda doc: len(doc[column])


def count_mmmu_options(doc: Mapping[str, Any]) -> int:
    """MMMU lists its options as text; open questions have none."""
    return len(ast.literal_eval(doc["options"])) if doc["question_type"] == "multiple-choice" else 0


def count_seedbench_options(doc: Mapping[str, Any]) -> int:
    """SEED-Bench's options are columns of their own."""
    return sum(bool(doc[f"choice_{letter}"]) for letter in _LETTERS)


def count_mmstar_options(doc: Mapping[str, Any]) -> int:
    """MMStar's options are in the question's text; its scorer looks for A, B, C or D."""
    return len(_LETTERS)


def count_realworldqa_options(doc: Mapping[str, Any]) -> int:
    """RealWorldQA's options are lines of the question's text; without any, yes and no, or none for open answers."""
    lettered = len(_OPTION_LINE.findall(str(doc["question"])))
    return lettered or 2 * (str(doc["answer"]).strip().lower() in {"yes", "no"})


def split_columns(name: str, values: np.ndarray, kinds: np.ndarray, known: Sequence[str]) -> dict[str, np.ndarray]:
    """``<name>_<kind>``: (N,) values of the questions of each known kind that the data have, NaN outside it."""
    return {f"{name}_{kind}": np.where(kinds == kind, values, np.nan) for kind in known if kind in kinds}


def pope_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Random yes or no, and always yes."""
    is_yes = np.array([sample["pope_accuracy"]["ground_truth"] == "yes" for sample in samples], float)
    coin, ones = np.full(len(is_yes), 0.5), np.ones(len(is_yes))
    return {
        CHANCE: {"correct": coin, "said_yes": coin, "hit_yes": coin * is_yes, **pope_kinds(samples, said_yes=coin)},
        ALWAYS_YES: {"correct": is_yes, "said_yes": ones, "hit_yes": is_yes, **pope_kinds(samples, said_yes=ones)},
    }


def pope_kinds(samples: Sequence[Sample], **columns: np.ndarray) -> dict[str, np.ndarray]:
    """Columns per POPE category, NaN outside it, and ``kind`` if the data have all three."""
    kinds = np.array([str(sample.get("doc", {}).get("category")) for sample in samples])
    parts: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        parts |= split_columns(name, values, kinds, POPE_KINDS)
    return parts | ({"kind": kinds.astype(object)} if set(kinds) == set(POPE_KINDS) else {})


def mme_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Random yes or no, and always yes."""
    is_yes = np.array([str(sample["doc"]["answer"]).strip().lower() == "yes" for sample in samples], float)
    return {CHANCE: mme_columns(samples, np.full(len(samples), 0.5)), ALWAYS_YES: mme_columns(samples, is_yes)}


def mme_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, np.ndarray]:
    """MME's item columns; a pair's points (accuracy plus 100 for two right answers) are at its first question.

    Args:
        right: (N,) probability that the answer is right; 0 or 1 if it is known.
    """
    columns = {name: np.full(len(samples), np.nan) for name in ("perception", "cognition")}
    pairs: dict[tuple[str, Any], list[int]] = {}
    for index, sample in enumerate(samples):
        answer = mme_answer(sample)
        pairs.setdefault((answer["category"], answer["question_id"]), []).append(index)
    for members in pairs.values():
        part = "perception" if "mme_perception_score" in samples[members[0]] else "cognition"
        # probabilities of 0, 1, 2, … right answers
        num_right = reduce(np.convolve, ([1 - each, each] for each in right[members]), np.ones(1))
        both = num_right[2] if len(num_right) > 2 else 0.0
        columns[part][members[0]] = 100.0 * right[members].mean() + 100.0 * both
    return columns | {"correct": right, "points": np.fmax(columns["perception"], columns["cognition"])}


def mme_answer(sample: Sample) -> Mapping[str, Any]:
    """The entry that lmms-eval logs for an answer, for either part."""
    return sample.get("mme_perception_score") or sample["mme_cognition_score"]
