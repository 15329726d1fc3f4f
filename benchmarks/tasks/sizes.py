"""The subset of its benchmark that a number was measured on, as text for all outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from benchmarks.results.formatting import join_row_names
from benchmarks.results.protocol import FULL_SIZE
from benchmarks.results.results import Metric, Result
from benchmarks.tasks.list_command import KNOWN_DATASETS
from benchmarks.tasks.registry import all_benchmarks

_UNITS = ("questions", "cases", "images")  # entries of protocols
_TASK = "lmms-eval's "


def full_size(result: Result) -> int | None:
    """Number of items of the full benchmark if the result is known to have fewer; None otherwise.

    The larger of the data's size and the published set's size (`clips-bench list`), looked up by lmms-eval's task if
    the benchmark has its name, by the format of a compositional benchmark, or by the benchmark's name.
    """
    used, _ = _used(result)
    stated = result.protocol.get(FULL_SIZE)
    found = max(stated if isinstance(stated, int) else 0, _published(result))
    return found if used and found > used else None


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
    """``"pope: 30 of 9,000 questions (clip, clips)"`` for each benchmark that some models ran only in part.

    Args:
        results: names of benchmark and model, and the result.
    """
    models: dict[str, list[str]] = {}
    for benchmark, model, result in results:
        if text := subset_text(result):
            models.setdefault(f"{benchmark}: {text}", []).append(model)
    return [f"{text} ({join_row_names(names)})" for text, names in models.items()]


def _used(result: Result) -> tuple[int, str]:
    """The number of items in the protocol, and their unit; 0 if it states none."""
    for unit in _UNITS:
        value = result.protocol.get(unit)
        if isinstance(value, int):
            return value, unit
    return 0, ""


def _published(result: Result) -> int:
    """The size of the published set; 0 if unknown."""
    task, format = (str(result.protocol.get(name, "")) for name in ("task", "format"))
    name = task.removeprefix(_TASK)
    if task.startswith(_TASK) and _plain(name) != _plain(result.benchmark):
        return 0  # other data with the task's prompt and scorer
    entry = all_benchmarks().get(name if task.startswith(_TASK) else format)
    if entry is not None:
        return entry.items or 0
    known = {_plain(known.name): known.items for sets in KNOWN_DATASETS.values() for known in sets}
    return known.get(_plain(result.benchmark), 0) if result.benchmark_type in {"retrieval", "classification"} else 0


def _plain(name: str) -> str:
    """``"ImageNet-1k"`` → ``"imagenet"``, ``"Urban-1k"`` → ``"urban"``."""
    return re.sub(r"[^a-z0-9]|-?(?:1k|400)$", "", name.casefold())
