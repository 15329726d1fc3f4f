"""Computation of each task's metrics from lmms-eval's samples.

``TASK_METRICS`` lists tasks with their own item columns; for any other task a metric is the mean of its per-sample
numbers if that equals lmms-eval's value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.tasks.evaluation import ChanceLevels, MetricSpec
from benchmarks.tasks.mllm import chance_levels, subset_columns
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores
from benchmarks.tasks.mllm.items import Sample

_ORDERS = (1, 2, 3, 4)


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """The definition of a task's metrics.

    Args:
        columns: (samples, per-image caption scores) → column → (N,) values.
        metrics: lmms-eval's metric name → spec.
        primary: for the main table.
        score: the column with each item's contribution to the first primary metric.
        extra: metrics in addition to lmms-eval's, computed from the items alone; absent if their columns are.
        baselines: samples → the columns of the trivial baselines.
    """

    columns: Callable[[Sequence[Sample], ImageCaptionScores], Mapping[str, Any]]
    metrics: Mapping[str, MetricSpec]
    primary: tuple[str, ...]
    score: str
    extra: Mapping[str, MetricSpec] = field(default_factory=dict)
    baselines: Callable[[Sequence[Sample]], ChanceLevels] = chance_levels.no_chance_level


def _pope(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    answers = [sample["pope_accuracy"] for sample in samples]
    predicted = np.array([answer["prediction"] == "yes" for answer in answers], float)
    actual = np.array([answer["ground_truth"] == "yes" for answer in answers], float)
    return {
        "correct": np.array([answer["score"] for answer in answers], float),
        "said_yes": predicted,
        "is_yes": actual,
        "hit_yes": predicted * actual,
        **chance_levels.pope_kinds(samples, said_yes=predicted, is_yes=actual),
    }


def _mme(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    return chance_levels.mme_columns(
        samples, np.array([chance_levels.mme_answer(sample)["score"] for sample in samples], float)
    )


def _right(metric: str) -> Callable[[Sequence[Sample], ImageCaptionScores], Mapping[str, Any]]:
    """The column ``correct`` from the samples' numbers of a metric."""
    return lambda samples, _: {"correct": np.array([_number(sample[metric]) for sample in samples])}


def _numbers(*names: str) -> Callable[[Sequence[Sample], ImageCaptionScores], Mapping[str, Any]]:
    """Columns of the samples' own numbers; NaN for questions that do not enter a metric."""
    return lambda samples, _: {name: np.array([_number(sample.get(name)) for sample in samples]) for name in names}


