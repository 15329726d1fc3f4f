"""``clips-bench list``: the built-in benchmarks, their size and license. It imports no model library."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.tasks.benchmark import Benchmark
from benchmarks.tasks.registry import BENCHMARKS


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List the benchmarks.

    Args:
        tasks: also list every task of lmms-eval; all of them can be used.
    """

    tasks: bool = False


@dataclass(frozen=True, kw_only=True)
class KnownDataset:
    """A published dataset for a benchmark that reads the user's data.

    Args:
        name: name of the dataset.
        items: number of images in the split that papers report.
        size: approximate size on disk with its images; empty if unknown.
        license: as its source states it.
        about: further information in one line.
        texts: number of captions or classes, where the time estimate of an encoder needs it.
    """

    name: str
    items: int
    size: str = ""
    license: str
    about: str
    texts: int | None = None


KNOWN_DATASETS: dict[str, tuple[KnownDataset, ...]] = {
    "retrieval": (
        KnownDataset(
            name="COCO",
            items=5000,
            size="6.6 GB",
            license="CC BY 4.0 (captions)",
            about="25,010 captions (Karpathy's test split)",
            texts=25010,
        ),
        KnownDataset(
            name="Flickr30k",
            items=1000,
            size="4.4 GB",
            license="for research",
            about="5,000 captions (Karpathy's test split)",
            texts=5000,
        ),
        KnownDataset(
            name="Flickr8k",
            items=1000,
            size="1.1 GB",
            license="for research",
            about="5,000 captions (Karpathy's test split)",
            texts=5000,
        ),
    ),
    "long_retrieval": (
        KnownDataset(name="DOCCI", items=5000, license="CC BY 4.0", about="136 words each, by people"),
        KnownDataset(name="DCI", items=7805, license="CC BY-NC 4.0", about="by people; all splits (images of SA-1B)"),
        KnownDataset(
            name="Urban-1k", items=1000, size="81 MB", license="CC BY-NC 4.0", about="107 words each, by GPT-4V"
        ),
        KnownDataset(name="ShareGPT4V", items=1000, license="CC BY-NC 4.0", about="the first 1,000 rows, as Long-CLIP"),
        KnownDataset(name="IIW-400", items=400, license="CC BY 4.0", about="by people (images of DOCCI)"),
    ),
    "multilingual_retrieval": (
        KnownDataset(
            name="XM3600", items=3600, license="CC BY 4.0", about="261,375 captions in 36 languages, by people"
        ),
        KnownDataset(name="Flickr30k-200", items=1000, license="not stated", about="200 languages, by a machine"),
        KnownDataset(name="XTD200", items=1000, license="not stated", about="200 languages, by a machine"),
        KnownDataset(name="XTD10", items=1000, license="for research", about="11 languages (images of COCO)"),
    ),
    "classification": (
        KnownDataset(
            name="ImageNet-1k",
            items=50000,
            license="for research",
            about="1,000 classes (validation split)",
            texts=1000,
        ),
        KnownDataset(name="ImageNet-V2", items=10000, license="see its source", about="1,000 classes", texts=1000),
        KnownDataset(name="ImageNet-Sketch", items=50889, license="see its source", about="1,000 classes", texts=1000),
        KnownDataset(name="ImageNet-A", items=7500, license="see its source", about="200 classes", texts=200),
        KnownDataset(name="ImageNet-R", items=30000, license="see its source", about="200 classes", texts=200),
        KnownDataset(
            name="ObjectNet",
            items=18574,
            license="see its source",
            about="113 classes that ImageNet has too",
            texts=113,
        ),
    ),
}
"""Benchmark → datasets; docs/protocols.md describes their formats and sources."""

_HEADER = ("benchmark", "needs", "items", "size", "license", "about")


def run_list(config: ListConfig) -> None:
    """Print the built-in benchmarks: required model, number of items, license, description."""
    lines = [line for name, entry in BENCHMARKS.items() for line in _lines(name, entry)]
    widths = [max(map(len, column)) for column in zip(_HEADER, *lines, strict=True)]
    for line in (_HEADER, *lines):
        name, needs, items, *rest = (f"{field:<{width}}" for field, width in zip(line, widths, strict=True))
        print("  ".join((name, needs, f"{items.rstrip():>{widths[2]}}", *rest)).rstrip())
    print(
        "\nItems, size and license are those of the published set (questions, images or pairs of a split);\n"
        "a license covers the questions, rarely the images. Indented: datasets that the benchmark above reads with\n"
        "`data:` (docs/protocols.md)."
    )
    if config.tasks:
        from benchmarks.tasks.mllm.offline_tasks import task_folders

        print("\n".join(["", *sorted(task_folders())]))
    else:
        print("Any other task of lmms-eval works as well (--tasks true lists them).")


def _lines(name: str, entry: Benchmark) -> list[tuple[str, ...]]:
    is_users = entry.items is None and not entry.license
    items = "yours" if is_users else f"{entry.items:,}" if entry.items else ""
    datasets = [
        (f"  {known.name}", "", f"{known.items:,}", known.size, known.license, known.about)
        for known in KNOWN_DATASETS.get(name, ())
    ]
    return [(name, entry.needs, items, entry.size, entry.license, entry.about), *datasets]
