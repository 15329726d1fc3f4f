"""``clips-bench list``: the built-in benchmarks and published data sets, and the part of them that a result measured.

It imports no model library.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results.formatting import join_row_names
from benchmarks.results.protocol import FULL_SIZE
from benchmarks.results.results import Metric, Result
from benchmarks.tasks.registry import Benchmark, BenchmarkConfig, all_benchmarks, get_benchmark, settings_by_kind
from clips.commandline.parsing import field_lines
from clips.text_files import read_yaml
from clips.typed_data import from_plain, to_plain


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List the benchmarks.

    Args:
        benchmark: list this one alone, or this task of lmms-eval: prompt, scorer, data, source, pitfalls, as far as
            they are known, and its settings.
        tasks: also list every task of lmms-eval; all of them can be used.
    """

    benchmark: str | None = None
    tasks: bool = False


@dataclass(frozen=True)
class KnownDataset:
    """A published dataset for a benchmark that reads the user's data."""

    name: str
    items: int  # number of images in the split that papers report
    size: str  # approximate size on disk with its images; empty if unknown
    license: str  # as its source states it
    about: str  # further information in one line
    source: str  # its paper, and what to know of its files; may be empty


KNOWN_DATASETS: dict[str, list[KnownDataset]] = {}
"""Benchmark → datasets."""
with Path(__file__).with_name("known_datasets.csv").open(encoding="utf-8", newline="") as _stream:
    for _row in csv.DictReader(_stream):
        _texts = {heading: text for heading, text in _row.items() if heading not in {"benchmark", "items"}}
        KNOWN_DATASETS.setdefault(_row["benchmark"], []).append(KnownDataset(items=int(_row["items"]), **_texts))

_HEADER = ("benchmark", "needs", "items", "size", "license", "about")


def run_list(config: ListConfig) -> None:
    """Print the built-in benchmarks: required model, items, license, description, settings; or one with its details.

    Raises:
        UserError: an unknown benchmark.
    """
    if config.benchmark is not None:
        entry = get_benchmark(config.benchmark)
        described = [
            line
            for heading, text in details(config.benchmark, entry).items()
            for line in textwrap.wrap(
                f"{heading}: {text}", 96, initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False
            )
        ]
        title = f"{config.benchmark}: {entry.about} (needs {entry.needs})"
        print("\n".join([title, *described, "", *field_lines(entry.config)]))
        return
    lines = [line for name, entry in all_benchmarks().items() for line in _lines(name, entry)]
    widths = [max(map(len, column)) for column in zip(_HEADER, *lines, strict=True)]
    for line in (_HEADER, *lines):
        name, needs, items, *rest = (f"{field:<{width}}" for field, width in zip(line, widths, strict=True))
        print("  ".join((name, needs, f"{items.rstrip():>{widths[2]}}", *rest)).rstrip())
    print(
        "\nItems, size and license are those of the published set (questions, images or pairs of a split);\n"
        "a license covers the questions, rarely the images. Indented: datasets that the benchmark above reads with\n"
        "`data:`. For a first try add `limit: 200`.\n\nSettings besides name, data, task and limit "
        "(`clips-bench list NAME` explains those of a benchmark,\nand prints prompt, scorer, source and pitfalls):"
    )
    common = {field.name for field in dataclasses.fields(BenchmarkConfig)}
    for names, kind in settings_by_kind().items():
        settings = "; ".join(
            field.name
            if field.default is dataclasses.MISSING
            else f"{field.name}={json.dumps(to_plain(field.default), ensure_ascii=False)}"
            for field in dataclasses.fields(kind)
            if field.name not in common
        )
        print("\n".join(textwrap.wrap(f"{names}: {settings}", 118, subsequent_indent="    ")))
    if config.tasks:
        from benchmarks.tasks.mllm.offline_tasks import task_folders

        print("\n".join(["", *sorted(task_folders())]))
    else:
        print("Any other task of lmms-eval works as well (--tasks true lists them).")


