"""The metrics of each task: their item columns from lmms-eval's samples, and those of answers that ignore the image.

``TASK_METRICS`` lists tasks with their own columns; of any other task a metric is the mean of its per-sample numbers if
that equals lmms-eval's value. (N,) ``right`` are right answers, or for `CHANCE` their probabilities.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from benchmarks.results.results import CHANCE
from benchmarks.tasks.evaluation import ChanceLevels, MetricSpec
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores
from benchmarks.tasks.mllm.items import (
    CIRCULAR,
    HIT,
    NATURALBENCH_ENTRY,
    NATURALBENCH_METRICS,
    Sample,
    naturalbench_points,
)

Columns = Callable[[Sequence[Sample], ImageCaptionScores], Mapping[str, Any]]
RightColumns = Callable[[Sequence[Sample], np.ndarray], Mapping[str, Any]]
Baselines = Callable[[Sequence[Sample]], ChanceLevels]

ALWAYS_YES = "always yes"
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
_DISCIPLINE_OF = {subject: name for name, subjects in MMMU_DISCIPLINES.items() for subject in subjects}
_POPE_KINDS = ("random", "popular", "adversarial")  # how the absent objects are chosen
_LLAVA_BENCH = {"all": "relative score", "conv": "conversation", "detail": "description", "complex": "reasoning"}
_BLEU_ORDERS = (1, 2, 3, 4)


def _no_chance(samples: Sequence[Sample]) -> ChanceLevels:
    return {}


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """The definition of a task's metrics."""

    columns: Columns  # (samples, per-image caption scores) → column → (N,) values
    metrics: Mapping[str, MetricSpec]  # lmms-eval's metric name → spec
    primary: tuple[str, ...]  # for the main table
    score: str  # the column with each item's contribution to the first primary metric
    # metrics in addition to lmms-eval's, computed from the items alone; absent if their columns are
    extra: Mapping[str, MetricSpec] = field(default_factory=dict)
    baselines: Baselines = _no_chance  # samples → the columns of the trivial baselines; free-form answers have none


def _number(value: Any) -> float:
    """A sample's entry of a metric; NaN if it is no number."""
    if isinstance(value, Mapping):
        value = value.get("score")
    return float(value) if isinstance(value, bool | int | float) else np.nan


def _only_right(samples: Sequence[Sample], right: np.ndarray) -> Mapping[str, Any]:
    return {"correct": right}


def _graded(right: Callable[[Sample], Any], columns: RightColumns = _only_right) -> Columns:
    return lambda samples, _: columns(samples, np.array([right(sample) for sample in samples], float))


def _numbers(*names: str) -> Columns:
    # a question that does not enter a metric lacks its number
    return lambda samples, _: {name: np.array([_number(sample.get(name)) for sample in samples]) for name in names}


def _split(name: str, values: np.ndarray, kinds: np.ndarray, known: Sequence[str]) -> dict[str, np.ndarray]:
    """``<name>_<kind>``: (N,) values of the questions of each known kind that the data have, NaN outside it."""
    return {f"{name}_{kind}": np.where(kinds == kind, values, np.nan) for kind in known if kind in kinds}


def _chance_over_options(count: Callable[[Mapping[str, Any]], int], columns: RightColumns = _only_right) -> Baselines:
    """Uniform guesses among the options of each question, ``count`` of its row; none is right among 0 options."""

    def baseline(samples: Sequence[Sample]) -> ChanceLevels:
        options = np.array([count(sample["doc"]) for sample in samples], float)
        right = np.divide(1.0, options, out=np.zeros(len(options)), where=options > 0)
        return {CHANCE: columns(samples, right)}

    return baseline


