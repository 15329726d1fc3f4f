"""How many pictures and texts an evaluation of an encoder reads, as far as the catalogue knows its benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tasks.encoders.zero_shot_classifier import class_prompts
from benchmarks.tasks.list_command import KNOWN_DATASETS
from benchmarks.tasks.registry import get_benchmark
from benchmarks.tasks.run_config import BenchmarkConfig


def benchmark_size(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Pictures and texts of a benchmark; None where nobody published how many there are, or not of this part.

    Items of compositional benchmarks share pictures, and how many differ is not published.

    Data that anybody may bring are those of the published set that the column is called by: ``imagenet1k`` is
    ImageNet-1k, ``coco_mini`` is not COCO.

    Args:
        settings: of the benchmark, as in the config of ``clips-bench run``.
    """
    limit = settings.get("limit")
    task = settings.get("task") or settings["name"]
    data = next((each for each in KNOWN_DATASETS.get(task, ()) if _plain(each.name) == _plain(settings["name"])), None)
    if data is None or data.texts is None or settings.get("split", BenchmarkConfig.split) != BenchmarkConfig.split:
        return None
    pictures = min(limit or data.items, data.items)
    texts = _texts(settings, data.texts, pictures, get_benchmark(task).benchmark_type)
    return None if texts is None else (pictures, texts)


def _texts(settings: Mapping[str, Any], listed: int, pictures: int, kind: str) -> int | None:
    if kind == "retrieval":
        return min(listed, pictures * settings.get("captions_per_image", BenchmarkConfig.captions_per_image))
    templates = settings.get("templates")
    return (
        None if templates is None else listed * len(class_prompts(templates, ""))
    )  # else those in the file beside the data


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