def details(name: str, entry: Benchmark) -> dict[str, str]:
    """Heading → text: prompt, scorer, source and pitfalls of a benchmark, and the datasets that it reads."""
    datasets = {
        known.name: "; ".join(filter(None, (known.about, known.source))) for known in KNOWN_DATASETS.get(name, ())
    }
    return {**_protocols().get(name, {}), **entry.details, **datasets}


@functools.cache
def _protocols() -> dict[str, dict[str, str]]:
    content = read_yaml(Path(__file__).with_name("protocols.yaml"))
    return from_plain(dict[str, dict[str, str]], content, what="protocols")


def _lines(name: str, entry: Benchmark) -> list[tuple[str, ...]]:
    is_users = entry.items is None and not entry.license
    items = "yours" if is_users else f"{entry.items:,}" if entry.items else ""
    datasets = [
        (f"  {known.name}", "", f"{known.items:,}", known.size, known.license, known.about)
        for known in KNOWN_DATASETS.get(name, ())
    ]
    return [(name, entry.needs, items, entry.size, entry.license, entry.about), *datasets]


def full_size(result: Result) -> int | None:
    """Number of items of the full benchmark if the result is known to have fewer; None otherwise.

    The larger of the data's size and the published set's size (`clips-bench list`), looked up by lmms-eval's task if
    the benchmark has its name, by the format of a compositional benchmark, or by the benchmark's name.
    """
    used, _ = _used(result)
    stated = result.protocol.get(FULL_SIZE)
    task, format = (str(result.protocol.get(name, "")) for name in ("task", "format"))
    name = task.removeprefix("lmms-eval's ")
    published = 0
    if name == task or _plain(name) == _plain(result.benchmark):  # else other data with the task's prompt and scorer
        entry = all_benchmarks().get(format if name == task else name)
        if entry is not None:
            published = entry.items or 0
        elif result.benchmark_type in {"retrieval", "classification"}:
            known = {_plain(known.name): known.items for sets in KNOWN_DATASETS.values() for known in sets}
            published = known.get(_plain(result.benchmark), 0)
    full = max(stated if isinstance(stated, int) else 0, published)
    return full if used and full > used else None


def subset_text(result: Result) -> str:
    """``"30 of 1,000 images"``; empty if the result has all items, or their number is unknown."""
    used, unit = _used(result)
    full = full_size(result)
    return "" if full is None else f"{used:,} of {full:,} {unit}"


def item_count_text(result: Result, metric: Metric) -> str:
    """The items of a metric: ``"9,000"``, ``"30 of 9,000"``, or ``"150 (30 of 1,000 images)"`` of captions."""
    if not metric.n:
        return "not stated"
    part = subset_text(result)
    used, unit = _used(result)
    if part and metric.n == used:
        return part.removesuffix(f" {unit}")
    return f"{metric.n:,}" + (f" ({part})" if part else "")


def parts(results: Iterable[tuple[str, str, Result]]) -> list[str]:
    """``"pope: 30 of 9,000 questions"`` for each benchmark that was run only in part, with models if they differ in it.

    Args:
        results: names of benchmark and model, and the result.
    """
    models: dict[str, dict[str, list[str]]] = {}  # benchmark → part, empty if it is all → models
    for benchmark, model, result in results:
        models.setdefault(benchmark, {}).setdefault(subset_text(result), []).append(model)
    return [
        f"{benchmark}: {text}" + (f" ({join_row_names(names)})" if len(by_part) > 1 else "")
        for benchmark, by_part in models.items()
        for text, names in by_part.items()
        if text
    ]


def _used(result: Result) -> tuple[int, str]:
    """The number of items in the protocol, and their unit; 0 if it states none."""
    for unit in ("questions", "cases", "images"):
        value = result.protocol.get(unit)
        if isinstance(value, int):
            return value, unit
    return 0, ""


def _plain(name: str) -> str:
    # ImageNet-1k → imagenet, Urban-1k → urban
    return re.sub(r"[^a-z0-9]|-?(?:1k|400)$", "", name.casefold())