def _pope(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    answers = [sample["pope_accuracy"] for sample in samples]
    said_yes = np.array([answer["prediction"] == "yes" for answer in answers], float)
    is_yes = np.array([answer["ground_truth"] == "yes" for answer in answers], float)
    return {
        "correct": np.array([answer["score"] for answer in answers], float),
        "said_yes": said_yes,
        "is_yes": is_yes,
        "hit_yes": said_yes * is_yes,
        **_pope_kinds(samples, said_yes=said_yes, is_yes=is_yes),
    }


def _pope_kinds(samples: Sequence[Sample], **columns: np.ndarray) -> dict[str, np.ndarray]:
    kinds = np.array([str(sample.get("doc", {}).get("category")) for sample in samples])
    parts: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        parts |= _split(name, values, kinds, _POPE_KINDS)
    # the mean of three kinds needs all three
    return parts | ({"kind": kinds.astype(object)} if set(kinds) == set(_POPE_KINDS) else {})


def _pope_chance(samples: Sequence[Sample]) -> ChanceLevels:
    is_yes = np.array([sample["pope_accuracy"]["ground_truth"] == "yes" for sample in samples], float)
    coin, ones = np.full(len(is_yes), 0.5), np.ones(len(is_yes))
    return {
        CHANCE: {"correct": coin, "said_yes": coin, "hit_yes": coin * is_yes, **_pope_kinds(samples, said_yes=coin)},
        ALWAYS_YES: {"correct": is_yes, "said_yes": ones, "hit_yes": is_yes, **_pope_kinds(samples, said_yes=ones)},
    }


def _mme_answer(sample: Sample) -> Mapping[str, Any]:
    return sample.get("mme_perception_score") or sample["mme_cognition_score"]


def mme_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, np.ndarray]:
    """MME's item columns; a pair's points (accuracy plus 100 for two right answers) are at its first question.

    Args:
        right: (N,) probability that the answer is right; 0 or 1 if it is known.
    """
    columns = {name: np.full(len(samples), np.nan) for name in ("perception", "cognition")}
    pairs: dict[tuple[str, Any], list[int]] = {}
    for index, sample in enumerate(samples):
        answer = _mme_answer(sample)
        pairs.setdefault((answer["category"], answer["question_id"]), []).append(index)
    for members in pairs.values():
        part = "perception" if "mme_perception_score" in samples[members[0]] else "cognition"
        # probabilities of 0, 1, 2, … right answers
        num_right = reduce(np.convolve, ([1 - each, each] for each in right[members]), np.ones(1))
        both = num_right[2] if len(num_right) > 2 else 0.0
        columns[part][members[0]] = 100.0 * right[members].mean() + 100.0 * both
    return columns | {"correct": right, "points": np.fmax(columns["perception"], columns["cognition"])}


def _mme_chance(samples: Sequence[Sample]) -> ChanceLevels:
    is_yes = np.array([str(sample["doc"]["answer"]).strip().lower() == "yes" for sample in samples], float)
    return {CHANCE: mme_columns(samples, np.full(len(samples), 0.5)), ALWAYS_YES: mme_columns(samples, is_yes)}


def _mmmu_right(sample: Sample) -> float:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    return float(evaluate_mmmu([sample["mmmu_acc"]])[1]["acc"])


def _mmmu_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    subjects = np.array([sample["mmmu_acc"]["subdomain"] for sample in samples])
    disciplines = np.array([_DISCIPLINE_OF.get(subject, "") for subject in subjects], object)
    return {"correct": right, "category": disciplines, **_split("correct", right, subjects, [*_DISCIPLINE_OF])}


def _cv_bench_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    answers = [sample["cv_bench_acc"] for sample in samples]
    return {
        "correct": right,
        "source": np.array([answer["source"] for answer in answers]),
        "category": np.array([answer["task"] for answer in answers], object),
        **_split("correct", right, np.array([answer["type"].lower() for answer in answers]), ("2d", "3d")),
    }


def _seed_right(sample: Sample) -> bool:
    return sample["seed_all"]["pred"].lower().strip() == sample["seed_all"]["answer"].lower().strip()


