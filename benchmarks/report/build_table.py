"""Results become the table: its columns, its plain cells, and the comparisons between them."""

from __future__ import annotations

from collections.abc import Collection

from benchmarks.report.load_results import MissingValue, ReportSource, missing_reason
from benchmarks.report.seed_aggregation import aggregate_seeds, has_seeds, with_intervals
from benchmarks.report.significance import Evidence, add_significance
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.protocol import describe_differences
from benchmarks.results.results import Metric, Result
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK, RowRecord


def build_results_table(
    source: ReportSource,
    evidence: Evidence | None = None,
    *,
    primary_only: bool = True,
    also: Collection[tuple[str, str]] = (),
    by_seed: bool = False,
) -> Table:
    """Make the table of a source's primary metrics, with differences and marks, or of all its metrics, without.

    Rows that differ in their seed alone are one, whose numbers are means.

    Args:
        source: what was read.
        evidence: of the source, to read its items once for several tables.
        primary_only: leave the other metrics out.
        also: (benchmark, metric) of others that shall be there, and be tested, as well.
        by_seed: the plain table: each seed is a row of its own, without differences and marks.
    """
    asked = [name for name in source.benchmarks if _is_asked(source, name)]
    columns = [column for name in asked for column in _columns(source, name, primary_only, also)]
    cells: dict[tuple[str, str, str], Cell] = {}
    for column in columns:
        for cell in _plain_cells(source, column):
            cells[cell.row, column.benchmark, column.metric] = cell
    table = Table(rows=source.rows, columns=tuple(columns), cells=cells, comparisons=0)
    evidence = evidence or Evidence(source)
    table = with_intervals(table, evidence)
    if by_seed:
        return table
    if has_seeds(source):
        table = aggregate_seeds(table, evidence)
    return add_significance([table], evidence)[0] if primary_only else table


def _is_asked(source: ReportSource, benchmark: str) -> bool:
    """Whether any row is measured on a benchmark; some of a study's are for rows that a filter has left out."""
    outcomes = [source.outcomes[row.name, benchmark] for row in source.rows]
    return not all(
        isinstance(outcome, MissingValue) and outcome.reason == EXCLUDED_FROM_BENCHMARK for outcome in outcomes
    )


def _columns(
    source: ReportSource, benchmark: str, primary_only: bool, also: Collection[tuple[str, str]]
) -> list[Column]:
    found: dict[str, list[Metric]] = {}
    for result in source.results(benchmark).values():
        named = [metric for of, metric in also if of == benchmark and metric not in result.primary]
        for name in [*result.primary, *named] if primary_only else result.metrics:
            if name in result.metrics:
                found.setdefault(name, []).append(result.metrics[name])
    if not found and primary_only:
        return [Column(benchmark=benchmark, metric="", label=benchmark, scale=1.0, higher_is_better=None)]
    return [
        Column(
            benchmark=benchmark,
            metric=name,
            label=metrics[0].label,
            scale=metrics[0].scale,
            higher_is_better=metrics[0].higher_is_better,
            largest=max(abs(metric.value * metric.scale) for metric in metrics),
            chance_levels=_blind(source, benchmark, name),
        )
        for name, metrics in found.items()
    ]


def _blind(source: ReportSource, benchmark: str, metric: str) -> dict[str, float]:
    """What answers without looking give, of the rows that were measured as most were; the best of them where that
    depends on the row, as a place at random in what an encoder sees of a picture does."""
    measured = {row: result for row, result in source.results(benchmark).items() if metric in result.metrics}
    groups = source.protocol_groups(measured)
    alike = [result.metrics[metric] for row, result in measured.items() if groups[row] == 0]
    best = min if alike[0].higher_is_better is False else max
    ways = dict.fromkeys(way for each in alike for way in each.chance_levels)  # results of before schema 3 have none
    return {
        way: best(each.chance_levels[way] * each.scale for each in alike if way in each.chance_levels) for way in ways
    }


def _plain_cells(source: ReportSource, column: Column) -> list[Cell]:
    measured = _measured(source, column)
    groups = source.protocol_groups(measured)
    main = next((result for name, result in measured.items() if groups[name] == 0), None)
    cells = []
    for row in source.rows:
        outcome = source.outcomes[row.name, column.benchmark]
        if isinstance(outcome, MissingValue):
            cells.append(Cell(row=row.name, column=column, missing=outcome))
        elif row.name in measured and (fault := _unlike_column(outcome.metrics[column.metric], column)):
            cells.append(Cell(row=row.name, column=column, missing=MissingValue(kind="failed", reason=fault)))
        elif main is None or row.name not in measured:
            reason = outcome.missing_metrics.get(column.metric, "this metric was not computed for this row")
            cells.append(Cell(row=row.name, column=column, missing=missing_reason(reason)))
        else:
            group = groups[row.name]
            unlike = tuple(describe_differences(main.protocol, outcome.protocol)) if group else ()
            cells.append(_number(row, column, outcome.metrics[column.metric], group, unlike))
    return cells


def _unlike_column(metric: Metric, column: Column) -> str:
    """Why a number cannot stand in a column; empty where it can."""
    for field in ("scale", "higher_is_better"):
        if getattr(metric, field) != getattr(column, field):
            return f"{field}: expected {getattr(column, field)} as other rows have, got {getattr(metric, field)}"
    return ""


def _measured(source: ReportSource, column: Column) -> dict[str, Result]:
    results = source.results(column.benchmark)
    return {name: result for name, result in results.items() if column.metric in result.metrics}


def _number(row: RowRecord, column: Column, metric: Metric, group: int, unlike: tuple[str, ...]) -> Cell:
    return Cell(
        row=row.name,
        seed=row.seed,
        column=column,
        value=metric.value * metric.scale,
        ci_low=None if metric.ci_low is None else metric.ci_low * metric.scale,
        ci_high=None if metric.ci_high is None else metric.ci_high * metric.scale,
        n=metric.n,
        group=group,
        protocol_differences=unlike,
    )
