"""``clips-bench diff A B``: in words, what differs between two results besides their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.analysis.find_results import find_result
from benchmarks.report.cell_text import decimals
from benchmarks.report.load_results import stale_results
from benchmarks.report.table import Column
from benchmarks.results.formatting import format_number, strip_control_chars
from benchmarks.results.protocol import INPUT_PREFIX, Protocol, describe_differences, ranking_key
from benchmarks.results.results import Metric, Result
from benchmarks.study.training_settings import diff_training, training_of_result


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Say what differs between two results: the model, how it was trained and takes its input, and the protocol.

    Args:
        first: a result file, or a directory (of a row, or of results with one row).
        second: likewise.
        benchmark: whose results, where the directories have several.
    """

    first: str
    second: str
    benchmark: str | None = None


def run_diff(config: DiffConfig) -> None:
    """Print the differences and whether the two are ranked together.

    Raises:
        UserError: a file that is missing, is no result, or was written by a newer version.
    """
    results = [find_result(getattr(config, name), config.benchmark, name) for name in ("first", "second")]
    for line in explain(*results):
        print(strip_control_chars(line))


def explain(first: Result, second: Result) -> Iterator[str]:
    """The differences in lines of text, a verdict last."""
    for letter, result in (("A", first), ("B", second)):
        yield f"{letter}: {result.model_name} on {result.benchmark}, {_numbers(result)}  ({result.path})"
    old = stale_results((first, second))
    for letter, result in (("A", first), ("B", second)):
        if result.path in old:
            yield f"{letter} is out of date: {old[result.path]}."
    yield ""
    yield from _about_model(first, second)
    if "failed" in {first.status, second.status}:
        yield "There is nothing to rank: a failed result has neither numbers nor a protocol."
        return
    one, other = _split(first), _split(second)
    taken, harness = describe_differences(one[0], other[0]), describe_differences(one[1], other[1])
    if taken:
        yield "How the models take their input, which is part of the model (A against B):"
        yield from (f"  {line.removeprefix(INPUT_PREFIX.replace('_', ' '))}" for line in taken)
    if harness:
        yield "What the harness did (A against B):"
        yield from (f"  {line}" for line in harness)
    if ranking_key(first.protocol) != ranking_key(second.protocol):
        yield "They are not ranked together: numbers of unlike protocols are shown, never compared."
    elif harness:
        yield "They are ranked together: the data are the same, whatever their split is called."
    else:
        yield "What the harness did is the same in both: they are ranked together."


def _about_model(first: Result, second: Result) -> Iterator[str]:
    one, other = dict(first.model), dict(second.model)
    if one.get("hash") == other.get("hash"):
        where = (
            "" if one.get("path") == other.get("path") else f", once as {one.get('path')}, once as {other.get('path')}"
        )
        yield f"The model is the same ({one.get('hash', '')[:12]}{where})."
    else:
        yield "The models differ (A against B):"
        yield "  " + " against ".join(f"{model.get('path')} ({model.get('hash', '')[:12]})" for model in (one, other))
        yield from _about_training(first, second)


def _about_training(first: Result, second: Result) -> Iterator[str]:
    found = diff_training(training_of_result(first), training_of_result(second))
    if found.rest:
        yield "How they were trained (A against B):"
        yield from (f"  {line}" for line in (*found.differing, found.rest))
    yield from found.unknown
    yield from found.warnings


def _split(result: Result) -> tuple[Protocol, Protocol]:
    """(what the model's directory decides, what the harness decides) of a protocol."""
    taken = {name: value for name, value in result.protocol.items() if name.startswith(INPUT_PREFIX)}
    return taken, {name: value for name, value in result.protocol.items() if name not in taken}


def _numbers(result: Result) -> str:
    if result.status == "failed":
        return f"failed: {result.failure_reason}"
    shown = [result.metrics[name] for name in result.primary if name in result.metrics]
    return ", ".join(f"{metric.label} {shown_value(metric, metric.value)}" for metric in shown) or "no metric"


def shown_value(metric: Metric, value: float, *, sign: bool = False) -> str:
    """``value``, in the metric's unit, as the report shows it."""
    return format_number(value * metric.scale, decimals(column_of("", "", metric)), sign=sign)


def column_of(benchmark: str, name: str, metric: Metric) -> Column:
    """The report's column for a metric."""
    return Column(
        benchmark=benchmark,
        metric=name,
        label=metric.label,
        scale=metric.scale,
        higher_is_better=metric.higher_is_better,
        largest=abs(metric.value * metric.scale),
    )
