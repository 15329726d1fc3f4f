"""mteb's tasks with images as benchmarks, ``mieb:CIFAR100ZeroShot``; MIEB(lite) is the group ``mieb``.

Source: mteb (github.com/embeddings-benchmark/mteb); MIEB, arXiv 2504.10471.
"""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Mapping
from typing import Any

from benchmarks.tasks.benchmark import Benchmark, Kind
from clips.errors import UserError

GROUP, PREFIX = "mieb", "mieb:"
METRIC_NAMES: Mapping[str, str | None] = {
    r"((?:ndcg|map|recall|precision|mrr|hit_rate|cv_recall)_at_\d+)": r"\1",
    r"((?:f1|precision|recall|ap)(?:_weighted)?|accuracy|text_acc|image_acc|lrap|main_score)": r"\1",
    r"(v_measure|nmi|ari|cluster_accuracy|(?:(?:cosine|manhattan|euclidean)_)?(?:pearson|spearman))": r"\1",
    r"nauc_.*|.*_std": None,
}
"""Pattern of a number in mteb's scores → the metric's name, or None for numbers that are no metric of the model."""
_KINDS: tuple[tuple[str, Kind], ...] = (
    ("Compositionality|VisionCentricQA", "choice"),
    (".*Retrieval|.*Reranking|DocumentUnderstanding", "retrieval"),
    (r"VisualSTS\(.*", "similarity"),
)


def import_mteb() -> Any:
    """mteb. Raises UserError if it is not installed."""
    try:
        with warnings.catch_warnings(action="ignore"):
            import mteb
    except ImportError as error:
        raise UserError(f"benchmarks: mieb needs {error.name}: pip install 'clips-suite[mteb]'") from None
    return mteb


@functools.cache
def lite_tasks() -> dict[str, str]:
    """MIEB(lite)'s tasks, as mteb lists them: name → the Hub name of its data."""
    tasks = import_mteb().get_benchmark("MIEB(lite)").tasks
    return {task.metadata.name: parts(task)[0].metadata.dataset["path"] for task in tasks}


def mieb_benchmark(name: str) -> Benchmark:
    """The benchmark of one of mteb's tasks.

    Raises:
        UserError: mteb is not installed, or has no such task of images and texts.
    """
    several, task = import_mteb().abstasks.AbsTaskMultilabelClassification, find_task(name)
    about, modalities = task.metadata, set(task.metadata.modalities)
    datasets = {part.metadata.dataset["path"]: part.metadata.dataset["revision"] for part in parts(task)}
    if not {"image"} <= modalities <= {"image", "text"} or len(datasets) > 1:
        raise UserError(f"benchmarks: mteb's task '{name}': expected one of images, or of images and texts")
    if isinstance(task, several):
        raise UserError(f"benchmarks: mteb's task '{name}': expected one label for each image, it has several")
    ((dataset, revision),) = datasets.items()
    return Benchmark(
        benchmark_type=next((kind for pattern, kind in _KINDS if re.fullmatch(pattern, about.type)), "classification"),
        about=f"mteb's {name}, {about.type}",
        needs="tower" if modalities == {"image"} else "encoder",
        evaluate="benchmarks.tasks.encoders.mieb:evaluate",
        data_hash="benchmarks.tasks.encoders.mieb:data_hash",
        task=name,
        dataset=dataset,
        revision=revision,
    )


def find_task(name: str) -> Any:
    """A new instance of mteb's task; of an aggregate also its members, which mteb's instances share.

    Raises:
        UserError: there is none of this name.
    """
    mteb = import_mteb()
    try:
        with warnings.catch_warnings(action="ignore"):
            task = mteb.get_task(name)
    except KeyError as error:
        raise UserError(f"benchmarks: {PREFIX}{name}: {' '.join(str(error.args[0]).split())}") from None
    if task.is_aggregate:
        task.metadata = copy.deepcopy(task.metadata)
    return task


def parts(task: Any) -> list[Any]:
    """The tasks with data: the members of an aggregate, otherwise the task itself."""
    return list(task.metadata.tasks) if task.is_aggregate else [task]
