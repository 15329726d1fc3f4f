"""The item columns of each task, from lmms-eval's samples, and those of the trivial baselines, which ignore the image.

``chance`` selects an option uniformly; without options no guess is right. ``always yes`` answers yes. Tasks with
free-form answers have neither. Where a function takes ``right``, these are (N,) right answers, or their probabilities.
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
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores
from benchmarks.tasks.mllm.items import Sample
from benchmarks.tasks.mllm.question_groups import CIRCULAR, HIT, NATURALBENCH_ENTRY, naturalbench_points

ALWAYS_YES = "always yes"
POPE_KINDS = ("random", "popular", "adversarial")
"""POPE's sampling strategies of the absent objects."""
_LETTERS = "abcd"
_OPTION_LINE = re.compile(r"^[A-Z]\. ", re.MULTILINE)
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
LLAVA_BENCH = {"all": "relative score", "conv": "conversation", "detail": "description", "complex": "reasoning"}
BLEU_ORDERS = (1, 2, 3, 4)


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


def split_columns(name: str, values: np.ndarray, kinds: np.ndarray, known: Sequence[str]) -> dict[str, np.ndarray]:
    """``<name>_<kind>``: (N,) values of the questions of each known kind that the data have, NaN outside it."""
    return {f"{name}_{kind}": np.where(kinds == kind, values, np.nan) for kind in known if kind in kinds}


def number(value: Any) -> float:
    """A sample's entry of a metric as a number; NaN if it is none."""
    if isinstance(value, Mapping):
        value = value.get("score")
    return float(value) if isinstance(value, bool | int | float) else np.nan


def right_of(metric: str) -> Callable[[Sequence[Sample], ImageCaptionScores], Mapping[str, Any]]:
    """The column ``correct`` from the samples' numbers of a metric."""
    return lambda samples, _: {"correct": np.array([number(sample[metric]) for sample in samples])}


def numbers(*names: str) -> Callable[[Sequence[Sample], ImageCaptionScores], Mapping[str, Any]]:
    """Columns of the samples' own numbers; NaN for questions that do not enter a metric."""
    return lambda samples, _: {name: np.array([number(sample.get(name)) for sample in samples]) for name in names}


