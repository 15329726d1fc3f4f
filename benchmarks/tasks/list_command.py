"""``clips-bench list``: the built-in benchmarks, their size and license. It imports no model library."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from dataclasses import dataclass

from benchmarks.tasks.registry import Benchmark, BenchmarkConfig, all_benchmarks, get_benchmark, settings_by_kind
from clips.commandline.parsing import field_lines
from clips.typed_data import to_plain


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List the benchmarks.

    Args:
        benchmark: list the settings of this one alone, or of this task of lmms-eval.
        tasks: also list every task of lmms-eval; all of them can be used.
    """

    benchmark: str | None = None
    tasks: bool = False


@dataclass(frozen=True)
class KnownDataset:
    """A published dataset for a benchmark that reads the user's data.

    Args:
        name: name of the dataset.
        items: number of images in the split that papers report.
        size: approximate size on disk with its images; empty if unknown.
        license: as its source states it.
        about: further information in one line.
    """

    name: str
    items: int
    size: str
    license: str
    about: str


KNOWN_DATASETS: dict[str, tuple[KnownDataset, ...]] = {
    "retrieval": (
        KnownDataset("COCO", 5000, "6.6 GB", "CC BY 4.0 (captions)", "25,010 captions (Karpathy's test split)"),
        KnownDataset("Flickr30k", 1000, "4.4 GB", "for research", "5,000 captions (Karpathy's test split)"),
        KnownDataset("Flickr8k", 1000, "1.1 GB", "for research", "5,000 captions (Karpathy's test split)"),
    ),
    "long_retrieval": (
        KnownDataset("DOCCI", 5000, "", "CC BY 4.0", "136 words each, by people"),
        KnownDataset("DCI", 7805, "", "CC BY-NC 4.0", "by people; all splits (images of SA-1B)"),
        KnownDataset("Urban-1k", 1000, "81 MB", "CC BY-NC 4.0", "107 words each, by GPT-4V"),
        KnownDataset("ShareGPT4V", 1000, "", "CC BY-NC 4.0", "the first 1,000 rows, as Long-CLIP"),
        KnownDataset("IIW-400", 400, "", "CC BY 4.0", "by people (images of DOCCI)"),
    ),
    "multilingual_retrieval": (
        KnownDataset("XM3600", 3600, "", "CC BY 4.0", "261,375 captions in 36 languages, by people"),
        KnownDataset("Flickr30k-200", 1000, "", "not stated", "200 languages, by a machine"),
        KnownDataset("XTD200", 1000, "", "not stated", "200 languages, by a machine"),
        KnownDataset("XTD10", 1000, "", "for research", "11 languages (images of COCO)"),
    ),
    "classification": (
        KnownDataset("ImageNet-1k", 50000, "", "for research", "1,000 classes (validation split)"),
        KnownDataset("ImageNet-V2", 10000, "", "see its source", "1,000 classes"),
        KnownDataset("ImageNet-Sketch", 50889, "", "see its source", "1,000 classes"),
        KnownDataset("ImageNet-A", 7500, "", "see its source", "200 classes"),
        KnownDataset("ImageNet-R", 30000, "", "see its source", "200 classes"),
        KnownDataset("ObjectNet", 18574, "", "see its source", "113 classes that ImageNet has too"),
    ),
}
"""Benchmark → datasets; docs/protocols.md describes their formats and sources."""

_HEADER = ("benchmark", "needs", "items", "size", "license", "about")


def run_list(config: ListConfig) -> None:
    """Print the built-in benchmarks: required model, items, license, description, settings; or the settings of one.

    Raises:
        UserError: an unknown benchmark.
    """
    if config.benchmark is not None:
        entry = get_benchmark(config.benchmark)
        print("\n".join([f"{config.benchmark}: {entry.about} (needs {entry.needs})", "", *field_lines(entry.config)]))
        return
    lines = [line for name, entry in all_benchmarks().items() for line in _lines(name, entry)]
    widths = [max(map(len, column)) for column in zip(_HEADER, *lines, strict=True)]
    for line in (_HEADER, *lines):
        name, needs, items, *rest = (f"{field:<{width}}" for field, width in zip(line, widths, strict=True))
        print("  ".join((name, needs, f"{items.rstrip():>{widths[2]}}", *rest)).rstrip())
    print(
        "\nItems, size and license are those of the published set (questions, images or pairs of a split);\n"
        "a license covers the questions, rarely the images. Indented: datasets that the benchmark above reads with\n"
        "`data:` (docs/protocols.md).\n\nSettings besides name, data, task and limit (`clips-bench list NAME` explains "
        "those of a benchmark):"
    )
    for names, kind in settings_by_kind().items():
        print("\n".join(textwrap.wrap(f"{names}: {_settings(kind)}", 118, subsequent_indent="    ")))
    if config.tasks:
        from benchmarks.tasks.mllm.offline_tasks import task_folders

        print("\n".join(["", *sorted(task_folders())]))
    else:
        print("Any other task of lmms-eval works as well (--tasks true lists them).")


def _settings(kind: type[BenchmarkConfig]) -> str:
    common = {field.name for field in dataclasses.fields(BenchmarkConfig)}
    texts = (
        field.name
        if field.default is dataclasses.MISSING
        else f"{field.name}={json.dumps(to_plain(field.default), ensure_ascii=False)}"
        for field in dataclasses.fields(kind)
        if field.name not in common
    )
    return "; ".join(texts)


def _lines(name: str, entry: Benchmark) -> list[tuple[str, ...]]:
    is_users = entry.items is None and not entry.license
    items = "yours" if is_users else f"{entry.items:,}" if entry.items else ""
    datasets = [
        (f"  {known.name}", "", f"{known.items:,}", known.size, known.license, known.about)
        for known in KNOWN_DATASETS.get(name, ())
    ]
    return [(name, entry.needs, items, entry.size, entry.license, entry.about), *datasets]