def _seed_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, Any]:
    of = {kind: [f"seed_{kind}" in sample for sample in samples] for kind in ("image", "video")}
    return {"correct": right, **{f"on_{kind}s": np.where(each, right, np.nan) for kind, each in of.items()}}


def _count_realworldqa_options(doc: Mapping[str, Any]) -> int:
    # options are lines of the question's text; without any it is about yes and no, or open
    lettered = len(re.findall(r"^[A-Z]\. ", str(doc["question"]), re.MULTILINE))
    return lettered or 2 * (str(doc["answer"]).strip().lower() in {"yes", "no"})


def _mmbench(samples: Sequence[Sample], _: ImageCaptionScores) -> dict[str, Any]:
    hits = [sample["gpt_eval_score"].get(HIT) for sample in samples]  # at a question's first order
    return {"points": np.array([np.nan if hit is None else 100.0 * hit for hit in hits])}


def _mmbench_chance(samples: Sequence[Sample]) -> ChanceLevels:
    """Uniform guesses, independent in every order, which must all be right."""
    indices = np.array([int(sample["gpt_eval_score"]["index"]) for sample in samples])
    # a missing option is "nan" in the data
    options = [sum(str(sample["doc"].get(letter) or "nan") != "nan" for letter in "ABCD") for sample in samples]
    all_right: dict[int, float] = {}
    for index, count in zip(indices % CIRCULAR, options, strict=True):
        all_right[index] = all_right.get(index, 100.0) / max(1, count)
    points = [all_right[index] if index < CIRCULAR else np.nan for index in indices]
    return {CHANCE: {"points": np.array(points)}}