def _mmmu(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    right = [evaluate_mmmu([sample["mmmu_acc"]])[1]["acc"] for sample in samples]
    return subset_columns.mmmu_columns(samples, np.array(right, float))


def _cv_bench(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    right = np.array([sample["cv_bench_acc"]["is_correct"] for sample in samples], float)
    return subset_columns.cv_bench_columns(samples, right)


def _mmvet(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    return {"points": np.array([100.0 * sample["gpt_eval_score"]["score"] for sample in samples])}


def _llava_bench(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    """The judge's grades from 1 to 10 of the reference answer and, times 100, of the model's; 0 outside a category."""
    grades = np.array([sample["gpt_eval_llava_all"]["scores"] for sample in samples], float)
    columns: dict[str, Any] = {}
    for kind in _LLAVA_BENCH:
        of_kind = [kind == "all" or sample["doc"]["category"] == kind for sample in samples]
        columns[f"reference_{kind}"] = np.where(of_kind, grades[:, 0], 0.0)
        columns[f"points_{kind}"] = np.where(of_kind, 100.0 * grades[:, 1], 0.0)
    return columns


_LLAVA_BENCH = {"all": "relative score", "conv": "conversation", "detail": "description", "complex": "reasoning"}


def _seed(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    answers = [sample["seed_all"] for sample in samples]
    right = [answer["pred"].lower().strip() == answer["answer"].lower().strip() for answer in answers]
    return subset_columns.seed_columns(samples, np.array(right, float))


def _mmstar(samples: Sequence[Sample], _: ImageCaptionScores) -> Mapping[str, Any]:
    return {
        "correct": np.array([sample["average"]["score"] for sample in samples], float),
        "ability": np.array([sample["average"]["l2_category"] for sample in samples]),
    }


def _captions(samples: Sequence[Sample], scores: ImageCaptionScores) -> Mapping[str, Any]:
    return caption_columns([int(sample["doc"]["image_id"]) for sample in samples], scores)


def caption_columns(ids: Sequence[int], scores: ImageCaptionScores) -> Mapping[str, Any]:
    """The item columns of `caption_metrics` for the images ``ids``."""
    counts = np.array([scores.bleu[index] for index in ids], float)
    names = [f"bleu_{what}{n}" for what in ("matched", "possible") for n in _ORDERS] + ["length", "reference_length"]
    return {
        "cider": np.array([scores.cider[index] for index in ids]),
        "rouge": np.array([scores.rouge[index] for index in ids]),
        **dict(zip(names, counts.T, strict=True)),
    }


def _bleu_columns(n: int) -> tuple[str, ...]:
    orders = _ORDERS[:n]
    counts = [f"bleu_{what}{order}" for what in ("matched", "possible") for order in orders]
    return (*counts, "length", "reference_length")


def caption_metrics(prefix: str = "") -> dict[str, MetricSpec]:
    """CIDEr, BLEU-1 to 4 and ROUGE-L; ``prefix`` is prepended to their names."""
    return {
        f"{prefix}CIDEr": MetricSpec(label="CIDEr", aggregation="mean_of_scores", columns=("cider",)),
        **{
            f"{prefix}Bleu_{n}": MetricSpec(label=f"BLEU-{n}", aggregation="bleu", columns=_bleu_columns(n))
            for n in _ORDERS
        },
        f"{prefix}ROUGE_L": MetricSpec(label="ROUGE-L", columns=("rouge",)),
    }


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
                for kind in chance_levels.POPE_KINDS
            },
            "pope_f1_kinds": MetricSpec(
                label="F1, mean of three kinds", aggregation="f1", columns=("said_yes", "is_yes", "kind")
            ),
        },
        primary=("pope_accuracy", "pope_f1_score"),
        score="correct",
        baselines=chance_levels.pope_chance,
    ),
    "mme": TaskMetrics(
        columns=_mme,
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
        baselines=chance_levels.mme_chance,
    ),
    **{
        task: TaskMetrics(
            columns=_right("exact_match"),
            metrics={"exact_match": MetricSpec(label="exact match", columns=("correct",))},
            primary=("exact_match",),
            score="correct",
            baselines=chance_levels.chance_over_options(count) if count else chance_levels.no_chance_level,
        )
        for task, count in {
            "gqa": None,
            "textvqa_val": None,
            "scienceqa_img": chance_levels.count_listed_options("choices"),
            "ai2d": chance_levels.count_listed_options("options"),
            "vqav2_val": None,
            "realworldqa": chance_levels.count_realworldqa_options,
        }.items()
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
        columns=_mmmu,
        metrics={"mmmu_acc": MetricSpec(label="accuracy", columns=("correct",), rounded=5e-6)},
        extra={
            f"mmmu_acc_{subject}": MetricSpec(
                label=f"accuracy, {subject.replace('_', ' ')}", columns=(f"correct_{subject}",)
            )
            for subject in subset_columns.MMMU_SUBJECTS
        },
        primary=("mmmu_acc",),
        score="correct",
        baselines=chance_levels.chance_over_options(chance_levels.count_mmmu_options, subset_columns.mmmu_columns),
    ),
    **{
        task: TaskMetrics(
            columns=_cv_bench,
            metrics={"cv_bench_acc": MetricSpec(label="accuracy", columns=("correct",))},
            extra={
                "cv_bench_2d": MetricSpec(
                    label="2D", aggregation="mean_of_group_means", columns=("correct_2d", "source")
                ),
                "cv_bench_3d": MetricSpec(label="3D", columns=("correct_3d",)),
            },
            primary=primary,
            score="correct",
            baselines=chance_levels.chance_over_options(
                chance_levels.count_listed_options("choices"), subset_columns.cv_bench_columns
            ),
        )
        for task, primary in {
            "cv_bench": ("cv_bench_2d", "cv_bench_3d"),
            "cv_bench_2d": ("cv_bench_2d",),
            "cv_bench_3d": ("cv_bench_3d",),
        }.items()
    },
    **{
        task: TaskMetrics(
            columns=lambda samples, _: subset_columns.mmbench_columns(samples),
            metrics={"gpt_eval_score": MetricSpec(label="accuracy", columns=("points",), scale=1.0, most=100.0)},
            primary=("gpt_eval_score",),
            score="points",
            baselines=subset_columns.mmbench_chance,
        )
        for task in ("mmbench_en_dev", "mmbench_en_dev_static")
    },
    "naturalbench": TaskMetrics(
        columns=lambda samples, _: subset_columns.naturalbench_columns(samples),
        metrics={
            name: MetricSpec(label=f"{what} accuracy", columns=(score,))
            for (score, name), what in zip(
                subset_columns.NATURALBENCH_METRICS.items(), ("group", "question", "image"), strict=True
            )
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
        columns=_mmvet,
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
    "ocrbench": TaskMetrics(
        columns=_right("ocrbench_accuracy"),
        metrics={"ocrbench_accuracy": MetricSpec(label="ratio of 1,000 points", columns=("correct",))},
        extra={"ocrbench_points": MetricSpec(label="points", columns=("correct",), scale=1000.0)},
        primary=("ocrbench_points",),
        score="correct",
    ),
    "seedbench": TaskMetrics(
        columns=_seed,
        metrics={
            "seed_all": MetricSpec(label="accuracy", columns=("correct",)),
            "seed_image": MetricSpec(label="accuracy (images)", columns=("on_images",)),
            "seed_video": MetricSpec(label="accuracy (videos)", columns=("on_videos",)),
        },
        primary=("seed_image", "seed_all"),
        score="correct",
        baselines=chance_levels.chance_over_options(chance_levels.count_seedbench_options, subset_columns.seed_columns),
    ),
    "mmstar": TaskMetrics(
        columns=_mmstar,
        metrics={
            "average": MetricSpec(
                label="mean over abilities", aggregation="mean_of_group_means", columns=("correct", "ability")
            )
        },
        extra={"mmstar_accuracy": MetricSpec(label="accuracy", columns=("correct",))},
        primary=("average",),
        score="correct",
        baselines=chance_levels.chance_over_options(chance_levels.count_mmstar_options),
    ),
    "nocaps_val": TaskMetrics(
        columns=_captions,
        metrics={**caption_metrics("nocaps_"), "nocaps_METEOR": MetricSpec(label="METEOR", aggregation=None)},
        primary=("nocaps_CIDEr",),
        score="cider",
    ),
}


def default_task_metrics(
    samples: Sequence[Sample],
    values: Mapping[str, float | None],
    directions: Mapping[str, bool],
    scale: float | None = None,
) -> TaskMetrics:
    """Metrics of an unlisted task, each the mean of its per-sample numbers if it has any.

    Args:
        values: metric → lmms-eval's number or None.
        directions: metric → whether higher is better.
        scale: display factor; by default 100 if all numbers are from 0 to 1 and higher is better (error counts may be
            in that range by chance), otherwise 1.
    """
    names = list(values)
    found = {name: [_number(sample.get(name)) for sample in samples] for name in names}
    usable = {name: np.array(values, float) for name, values in found.items() if not np.isnan(values).all()}
    return TaskMetrics(
        columns=lambda *_: {f"score_{name}": values for name, values in usable.items()},
        metrics={
            name: MetricSpec(
                label=name.replace("_", " "),
                aggregation="mean" if name in usable else None,
                columns=(f"score_{name}",) if name in usable else (),
                scale=scale or (1.0 if directions.get(name) is False else _scale([*found[name], values[name]])),
                higher_is_better=directions.get(name) is not False,  # None: unstated
            )
            for name in names
        },
        primary=tuple(names[:1]),
        score=f"score_{names[0]}" if names and names[0] in usable else "",
    )


def _scale(numbers: Sequence[float | None]) -> float:
    known = [number for number in numbers if number is not None and not np.isnan(number)]
    return 100.0 if known and min(known) >= 0 and max(known) <= 1 else 1.0


def _number(value: Any) -> float:
    if isinstance(value, Mapping):
        value = value.get("score")
    return float(value) if isinstance(value, bool | int | float) else np.nan
