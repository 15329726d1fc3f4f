"""``clips-bench diff A B``: differences between two results other than their numbers, as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.analysis.find_results import find_result
from benchmarks.report.load_results import stale_results
from benchmarks.report.table import Column
from benchmarks.report.training_settings import diff_training, training_of_result
from benchmarks.results.contradictions import contradictions
from benchmarks.results.formatting import strip_control_chars
from benchmarks.results.protocol import (
    BLIND_PREFIX,
    INPUT_PREFIX,
    Protocol,
    describe_differences,
    has_known_scorer,
    ranked_together,
)
from benchmarks.results.results import Metric, Result


@dataclass(frozen=True, kw_only=True)
class DiffConfig:
    """Print the differences between two results: the model, its training and input settings, and the protocol.

    Args:
        first: a result file, or a directory (of a model, or of results with one model).
        second: likewise.
        benchmark: the benchmark, if the directories have several.
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
    """The differences in lines of text, with a verdict at the end."""
    for letter, result in (("A", first), ("B", second)):
        numbers = ", ".join(_number(result.metrics[name]) for name in result.primary if name in result.metrics)
        found = f"failed: {result.failure_reason}" if result.status == "failed" else numbers or "no metric"
        yield f"{letter}: {result.model_name} on {result.benchmark}, {found}  ({result.path})"
    old = stale_results((first, second))
    for letter, result in (("A", first), ("B", second)):
        if result.path in old:
            yield f"{letter} is out of date: {old[result.path]}."
    yield ""
    yield from _about_model(first, second)
    if "failed" in {first.status, second.status}:
        yield "They cannot be ranked: a failed result has neither numbers nor a protocol."
        return
    inputs, blind, harness = (
        describe_differences(*entries) for entries in zip(_split(first), _split(second), strict=True)
    )
    if inputs:
        yield "Input settings, which are part of the model (A against B):"
        yield from (f"  {line.removeprefix(INPUT_PREFIX.replace('_', ' '))}" for line in inputs)
    if blind:
        yield "Runs without the image, which do not change the score (A against B):"
        yield from (f"  {line.removeprefix(BLIND_PREFIX.replace('_', ' '))}" for line in blind)
    if harness:
        yield "Evaluation settings (A against B):"
        yield from (f"  {line}" for line in harness)
    for letter, result in (("A", first), ("B", second)):
        if not has_known_scorer(result.protocol):
            yield f"The scorer of {letter} is known by its version only ({result.protocol['scorer']}), not by its code."
    if not ranked_together(first.protocol, second.protocol):
        yield "They are not ranked together: numbers of different protocols are shown, never compared."
    elif harness:
        yield "They are ranked together: the data are the same under different names of the split."
    else:
        yield "The evaluation settings are equal: they are ranked together."
    yield from contradictions({"A": first, "B": second})


def _about_model(first: Result, second: Result) -> Iterator[str]:
    models = (first.model, second.model)
    paths = [model.get("path") for model in models]
    hashes = [model.get("hash", "")[:12] or "no hash" for model in models]
    if first.model.get("hash") and first.model.get("hash") == second.model.get("hash"):
        where = "" if paths[0] == paths[1] else f", once as {paths[0]}, once as {paths[1]}"
        yield f"The model is the same ({hashes[0]}{where})."
        return
    known = all(model.get("hash") for model in models)
    yield f"{'The models differ' if known else 'It is unknown whether the model is the same'} (A against B):"
    yield "  " + " against ".join(f"{path} ({digest})" for path, digest in zip(paths, hashes, strict=True))
    differences = diff_training(training_of_result(first), training_of_result(second))
    if differences.in_short:
        yield "Training settings (A against B):"
        yield from (f"  {line}" for line in filter(None, (*differences.differing, differences.rest)))
    yield from differences.unknown
    yield from differences.warnings


def _split(result: Result) -> tuple[Protocol, Protocol, Protocol]:
    """The protocol's entries that the model's directory determines, those of blind runs, and those of the harness."""
    inputs, blind = (
        {name: value for name, value in result.protocol.items() if name.startswith(prefix)}
        for prefix in (INPUT_PREFIX, BLIND_PREFIX)
    )
    return inputs, blind, {name: value for name, value in result.protocol.items() if name not in inputs | blind}


def _number(metric: Metric) -> str:
    value = metric.value * metric.scale
    column = Column(
        benchmark="",
        metric="",
        label=metric.label,
        scale=metric.scale,
        higher_is_better=metric.higher_is_better,
        largest=abs(value),
    )
    return f"{metric.label} {column.text(value)}"
