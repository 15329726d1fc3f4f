"""The number of images and texts that an evaluation of an encoder reads, for benchmarks of known size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tasks.encoders.zero_shot_classifier import class_prompts
from benchmarks.tasks.list_command import KNOWN_DATASETS
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import BenchmarkConfig


def benchmark_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Images and texts of a benchmark; None if the counts of this dataset or split are not published.

    A benchmark is identified with a dataset by its name: ``imagenet1k`` is ImageNet-1k, ``coco_mini`` is not COCO.
    Compositional benchmarks have no count, because their items share images.

    Args:
        settings: of the benchmark, as in the config of ``clips-bench run``.
    """
    task, name = settings.get("task") or settings["name"], _normalized(settings["name"])
    data = next((each for each in KNOWN_DATASETS.get(task, ()) if _normalized(each.name) == name), None)
    if data is None or data.texts is None or settings.get("split", BenchmarkConfig.split) != BenchmarkConfig.split:
        return None
    images = min(settings.get("limit") or data.items, data.items)
    if get_benchmark(task).benchmark_type == "retrieval":
        captions_per_image = settings.get("captions_per_image", BenchmarkConfig.captions_per_image)
        return images, min(data.texts, images * captions_per_image)
    templates = settings.get("templates")
    if templates is None:  # they are in a file next to the data
        return None
    return images, data.texts * len(class_prompts(templates, ""))


def _normalized(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