def _llava_bench(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """The judge's grades from 1 to 10 of the reference answer and, times 100, of the model's; 0 outside a category."""
    grades = np.array([sample["gpt_eval_llava_all"]["scores"] for sample in samples], float)
    columns: dict[str, Any] = {}
    for kind in _LLAVA_BENCH:
        of_kind = [kind == "all" or sample["doc"]["category"] == kind for sample in samples]
        columns[f"reference_{kind}"] = np.where(of_kind, grades[:, 0], 0.0)
        columns[f"points_{kind}"] = np.where(of_kind, 100.0 * grades[:, 1], 0.0)
    return columns


def bleu_columns(n: int) -> tuple[str, ...]:
    """The item columns of which BLEU-``n`` is computed."""
    counts = [f"bleu_{what}{order}" for what in ("matched", "possible") for order in _BLEU_ORDERS[:n]]
    return (*counts, "length", "reference_length")


def caption_columns(ids: Sequence[int], scores: ImageCaptionScores) -> Mapping[str, Any]:
    """The item columns of `caption_metrics` for the images ``ids``."""
    counts = np.array([scores.bleu[index] for index in ids], float)
    return {
        "cider": np.array([scores.cider[index] for index in ids]),
        "rouge": np.array([scores.rouge[index] for index in ids]),
        **dict(zip(bleu_columns(4), counts.T, strict=True)),
    }


def caption_metrics(prefix: str = "") -> dict[str, MetricSpec]:
    """CIDEr, BLEU-1 to 4 and ROUGE-L; ``prefix`` is prepended to their names."""
    return {
        f"{prefix}CIDEr": MetricSpec(label="CIDEr", aggregation="mean_of_scores", columns=("cider",)),
        **{
            f"{prefix}Bleu_{n}": MetricSpec(label=f"BLEU-{n}", aggregation="bleu", columns=bleu_columns(n))
            for n in _BLEU_ORDERS
        },
        f"{prefix}ROUGE_L": MetricSpec(label="ROUGE-L", columns=("rouge",)),
    }


def _mmvp_columns(samples: Sequence[Sample], right: np.ndarray) -> dict[str, np.ndarray]:
    """Whether an answer is right, and at the first question of a pair of images whether both are (probabilities)."""
    pairs: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        pairs.setdefault(int(sample["mmvp_pair_accuracy"]["pair_index"]), []).append(place)
    both = np.full(len(samples), np.nan)
    for places in pairs.values():
        if len(places) == 2:
            both[places[0]] = right[places].prod()
    return {"correct": right, "both": both}


_EXACT_MATCH: dict[str, Callable[[Mapping[str, Any]], int] | None] = {
    "gqa": None,
    "textvqa_val": None,
    "scienceqa_img": lambda doc: len(doc["choices"]),
    "ai2d": lambda doc: len(doc["options"]),
    "vqav2_val": None,
    "realworldqa": _count_realworldqa_options,
}
"""Task → its number of options for a question; None if it has none."""
TASK_METRICS: dict[str, TaskMetrics] = {
    "pope": TaskMetrics(
        columns=_pope,
        metrics={
            "pope_f1_score": MetricSpec(label="F1", aggregation="f1", columns=("said_yes", "is_yes")),
            "pope_accuracy": MetricSpec(label="accuracy", columns=("correct",)),
            "pope_precision": MetricSpec(label="precision", aggregation="ratio", columns=("hit_yes", "said_yes")),
            "pope_recall": MetricSpec(label="recall", aggregation="ratio", columns=("hit_yes", "is_yes")),
            "pope_yes_ratio": MetricSpec(label="ratio of yes expected", columns=("is_yes",), higher_is_better=None),
        },
        extra={
            "said_yes": MetricSpec(label="ratio of yes answered", columns=("said_yes",), higher_is_better=None),
            **{
                f"pope_f1_{kind}": MetricSpec(
                    label=f"F1, {kind}", aggregation="f1", columns=(f"said_yes_{kind}", f"is_yes_{kind}")
                )
                for kind in _POPE_KINDS
            },
            "pope_f1_kinds": MetricSpec(
                label="F1, mean of three kinds", aggregation="f1", columns=("said_yes", "is_yes", "kind")
            ),
        },
        primary=("pope_accuracy", "pope_f1_score"),
        score="correct",
        baselines=_pope_chance,
    ),
    "mme": TaskMetrics(
        columns=_graded(lambda sample: _mme_answer(sample)["score"], mme_columns),
        metrics={
            f"mme_{part}_score": MetricSpec(
                label=f"{part} points", aggregation="sum_of_group_means", columns=(part, "category"), scale=1.0
            )
            for part in ("perception", "cognition")
        },
        extra={
            "mme_total": MetricSpec(
                label="points", aggregation="sum_of_group_means", columns=("points", "category"), scale=1.0
            ),
            "mme_accuracy": MetricSpec(label="accuracy", columns=("correct",)),
        },
        primary=("mme_total",),
        score="correct",
        baselines=_mme_chance,
    ),
    **{
        task: TaskMetrics(
            columns=_graded(lambda sample: _number(sample["exact_match"])),
            metrics={"exact_match": MetricSpec(label="exact match", columns=("correct",))},
            primary=("exact_match",),
            score="correct",
            baselines=_chance_over_options(count) if count else _no_chance,
        )
        for task, count in _EXACT_MATCH.items()
    },
    **{
        task: TaskMetrics(
            columns=_numbers("anls"),
            metrics={"anls": MetricSpec(label="ANLS", columns=("anls",))},
            primary=("anls",),
            score="anls",
        )
        for task in ("docvqa_val", "infovqa_val")
    },
    "mmmu_val": TaskMetrics(
        columns=_graded(_mmmu_right, _mmmu_columns),
        metrics={"mmmu_acc": MetricSpec(label="accuracy", columns=("correct",), rounded=5e-6)},
        extra={
            f"mmmu_acc_{subject}": MetricSpec(
                label=f"accuracy, {subject.replace('_', ' ')}", columns=(f"correct_{subject}",)
            )
            for subject in _DISCIPLINE_OF
        },
        primary=("mmmu_acc",),
        score="correct",
        baselines=_chance_over_options(
            # options are a list as text; open questions have none
            lambda doc: len(ast.literal_eval(doc["options"])) if doc["question_type"] == "multiple-choice" else 0,
            _mmmu_columns,
        ),
    ),
    **{
        task: TaskMetrics(
            columns=_graded(lambda sample: sample["cv_bench_acc"]["is_correct"], _cv_bench_columns),
            metrics={"cv_bench_acc": MetricSpec(label="accuracy", columns=("correct",))},
            extra={
                "cv_bench_2d": MetricSpec(
                    label="2D", aggregation="mean_of_group_means", columns=("correct_2d", "source")
                ),
                "cv_bench_3d": MetricSpec(label="3D", columns=("correct_3d",)),
            },
            primary=primary,
            score="correct",
            baselines=_chance_over_options(lambda doc: len(doc["choices"]), _cv_bench_columns),
        )
        for task, primary in {
            "cv_bench": ("cv_bench_2d", "cv_bench_3d"),
            "cv_bench_2d": ("cv_bench_2d",),
            "cv_bench_3d": ("cv_bench_3d",),
        }.items()
    },
    **{
        task: TaskMetrics(
            columns=_mmbench,
            metrics={"gpt_eval_score": MetricSpec(label="accuracy", columns=("points",), scale=1.0, most=100.0)},
            primary=("gpt_eval_score",),
            score="points",
            baselines=_mmbench_chance,
        )
        for task in ("mmbench_en_dev", "mmbench_en_dev_static")
    },
    "naturalbench": TaskMetrics(
        columns=lambda samples, _: naturalbench_points([sample[NATURALBENCH_ENTRY] for sample in samples]),
        metrics={
            name: MetricSpec(label=f"{what} accuracy", columns=(score,))
            for (score, name), what in zip(NATURALBENCH_METRICS.items(), ("group", "question", "image"), strict=True)
        },
        extra={"naturalbench_accuracy": MetricSpec(label="accuracy", columns=("Acc",))},
        primary=("naturalbench_G_ACC",),
        score="G_Acc",
    ),
    "chartqa": TaskMetrics(
        columns=_numbers("relaxed_overall", "relaxed_human_split", "relaxed_augmented_split"),
        metrics={
            f"relaxed_{part}": MetricSpec(label=label, columns=(f"relaxed_{part}",))
            for part, label in {
                "overall": "relaxed accuracy",
                "human_split": "relaxed accuracy (human)",
                "augmented_split": "relaxed accuracy (augmented)",
            }.items()
        },
        primary=("relaxed_overall",),
        score="relaxed_overall",
    ),
    "mmvet": TaskMetrics(
        columns=lambda samples, _: {
            "points": np.array([100.0 * sample["gpt_eval_score"]["score"] for sample in samples])
        },
        metrics={"gpt_eval_score": MetricSpec(label="score", columns=("points",), scale=1.0, most=100.0)},
        primary=("gpt_eval_score",),
        score="points",
    ),
    **{
        task: TaskMetrics(
            columns=_llava_bench,
            metrics={
                f"gpt_eval_llava_{kind}": MetricSpec(
                    label=label,
                    aggregation="ratio",
                    columns=(f"points_{kind}", f"reference_{kind}"),
                    scale=1.0,
                    most=100.0,
                    rounded=0.1,  # lmms-eval rounds the means to 0.001 and their ratio to 0.1
                )
                for kind, label in _LLAVA_BENCH.items()
            },
            primary=("gpt_eval_llava_all",),
            score="points_all",
        )
        for task in ("llava_in_the_wild", "llava_bench_coco")
    },
    "mmvp": TaskMetrics(
        columns=_graded(lambda sample: sample["mmvp_accuracy"]["is_correct"], _mmvp_columns),
        metrics={
            "mmvp_accuracy": MetricSpec(label="accuracy", columns=("correct",)),
            "mmvp_pair_accuracy": MetricSpec(label="pair accuracy", columns=("both",)),
        },
        primary=("mmvp_pair_accuracy",),
        score="correct",
        baselines=_chance_over_options(lambda doc: 2, _mmvp_columns),
    ),
    "ocrbench": TaskMetrics(
        columns=_graded(lambda sample: _number(sample["ocrbench_accuracy"])),
        metrics={"ocrbench_accuracy": MetricSpec(label="ratio of 1,000 points", columns=("correct",))},
        # of a part of the 1,000 questions, as many as its ratio would give
        extra={"ocrbench_points": MetricSpec(label="points per 1,000", columns=("correct",), scale=1000.0)},
        primary=("ocrbench_points",),
        score="correct",
    ),
    "seedbench": TaskMetrics(
        columns=_graded(_seed_right, _seed_columns),
        metrics={
            "seed_all": MetricSpec(label="accuracy", columns=("correct",)),
            "seed_image": MetricSpec(label="accuracy (images)", columns=("on_images",)),
            "seed_video": MetricSpec(label="accuracy (videos)", columns=("on_videos",)),
        },
        primary=("seed_image", "seed_all"),
        score="correct",
        baselines=_chance_over_options(
            lambda doc: sum(bool(doc[f"choice_{letter}"]) for letter in "abcd"), _seed_columns
        ),
    ),
    "mmstar": TaskMetrics(
        columns=lambda samples, _: {
            "correct": np.array([sample["average"]["score"] for sample in samples], float),
            "ability": np.array([sample["average"]["l2_category"] for sample in samples]),
        },
        metrics={
            "average": MetricSpec(
                label="mean over abilities", aggregation="mean_of_group_means", columns=("correct", "ability")
            )
        },
        extra={"mmstar_accuracy": MetricSpec(label="accuracy", columns=("correct",))},
        primary=("average",),
        score="correct",
        baselines=_chance_over_options(lambda doc: 4),  # its scorer looks for A, B, C or D
    ),
    "nocaps_val": TaskMetrics(
        columns=lambda samples, scores: caption_columns([int(sample["doc"]["image_id"]) for sample in samples], scores),
        metrics={**caption_metrics("nocaps_"), "nocaps_METEOR": MetricSpec(label="METEOR", aggregation=None)},
        primary=("nocaps_CIDEr",),
        score="cider",
    ),
}


def default_task_metrics(
    samples: Sequence[Sample],
    values: Mapping[str, float | None],
    directions: Mapping[str, bool | None],
    scale: float | None = None,
) -> TaskMetrics:
    """Metrics of an unlisted task, each the mean of its per-sample numbers if it has any.

    Args:
        values: metric → lmms-eval's number or None.
        directions: metric → whether higher is better, None if neither; it is of those that are not listed.
        scale: display factor; by default 100 if all numbers are from 0 to 1 and higher is better, otherwise 1. Error
            counts and CIDEr may be in that range by chance, and another model's above.
    """
    names = list(values)
    of_samples = {name: [_number(sample.get(name)) for sample in samples] for name in names}
    usable = {name: np.array(values, float) for name, values in of_samples.items() if not np.isnan(values).all()}

    def scale_of(name: str) -> float:
        if name.endswith("CIDEr"):
            return 1.0
        known = [each for each in (*of_samples[name], values[name]) if each is not None and not np.isnan(each)]
        return 100.0 if known and min(known) >= 0 and max(known) <= 1 and directions.get(name) is not False else 1.0

    factors = {name: scale or scale_of(name) for name in names}
    return TaskMetrics(
        columns=lambda *_: {f"score_{name}": values for name, values in usable.items()},
        metrics={
            name: MetricSpec(
                label=name.replace("_", " "),
                aggregation="mean" if name in usable else None,
                columns=(f"score_{name}",) if name in usable else (),
                scale=factors[name],
                most=1.0 if factors[name] >= 100 else math.inf,  # points may be those of any scale
                higher_is_better=directions.get(name, True),
            )
            for name in names
        },
        primary=tuple(names[:1]),
        score=f"score_{names[0]}" if names and names[0] in usable else "",
    )
