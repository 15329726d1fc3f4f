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
from benchmarks.tasks.mllm import task_columns
from benchmarks.tasks.mllm.caption_metrics import ImageCaptionScores
from benchmarks.tasks.mllm.items import Sample
from benchmarks.tasks.mllm.question_groups import NATURALBENCH_METRICS


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
    baselines: Callable[[Sequence[Sample]], ChanceLevels] = task_columns.no_chance_level


def _bleu_columns(n: int) -> tuple[str, ...]:
    orders = task_columns.BLEU_ORDERS[:n]
    counts = [f"bleu_{what}{order}" for what in ("matched", "possible") for order in orders]
    return (*counts, "length", "reference_length")


def caption_metrics(prefix: str = "") -> dict[str, MetricSpec]:
    """CIDEr, BLEU-1 to 4 and ROUGE-L; ``prefix`` is prepended to their names."""
    return {
        f"{prefix}CIDEr": MetricSpec(label="CIDEr", aggregation="mean_of_scores", columns=("cider",)),
        **{
            f"{prefix}Bleu_{n}": MetricSpec(label=f"BLEU-{n}", aggregation="bleu", columns=_bleu_columns(n))
            for n in task_columns.BLEU_ORDERS
        },
        f"{prefix}ROUGE_L": MetricSpec(label="ROUGE-L", columns=("rouge",)),
    }


TASK_METRICS: dict[str, TaskMetrics] = {
    "pope": TaskMetrics(
        columns=task_columns.pope,
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
                for kind in task_columns.POPE_KINDS
            },
            "pope_f1_kinds": MetricSpec(
                label="F1, mean of three kinds", aggregation="f1", columns=("said_yes", "is_yes", "kind")
            ),
        },
        primary=("pope_accuracy", "pope_f1_score"),
        score="correct",
        baselines=task_columns.pope_chance,
    ),
    "mme": TaskMetrics(
        columns=task_columns.mme,
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
        baselines=task_columns.mme_chance,
    ),
    **{
        task: TaskMetrics(
            columns=task_columns.right_of("exact_match"),
            metrics={"exact_match": MetricSpec(label="exact match", columns=("correct",))},
            primary=("exact_match",),
            score="correct",
            baselines=task_columns.chance_over_options(count) if count else task_columns.no_chance_level,
        )
        for task, count in {
            "gqa": None,
            "textvqa_val": None,
            "scienceqa_img": task_columns.count_listed_options("choices"),
            "ai2d": task_columns.count_listed_options("options"),
            "vqav2_val": None,
            "realworldqa": task_columns.count_realworldqa_options,
        }.items()
    },
    **{
        task: TaskMetrics(
            columns=task_columns.numbers("anls"),
            metrics={"anls": MetricSpec(label="ANLS", columns=("anls",))},
            primary=("anls",),
            score="anls",
        )
        for task in ("docvqa_val", "infovqa_val")
    },
    "mmmu_val": TaskMetrics(
        columns=task_columns.mmmu,
        metrics={"mmmu_acc": MetricSpec(label="accuracy", columns=("correct",), rounded=5e-6)},
        extra={
            f"mmmu_acc_{subject}": MetricSpec(
                label=f"accuracy, {subject.replace('_', ' ')}", columns=(f"correct_{subject}",)
            )
            for subject in task_columns.MMMU_SUBJECTS
        },
        primary=("mmmu_acc",),
        score="correct",
        baselines=task_columns.chance_over_options(task_columns.count_mmmu_options, task_columns.mmmu_columns),
    ),
    **{
        task: TaskMetrics(
            columns=task_columns.cv_bench,
            metrics={"cv_bench_acc": MetricSpec(label="accuracy", columns=("correct",))},
            extra={
                "cv_bench_2d": MetricSpec(
                    label="2D", aggregation="mean_of_group_means", columns=("correct_2d", "source")
                ),
                "cv_bench_3d": MetricSpec(label="3D", columns=("correct_3d",)),
            },
            primary=primary,
            score="correct",
            baselines=task_columns.chance_over_options(
                task_columns.count_listed_options("choices"), task_columns.cv_bench_columns
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
            columns=task_columns.mmbench,
            metrics={"gpt_eval_score": MetricSpec(label="accuracy", columns=("points",), scale=1.0, most=100.0)},
            primary=("gpt_eval_score",),
            score="points",
            baselines=task_columns.mmbench_chance,
        )
        for task in ("mmbench_en_dev", "mmbench_en_dev_static")
    },
    "naturalbench": TaskMetrics(
        columns=task_columns.naturalbench,
        metrics={
            name: MetricSpec(label=f"{what} accuracy", columns=(score,))
            for (score, name), what in zip(NATURALBENCH_METRICS.items(), ("group", "question", "image"), strict=True)
        },
        extra={"naturalbench_accuracy": MetricSpec(label="accuracy", columns=("Acc",))},
        primary=("naturalbench_G_ACC",),
        score="G_Acc",
    ),
    "chartqa": TaskMetrics(
        columns=task_columns.numbers("relaxed_overall", "relaxed_human_split", "relaxed_augmented_split"),
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
        columns=task_columns.mmvet,
        metrics={"gpt_eval_score": MetricSpec(label="score", columns=("points",), scale=1.0, most=100.0)},
        primary=("gpt_eval_score",),
        score="points",
    ),
    **{
        task: TaskMetrics(
            columns=task_columns.llava_bench,
            metrics={
                f"gpt_eval_llava_{kind}": MetricSpec(
                    label=label,
                    aggregation="ratio",
                    columns=(f"points_{kind}", f"reference_{kind}"),
                    scale=1.0,
                    most=100.0,
                    rounded=0.1,  # lmms-eval rounds the means to 0.001 and their ratio to 0.1
                )
                for kind, label in task_columns.LLAVA_BENCH.items()
            },
            primary=("gpt_eval_llava_all",),
            score="points_all",
        )
        for task in ("llava_in_the_wild", "llava_bench_coco")
    },
    "ocrbench": TaskMetrics(
        columns=task_columns.right_of("ocrbench_accuracy"),
        metrics={"ocrbench_accuracy": MetricSpec(label="ratio of 1,000 points", columns=("correct",))},
        extra={"ocrbench_points": MetricSpec(label="points", columns=("correct",), scale=1000.0)},
        primary=("ocrbench_points",),
        score="correct",
    ),
    "seedbench": TaskMetrics(
        columns=task_columns.seed,
        metrics={
            "seed_all": MetricSpec(label="accuracy", columns=("correct",)),
            "seed_image": MetricSpec(label="accuracy (images)", columns=("on_images",)),
            "seed_video": MetricSpec(label="accuracy (videos)", columns=("on_videos",)),
        },
        primary=("seed_image", "seed_all"),
        score="correct",
        baselines=task_columns.chance_over_options(task_columns.count_seedbench_options, task_columns.seed_columns),
    ),
    "mmstar": TaskMetrics(
        columns=task_columns.mmstar,
        metrics={
            "average": MetricSpec(
                label="mean over abilities", aggregation="mean_of_group_means", columns=("correct", "ability")
            )
        },
        extra={"mmstar_accuracy": MetricSpec(label="accuracy", columns=("correct",))},
        primary=("average",),
        score="correct",
        baselines=task_columns.chance_over_options(task_columns.count_mmstar_options),
    ),
    "nocaps_val": TaskMetrics(
        columns=task_columns.captions,
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
    found = {name: [task_columns.number(sample.get(name)) for sample in samples] for name in names}
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