def pope(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """POPE's columns: answers, and those of each kind of absent objects."""
    answers = [sample["pope_accuracy"] for sample in samples]
    predicted = np.array([answer["prediction"] == "yes" for answer in answers], float)
    actual = np.array([answer["ground_truth"] == "yes" for answer in answers], float)
    return {
        "correct": np.array([answer["score"] for answer in answers], float),
        "said_yes": predicted,
        "is_yes": actual,
        "hit_yes": predicted * actual,
        **pope_kinds(samples, said_yes=predicted, is_yes=actual),
    }


def pope_kinds(samples: Sequence[Sample], **columns: np.ndarray) -> dict[str, np.ndarray]:
    """Columns per POPE category, NaN outside it, and ``kind`` if the data have all three."""
    kinds = np.array([str(sample.get("doc", {}).get("category")) for sample in samples])
    parts: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        parts |= split_columns(name, values, kinds, POPE_KINDS)
    return parts | ({"kind": kinds.astype(object)} if set(kinds) == set(POPE_KINDS) else {})


def pope_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Random yes or no, and always yes."""
    is_yes = np.array([sample["pope_accuracy"]["ground_truth"] == "yes" for sample in samples], float)
    coin, ones = np.full(len(is_yes), 0.5), np.ones(len(is_yes))
    return {
        CHANCE: {"correct": coin, "said_yes": coin, "hit_yes": coin * is_yes, **pope_kinds(samples, said_yes=coin)},
        ALWAYS_YES: {"correct": is_yes, "said_yes": ones, "hit_yes": is_yes, **pope_kinds(samples, said_yes=ones)},
    }


def mme(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """MME's columns, from lmms-eval's verdicts."""
    return mme_columns(samples, np.array([mme_answer(sample)["score"] for sample in samples], float))


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


def mme_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Random yes or no, and always yes."""
    is_yes = np.array([str(sample["doc"]["answer"]).strip().lower() == "yes" for sample in samples], float)
    return {CHANCE: mme_columns(samples, np.full(len(samples), 0.5)), ALWAYS_YES: mme_columns(samples, is_yes)}


def mmmu(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """MMMU's columns, from the verdicts of its scorer."""
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    right = [evaluate_mmmu([sample["mmmu_acc"]])[1]["acc"] for sample in samples]
    return mmmu_columns(samples, np.array(right, float))


def mmmu_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    """MMMU's columns: over all questions, and per subject with NaN outside it; the category is the discipline."""
    subjects = np.array([sample["mmmu_acc"]["subdomain"] for sample in samples])
    disciplines = {subject: name for name, members in MMMU_DISCIPLINES.items() for subject in members}
    return {
        "correct": right,
        "category": np.array([disciplines.get(subject, "") for subject in subjects], object),
        **split_columns("correct", right, subjects, MMMU_SUBJECTS),
    }


def count_mmmu_options(doc: Mapping[str, Any]) -> int:
    """MMMU lists its options as text; open questions have none."""
    return len(ast.literal_eval(doc["options"])) if doc["question_type"] == "multiple-choice" else 0


def cv_bench(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """CV-Bench's columns, from lmms-eval's verdicts."""
    right = np.array([sample["cv_bench_acc"]["is_correct"] for sample in samples], float)
    return cv_bench_columns(samples, right)


def cv_bench_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    """CV-Bench's columns: 2D and 3D questions with NaN outside, and the dataset of the image."""
    answers = [sample["cv_bench_acc"] for sample in samples]
    return {
        "correct": right,
        "source": np.array([answer["source"] for answer in answers]),
        "category": np.array([answer["task"] for answer in answers], object),
        **split_columns("correct", right, np.array([answer["type"].lower() for answer in answers]), ("2d", "3d")),
    }


def seed(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """SEED-Bench's columns."""
    answers = [sample["seed_all"] for sample in samples]
    right = [answer["pred"].lower().strip() == answer["answer"].lower().strip() for answer in answers]
    return seed_columns(samples, np.array(right, float))


def seed_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    """SEED-Bench's columns: over all questions, and of images and of videos with NaN outside."""
    columns = {"correct": right}
    for kind in ("image", "video"):
        columns[f"on_{kind}s"] = np.where([f"seed_{kind}" in sample for sample in samples], right, np.nan)
    return columns


def count_seedbench_options(doc: Mapping[str, Any]) -> int:
    """SEED-Bench's options are columns of their own."""
    return sum(bool(doc[f"choice_{letter}"]) for letter in _LETTERS)


def mmstar(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """MMStar's columns: right answers and their ability."""
    return {
        "correct": np.array([sample["average"]["score"] for sample in samples], float),
        "ability": np.array([sample["average"]["l2_category"] for sample in samples]),
    }


def count_mmstar_options(doc: Mapping[str, Any]) -> int:
    """MMStar's options are in the question's text; its scorer looks for A, B, C or D."""
    return len(_LETTERS)


def count_realworldqa_options(doc: Mapping[str, Any]) -> int:
    """RealWorldQA's options are lines of the question's text; without any, yes and no, or none for open answers."""
    lettered = len(_OPTION_LINE.findall(str(doc["question"])))
    return lettered or 2 * (str(doc["answer"]).strip().lower() in {"yes", "no"})


def mmbench(samples: Sequence[Sample], _: ImageCaptionScores) -> dict[str, Any]:
    """Points of 100 of each question at its first order; NaN at the others."""
    hits = [sample["gpt_eval_score"].get(HIT) for sample in samples]
    return {"points": np.array([np.nan if hit is None else 100.0 * hit for hit in hits])}


def mmbench_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Uniform guesses, independent in every order, which must all be right."""
    indices = np.array([int(sample["gpt_eval_score"]["index"]) for sample in samples])
    options = [
        sum(str(sample["doc"].get(letter) or "nan") != "nan" for letter in "ABCD") for sample in samples
    ]  # a missing option is "nan" in the data
    all_right: dict[int, float] = {}
    for index, count in zip(indices % CIRCULAR, options, strict=True):
        all_right[index] = all_right.get(index, 100.0) / max(1, count)
    points = [all_right[index] if index < CIRCULAR else np.nan for index in indices]
    return {CHANCE: {"points": np.array(points)}}


def naturalbench(samples: Sequence[Sample], _: ImageCaptionScores) -> dict[str, Any]:
    """The scores of each group at its first question; NaN at the others."""
    return naturalbench_points([sample[NATURALBENCH_ENTRY] for sample in samples])


def mmvet(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """MM-Vet's grades, as points of 100."""
    return {"points": np.array([100.0 * sample["gpt_eval_score"]["score"] for sample in samples])}


def llava_bench(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """The judge's grades from 1 to 10 of the reference answer and, times 100, of the model's; 0 outside a category."""
    grades = np.array([sample["gpt_eval_llava_all"]["scores"] for sample in samples], float)
    columns: dict[str, Any] = {}
    for kind in LLAVA_BENCH:
        of_kind = [kind == "all" or sample["doc"]["category"] == kind for sample in samples]
        columns[f"reference_{kind}"] = np.where(of_kind, grades[:, 0], 0.0)
        columns[f"points_{kind}"] = np.where(of_kind, 100.0 * grades[:, 1], 0.0)
    return columns


def captions(samples: Sequence[Sample], scores: ImageCaptionScores) -> Mapping[str, Any]:
    """The columns of caption metrics, of the images of the samples."""
    return caption_columns([int(sample["doc"]["image_id"]) for sample in samples], scores)


def caption_columns(ids: Sequence[int], scores: ImageCaptionScores) -> Mapping[str, Any]:
    """The item columns of `caption_metrics` for the images ``ids``."""
    counts = np.array([scores.bleu[index] for index in ids], float)
    names = [f"bleu_{what}{n}" for what in ("matched", "possible") for n in BLEU_ORDERS] + [
        "length",
        "reference_length",
    ]
    return {
        "cider": np.array([scores.cider[index] for index in ids]),
        "rouge": np.array([scores.rouge[index] for index in ids]),
        **dict(zip(names, counts.T, strict=True)),
    }
