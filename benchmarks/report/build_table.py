"""Build the table from results: its columns, its cells, and the comparisons between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from benchmarks.report.blind_gain import with_gains
from benchmarks.report.load_results import MissingValue, ReportSource, missing_reason
from benchmarks.report.seed_aggregation import aggregate_seeds, has_seeds, with_intervals
from benchmarks.report.significance import Evidence, add_significance
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.protocol import describe_differences
from benchmarks.results.results import Metric, Result
from benchmarks.study.rows import EXCLUDED_FROM_BENCHMARK, RowRecord


def build_results_table(
    source: ReportSource,
    evidence: Evidence | None = None,
    *,
    primary_only: bool = True,
    also: Collection[tuple[str, str]] = (),
    by_seed: bool = False,
    all_pairs: bool = False,
) -> Table:
    """Build the table of the primary metrics, with differences and marks, or of all metrics, without them.

    Rows that differ only in their seed become one row of means.

    Args:
        source: the results.
        evidence: of the source; pass it to read the items once for several tables.
        primary_only: omit the other metrics.
        also: (benchmark, metric) of other metrics to include, with tests.
        by_seed: keep each seed as a row of its own, without differences and marks.
        all_pairs: test every pair of models instead of those with the baseline and with the best.
    """
    requested = [name for name in source.benchmarks if _is_requested(source, name)]
    columns = [column for name in requested for column in _columns(source, name, primary_only, also)]
    cells = {
        (cell.row, column.benchmark, column.metric): cell for column in columns for cell in _plain_cells(source, column)
    }
    table = Table(rows=source.rows, columns=tuple(columns), cells=cells, comparisons=0)
    evidence = evidence or Evidence(source)
    table = with_intervals(table, evidence)
    if by_seed:
        return table
    if has_seeds(source):
        table = aggregate_seeds(table, evidence)
    if not primary_only:
        return table
    return add_significance([with_gains(table, source, evidence)], evidence, all_pairs=all_pairs)[0]


def _is_requested(source: ReportSource, benchmark: str) -> bool:
    """Whether the benchmark applies to a shown model; a study may restrict a benchmark to models that are omitted."""
    outcomes = [source.outcomes[row.name, benchmark] for row in source.rows]
    return any(isinstance(outcome, Result) or outcome.reason != EXCLUDED_FROM_BENCHMARK for outcome in outcomes)


def _columns(
    source: ReportSource, benchmark: str, primary_only: bool, also: Collection[tuple[str, str]]
) -> list[Column]:
    by_name: dict[str, list[Metric]] = {}
    results = source.results(benchmark)
    for result in results.values():
        others = [metric for other, metric in also if other == benchmark and metric not in result.primary]
        for name in [*result.primary, *others] if primary_only else result.metrics:
            if name in result.metrics:
                by_name.setdefault(name, []).append(result.metrics[name])
    if not by_name and primary_only:
        empty = Column(benchmark=benchmark, metric="", label=benchmark, scale=1.0, higher_is_better=None)
        return [dataclasses.replace(empty, benchmark_id=source.benchmark_id(benchmark))]
    return [
        Column(
            benchmark=benchmark,
            metric=name,
            label=metrics[0].label,
            scale=metrics[0].scale,
            higher_is_better=metrics[0].higher_is_better,
            largest=max(abs(metric.value * metric.scale) for metric in metrics),
            chance_levels=_chance_levels(source, benchmark, name),
            benchmark_id=source.benchmark_id(benchmark),
            of_llava=any(map(_is_of_llava, results.values())),
        )
        for name, metrics in by_name.items()
    ]


def _is_of_llava(result: Result) -> bool:
    return result.benchmark_type == "mllm" or (result.benchmark_type == "choice" and "prompt" in result.protocol)


def _chance_levels(source: ReportSource, benchmark: str, metric: str) -> dict[str, float]:
    """Trivial baseline → its score in the main protocol; the best one if it depends on the model, as a random patch."""
    measured = source.results_with_metric(benchmark, metric)
    groups = source.protocol_groups(measured)
    metrics = [result.metrics[metric] for row, result in measured.items() if groups[row] == 0]
    best = min if metrics[0].higher_is_better is False else max
    levels: dict[str, list[float]] = {}
    for each in metrics:
        for name, value in each.chance_levels.items():
            levels.setdefault(name, []).append(value * each.scale)
    return {name: best(values) for name, values in levels.items()}


def _plain_cells(source: ReportSource, column: Column) -> list[Cell]:
    measured = source.results_with_metric(column.benchmark, column.metric)
    groups = source.protocol_groups(measured)
    main = next((result for name, result in measured.items() if groups[name] == 0), None)
    cells = []
    for row in source.rows:
        outcome = source.outcomes[row.name, column.benchmark]
        if isinstance(outcome, MissingValue):
            cells.append(Cell(row=row.name, column=column, missing=outcome))
        elif row.name in measured and (mismatch := _mismatch(outcome.metrics[column.metric], column)):
            cells.append(Cell(row=row.name, column=column, missing=MissingValue(kind="failed", reason=mismatch)))
        elif main is None or row.name not in measured:
            reason = outcome.missing_metrics.get(column.metric, "this metric was not computed for this model")
            cells.append(Cell(row=row.name, column=column, missing=missing_reason(reason)))
        else:
            group = groups[row.name]
            differences = tuple(describe_differences(main.protocol, outcome.protocol)) if group else ()
            number = _number(row, column, outcome.metrics[column.metric], group, differences)
            cells.append(dataclasses.replace(number, measured_elsewhere=bool(outcome.measured_elsewhere)))
    return cells


def _mismatch(metric: Metric, column: Column) -> str:
    """Why a metric does not fit into a column; empty if it does."""
    for field in ("scale", "higher_is_better"):
        if getattr(metric, field) != getattr(column, field):
            return f"{field}: expected {getattr(column, field)} as other models have, got {getattr(metric, field)}"
    return ""


def _number(row: RowRecord, column: Column, metric: Metric, group: int, differences: tuple[str, ...]) -> Cell:
    return Cell(
        row=row.name,
        seed=row.seed,
        column=column,
        value=metric.value * metric.scale,
        ci_low=None if metric.ci_low is None else metric.ci_low * metric.scale,
        ci_high=None if metric.ci_high is None else metric.ci_high * metric.scale,
        n=metric.n,
        group=group,
        protocol_differences=differences,
    )
