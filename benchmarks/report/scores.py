"""The scores of a report from its results: a cell for each model and metric, with its interval and gain over blind.

Rows that differ only in their seed become one row of means, with intervals over images and seeds. A score is *credited*
to the images if its gain over every kind of blind run is significant (see `benchmarks.results.blind`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.report.load_results import MissingValue, ReportSource, missing_reason
from benchmarks.report.table import BlindGain, Cell, Column, Table
from benchmarks.results.blind import BLIND_KINDS, compare_with_blind, gain_of
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.noise import Scores, TrainingNoise, training_noise
from benchmarks.results.protocol import describe_differences
from benchmarks.results.results import Metric
from benchmarks.results.statistics import ConfidenceInterval, scores_interval
from benchmarks.study.rows import EXCLUDED_FROM_BENCHMARK, RowRecord
from benchmarks.tasks.listing import item_count_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTables:
    """The scores of a source.

    Args:
        table: the primary metrics, and others on request.
        details: all metrics; cells of metrics in both are the same.
        seed_table: as ``table``, each seed in a row of its own.
    """

    table: Table
    details: Table
    seed_table: Table


def read_scores(source: ReportSource, items: ItemScores, also: Collection[tuple[str, str]] = ()) -> ScoreTables:
    """The scores of a source; ``also`` are (benchmark, metric) of other metrics of the main table."""
    table, details = seed_tables(source, also)
    set_intervals(details.scores, items)
    means = mean_tables([table, details], source, items)
    set_gains(means[0], items)
    return ScoreTables(table=means[0], details=means[1], seed_table=table)


def seed_tables(source: ReportSource, also: Collection[tuple[str, str]] = ()) -> list[Table]:
    """The tables of the primary and of all metrics, a row for each seed, without intervals; see `read_scores`."""
    primary, every = list[Column](), list[Column]()
    for benchmark in source.benchmarks:
        outcomes = [source.outcomes[row.name, benchmark] for row in source.rows]
        # a study may restrict a benchmark to models that are omitted
        if all(isinstance(each, MissingValue) and each.reason == EXCLUDED_FROM_BENCHMARK for each in outcomes):
            continue
        others = [metric for name, metric in also if name == benchmark]
        main, rest = dict[str, list[Metric]](), dict[str, list[Metric]]()
        for result in source.results(benchmark).values():
            for name in [*result.primary, *(each for each in others if each not in result.primary)]:
                if name in result.metrics:
                    main.setdefault(name, []).append(result.metrics[name])
            for name, metric in result.metrics.items():
                rest.setdefault(name, []).append(metric)
        found = {name: _column(source, benchmark, name, metrics) for name, metrics in (rest | main).items()}
        if not main:
            key = source.benchmark_id(benchmark)
            found[""] = Column(
                benchmark=benchmark, metric="", label=benchmark, scale=1.0, higher_is_better=None, key=key
            )
        for column in found.values():
            column.cells = _seed_cells(source, column)
        primary += [found[name] for name in main or [""]]
        every += [found[name] for name in rest]
    return [
        Table(rows=source.rows, columns=tuple(columns), scores=[cell for each in columns for cell in each.cells])
        for columns in (primary, every)
    ]


def _column(source: ReportSource, benchmark: str, name: str, metrics: Sequence[Metric]) -> Column:
    first, results = metrics[0], source.results(benchmark)
    measured = source.results_with_metric(benchmark, name)
    groups = source.protocol_groups(measured)
    of_main = {row: result.metrics[name] for row, result in measured.items() if groups[row] == 0}
    counts = [(metric.n, item_count_text(measured[row], metric)) for row, metric in of_main.items()]
    smallest, largest = min(counts), max(counts)
    levels: dict[str, list[float]] = {}
    for metric in of_main.values():
        for baseline, value in metric.chance_levels.items():
            levels.setdefault(baseline, []).append(value * metric.scale)
    # the best one if it depends on the model, as a random patch
    best = min if next(iter(of_main.values())).higher_is_better is False else max
    return Column(
        benchmark=benchmark,
        metric=name,
        label=first.label,
        scale=first.scale,
        higher_is_better=first.higher_is_better,
        largest=max(abs(metric.value * metric.scale) for metric in metrics),
        chance_levels={baseline: best(values) for baseline, values in levels.items()},
        key=source.benchmark_id(benchmark),
        of_llava=any(
            result.benchmark_type == "mllm" or (result.benchmark_type == "choice" and "prompt" in result.protocol)
            for result in results.values()
        ),
        items=largest[1] if smallest == largest else f"{smallest[1]} to {largest[1]}",
    )


def _seed_cells(source: ReportSource, column: Column) -> list[Cell]:
    measured = source.results_with_metric(column.benchmark, column.metric)
    groups = source.protocol_groups(measured)
    main = next((result for name, result in measured.items() if groups[name] == 0), None)
    cells = []
    for row in source.rows:
        outcome = source.outcomes[row.name, column.benchmark]
        cell = Cell(row=row.name, column=column, seed=row.seed, rows=(row.name,), metric=column.metric)
        cells.append(cell)
        if isinstance(outcome, MissingValue):
            cell.missing = outcome
            continue
        cell.all_results = (outcome,)
        if main is None or row.name not in measured:
            reason = outcome.missing_metrics.get(column.metric, "this metric was not computed for this model")
            cell.missing = missing_reason(reason)
            continue
        metric = outcome.metrics[column.metric]
        for name in ("scale", "higher_is_better"):
            if getattr(metric, name) != getattr(column, name) and not cell.missing:
                expected = f"expected {getattr(column, name)} as other models have, got {getattr(metric, name)}"
                cell.missing = MissingValue(kind="failed", reason=f"{name}: {expected}")
        if cell.missing:
            continue
        cell.value, cell.n, cell.group = metric.value * metric.scale, metric.n, groups[row.name]
        cell.ci_low = None if metric.ci_low is None else metric.ci_low * metric.scale
        cell.ci_high = None if metric.ci_high is None else metric.ci_high * metric.scale
        cell.results = (outcome,)
        cell.measured_elsewhere = bool(outcome.measured_elsewhere)
        if cell.group:
            cell.protocol_differences = tuple(describe_differences(main.protocol, outcome.protocol))
    return cells


def mean_tables(tables: Sequence[Table], source: ReportSource, items: ItemScores) -> list[Table]:
    """Tables with one row for all seeds of a model, in the order of the first seeds; the same if no model has several.

    Args:
        tables: with a row for each seed; they may share columns.
        source: of the tables.
        items: of the results.
    """
    if len(_by_model(source.rows)) == len(source.rows):
        return [*tables]
    models = _by_model(tables[0].rows)
    by_name = {row.name: row for row in tables[0].rows}
    rows = tuple(_mean_row(group, by_name) for group in models.values())
    places = {row.name: place for place, row in enumerate(tables[0].rows)}
    columns: dict[Column, Column] = {}
    for column in dict.fromkeys(each for table in tables for each in table.columns):
        columns[column] = mean = dataclasses.replace(column, cells=[])
        for row, group in zip(rows, models.values(), strict=True):
            mean.cells.append(_mean_cell(row.name, mean, [column.cells[places[each.name]] for each in group], source))
    means = []
    for table in tables:
        own = tuple(columns[each] for each in table.columns)
        cells = [cell for place in range(len(rows)) for cell in (column.cells[place] for column in own)]
        means.append(Table(rows=rows, columns=own, scores=cells))
    spreads: dict[tuple[str, ...], float] = {}
    done: set[Cell] = set()
    for table in means:  # the spreads of the first table stay, so that its numbers do
        cells = [cell for cell in table.scores if cell not in done]
        set_evidence(cells, items)
        pool_training_noise(table, spreads, done)
        set_intervals(cells, items)
        done |= {*cells}
        table.seeds = max((len(cell.by_seed) for cell in table.scores), default=0) or 1
    return means


def _by_model(rows: Sequence[RowRecord]) -> dict[tuple[str | None, ...] | str, list[RowRecord]]:
    """The rows that differ only in their seed."""
    models: dict[tuple[str | None, ...] | str, list[RowRecord]] = {}
    for row in rows:
        models.setdefault(row.name if row.seed is None else row.but_for_seed, []).append(row)
    return models


def _mean_row(group: Sequence[RowRecord], by_name: Mapping[str, RowRecord]) -> RowRecord:
    first, compared = group[0], next((row for row in group if row.baseline), group[0])
    base = by_name.get(compared.baseline or "", compared)
    baseline = compared.baseline and compared.baseline.removesuffix(f" (seed {base.seed})")
    return dataclasses.replace(first, name=first.model, seed=None, baseline=baseline)


def _mean_cell(row: str, column: Column, cells: Sequence[Cell], source: ReportSource) -> Cell:
    rows = tuple(cell.row for cell in cells)
    all_results = tuple(result for cell in cells for result in cell.all_results)
    group = min((cell.group for cell in cells if cell.value is not None), default=0)
    numbers = [cell for cell in cells if cell.value is not None and cell.group == group]
    shared: dict[str, Any] = {"row": row, "column": column, "rows": rows, "all_results": all_results, "gains": {}}
    if not numbers:
        return dataclasses.replace(cells[0], **shared)
    values = {cell.seed: cell.value for cell in numbers if cell.value is not None}
    half_widths = [
        (cell.ci_high - cell.ci_low) / 2 for cell in numbers if cell.ci_low is not None and cell.ci_high is not None
    ]
    return dataclasses.replace(
        numbers[0],
        **shared,
        value=fmean(values.values()),
        ci_low=None,
        ci_high=None,
        by_seed=values,
        members=tuple(cell.row for cell in numbers),
        results=tuple(cell.results[0] for cell in numbers),
        trained=any(source.is_trained(cell.row, cell.results[0]) for cell in numbers),
        image_ci_half_width=fmean(half_widths) if half_widths else None,
        no_interval="",
        evidence=None,
    )


def set_evidence(cells: Iterable[Cell], items: ItemScores) -> None:
    """Read the metric of each cell with the influence of each image, once for cells with the same results."""
    known: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        if cell.value is None:
            continue
        first = known.setdefault(cell.key, cell)
        if first is not cell:
            cell.evidence = first.evidence
        elif cell.evidence is None:
            cell.evidence = items.of_model(
                cell.results, cell.metric, single_training=cell.trained, category=cell.category
            )


def pool_training_noise(table: Table, spreads: dict[tuple[str, ...], float], done: Collection[Cell] = ()) -> None:
    """Estimate the training noise of each column and protocol of means over seeds, from distinct results.

    Args:
        table: its cells get it, and as a part of their evidence how much the model's seeds differ in all columns.
        spreads: model → that spread; those of new models are added.
        done: cells that keep what they have.
    """
    found: dict[tuple[str, ...], list[float]] = {}
    for column in table.columns:
        for group in column.groups():
            distinct = {cell.key: cell for cell in group if cell.members and cell.evidence is not None}
            noise = training_noise([cell.evidence for cell in distinct.values() if cell.evidence])
            for cell in group:
                cell.noise = noise
            for cell in distinct.values() if column.ranked else ():
                spread = None if cell.evidence is None else noise.relative_spread(cell.evidence)
                if spread is not None:
                    found.setdefault(_model(cell), []).append(spread)
    for model, own in found.items():
        spreads.setdefault(model, fmean(own))
    replaced: dict[tuple[object, ...], Scores] = {}
    for cell in table.scores:
        if cell.evidence is not None and cell not in done:
            if cell.key not in replaced:
                replaced[cell.key] = dataclasses.replace(cell.evidence, spread=spreads.get(_model(cell)))
            cell.evidence = replaced[cell.key]


def _model(cell: Cell) -> tuple[str, ...]:
    return tuple(str(result.model.get("hash") or result.path) for result in cell.results)


def set_intervals(cells: Sequence[Cell], items: ItemScores) -> None:
    """Compute 95 % intervals from items, over images and, if known, seeds."""
    set_evidence(cells, items)
    known: dict[tuple[tuple[object, ...], TrainingNoise], ConfidenceInterval] = {}
    for cell in cells:
        if cell.value is None:
            continue
        if cell.evidence is None:
            if cell.ci_low is None:
                cell.no_interval = items.why_not(cell.results, cell.metric)
            continue
        key = cell.key, cell.noise
        if key not in known:
            known[key] = scores_interval(cell.evidence, cell.noise)
        low, high = known[key].low, known[key].high
        cell.ci_low, cell.ci_high = (None if end is None else end * cell.column.scale for end in (low, high))
        cell.no_interval = known[key].reason
        # a pretrained model has one number for all seeds
        cell.by_seed = dict([*cell.by_seed.items()][: cell.evidence.num_seeds])
        if cell.members:
            pooled = cell.noise.degrees > 0
            cell.seed_variance = "none" if not cell.evidence.trained else "included" if pooled else "unknown"


def set_gains(table: Table, items: ItemScores) -> None:
    """Compute the gain over each kind of blind run, over images and, with several seeds, training runs."""
    for column in table.columns:
        measured = [cell for cell in column.cells if cell.value is not None]
        pairs = {cell: items.gains(cell.results, cell.metric, single_training=cell.trained) for cell in measured}
        for kind in BLIND_KINDS:
            gains = {
                cell: gain_of(each[kind].sighted, each[kind].blind) for cell, each in pairs.items() if kind in each
            }
            noise = training_noise([gains[cell] for cell in gains if pairs[cell][kind].sighted.trained])
            for cell in measured:
                if cell in gains:
                    tested, pair = compare_with_blind(gains[cell], noise), pairs[cell][kind]
                    numbers = (pair.sighted.value, pair.blind.value, tested.low, tested.high, tested.min_detectable)
                    cell.gains[kind] = _blind_gain(column, numbers, tested.p_value, pair.n)
                elif not cell.members and (stored := cell.results[0].metrics[cell.metric].blind.get(kind)):
                    low, high = (math.nan if end is None else end for end in (stored.gain_low, stored.gain_high))
                    numbers = (stored.sighted, stored.value, low, high, math.nan)
                    cell.gains[kind] = _blind_gain(column, numbers, stored.p_value, stored.n)


def _blind_gain(column: Column, numbers: Sequence[float], p_value: float, n: int) -> BlindGain:
    sighted, blind, low, high, smallest = (number * column.scale for number in numbers)
    return BlindGain(
        sighted=sighted, blind=blind, ci_low=low, ci_high=high, p_value=p_value, n=n, min_detectable=smallest
    )
