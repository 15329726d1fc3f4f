"""The scores of a report from its results: a frozen line (`Cell`) for each model and metric, made in steps.

Facts of the results → influence of the images → training noise, pooled over the models of a column → intervals → gains
over other conditions, which are lines themselves. Each step takes a list of lines and returns one. Rows that differ
only in their seed become one row of means, with intervals over images and seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean

from benchmarks.report.load_results import MissingValue, ReportSource, measures_llava, measuring_tool, missing_reason
from benchmarks.report.table import Cell, Column, Sampled, Table
from benchmarks.results.baselines import WITHOUT_IMAGE
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.noise import Scores, TrainingNoise, training_noise
from benchmarks.results.protocol import ranking_differences
from benchmarks.results.results import Metric, Result
from benchmarks.results.statistics import ConfidenceInterval, scores_interval
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK, RowRecord
from benchmarks.tasks.listing import item_count_text

Model = tuple[str, ...]
"""Hashes of a model's trainings."""


def seed_tables(source: ReportSource, items: ItemScores, also: Collection[tuple[str, str]] = ()) -> list[Table]:
    """The tables of the primary and of all metrics, a row for each seed; they share columns.

    ``also`` are (benchmark, metric) of other metrics of the first table.
    """
    primary, every = list[Column](), list[Column]()
    cells: dict[Column, list[Cell]] = {}
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
                if metric.condition not in WITHOUT_IMAGE:  # these are parts of the score's own line
                    rest.setdefault(name, []).append(metric)
        columns_by_name = {name: _column(source, benchmark, name, metrics) for name, metrics in (rest | main).items()}
        if not main:
            key = source.benchmark_id(benchmark)
            columns_by_name[""] = Column(
                benchmark=benchmark, metric="", label=benchmark, scale=1.0, higher_is_better=None, key=key
            )
        for name, column in columns_by_name.items():
            own = completed(_seed_cells(source, column), items)
            gains = _gain_columns(source, column) if name in main else ()
            cells[column] = with_gains(own, [completed(_seed_cells(source, each), items) for each in gains])
        primary += [columns_by_name[name] for name in main or [""]]
        every += [columns_by_name[name] for name in rest]
    return [
        Table(rows=source.rows, columns=tuple(columns), scores=[cell for each in columns for cell in cells[each]])
        for columns in (primary, every)
    ]


def _gain_columns(source: ReportSource, column: Column) -> list[Column]:
    """The columns of a metric's gains, one for each condition."""
    gains: dict[str, list[Metric]] = {}
    for result in source.results(column.benchmark).values():
        for name, metric in result.metrics.items():
            if metric.gain_of == column.metric and metric.gain_of:
                gains.setdefault(name, []).append(metric)
    return [_column(source, column.benchmark, name, metrics) for name, metrics in gains.items()]


def with_gains(cells: Sequence[Cell], gains: Iterable[Sequence[Cell]]) -> list[Cell]:
    """The cells of a column with those of the columns of its gains."""
    with_all = [dict[str, Cell]() for _ in cells]
    for column in gains:
        for place, gain in enumerate(column):
            if gain.value is not None:
                with_all[place][gain.results[0].metrics[gain.metric].condition] = gain
    return [
        dataclasses.replace(cell, all_gains=own) if own else cell for cell, own in zip(cells, with_all, strict=True)
    ]


def _column(source: ReportSource, benchmark: str, name: str, metrics: Sequence[Metric]) -> Column:
    first, measured = metrics[0], source.results_with_metric(benchmark, name)
    groups = source.protocol_groups(measured)
    of_main = {row: result.metrics[name] for row, result in measured.items() if groups[row] == 0}
    published = {
        row: metric
        for row, result in measured.items()
        if result.measured_elsewhere and result.items is None and (metric := result.metrics[name]).n
    }
    counts = [(metric.n, item_count_text(measured[row], metric)) for row, metric in (of_main | published).items()]
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
        of_llava=any(map(measures_llava, source.results(benchmark).values())),
        items=largest[1] if smallest == largest else f"{smallest[1]} to {largest[1]}",
        sampled=_sampled(source.results(benchmark).values()),
        has_foreign=len({measuring_tool(each) for each in source.outcomes.values() if isinstance(each, Result)}) > 1,
    )


def _sampled(results: Iterable[Result]) -> Sampled:
    """Of this suite's benchmarks images; a table may know none, and what it calls one may be a task or a document."""
    of_tables = [metric for each in results if each.measured_elsewhere for metric in each.metrics.values() if metric.n]
    if not of_tables or len(of_tables) < sum(len(each.metrics) for each in results):
        return "images"
    return "items" if all(metric.clusters == metric.n for metric in of_tables) else "clusters of items"


def _seed_cells(source: ReportSource, column: Column) -> list[Cell]:
    measured = source.results_with_metric(column.benchmark, column.metric)
    groups = source.protocol_groups(measured)
    main = next((result for name, result in measured.items() if groups[name] == 0), None)
    cells = []
    for row in source.rows:
        outcome = source.outcomes[row.name, column.benchmark]
        cell = Cell(row=row.name, column=column, rows=(row.name,))
        if isinstance(outcome, MissingValue):
            cells.append(dataclasses.replace(cell, missing=outcome))
            continue
        cell, metric = dataclasses.replace(cell, all_results=(outcome,)), outcome.metrics.get(column.metric)
        if main is None or metric is None:
            reason = outcome.missing_metrics.get(column.metric, "this metric was not computed for this model")
            cells.append(dataclasses.replace(cell, missing=missing_reason(reason)))
            continue
        differing = [
            f"{name}: expected {getattr(column, name)} as other models have, got {getattr(metric, name)}"
            for name in ("scale", "higher_is_better")
            if getattr(metric, name) != getattr(column, name)
        ]
        if differing:
            cells.append(dataclasses.replace(cell, missing=MissingValue(kind="failed", reason=differing[0])))
            continue
        group = groups[row.name]
        cells.append(
            dataclasses.replace(
                cell,
                value=metric.value * metric.scale,
                ci_low=None if metric.ci_low is None else metric.ci_low * metric.scale,
                ci_high=None if metric.ci_high is None else metric.ci_high * metric.scale,
                n=metric.n,
                group=group,
                results=(outcome,),
                protocol_differences=tuple(ranking_differences(outcome.protocol, main.protocol)) if group else (),
            )
        )
    return cells


def completed(cells: Sequence[Cell], items: ItemScores) -> list[Cell]:
    """The cells of a column of single results with their evidence and 95 % intervals over images."""
    return _with_intervals(_with_evidence(cells, items), items)


def _with_evidence(cells: Sequence[Cell], items: ItemScores) -> list[Cell]:
    """Read the metric with the influence of each image, once for cells with the same results."""
    known: dict[tuple[object, ...], Scores | None] = {}
    for cell in cells:
        if cell.value is not None and cell.key not in known:
            known[cell.key] = items.of_model(
                cell.results, cell.metric, single_training=cell.trained, category=cell.category
            )
    return [cell if cell.value is None else dataclasses.replace(cell, evidence=known[cell.key]) for cell in cells]


def _with_intervals(cells: Sequence[Cell], items: ItemScores) -> list[Cell]:
    """Compute 95 % intervals from items, over images and, if known, seeds."""
    known: dict[tuple[Scores, TrainingNoise], ConfidenceInterval] = {}
    completed_cells = []
    for cell in cells:
        if cell.value is None or (cell.evidence is None and cell.ci_low is not None):  # an imported interval
            completed_cells.append(cell)
        elif cell.evidence is None:
            completed_cells.append(dataclasses.replace(cell, no_interval=items.why_not(cell.results, cell.metric)))
        else:
            key = cell.evidence, cell.noise
            if key not in known:
                known[key] = scores_interval(*key)
            low, high = (None if end is None else end * cell.column.scale for end in (known[key].low, known[key].high))
            completed_cells.append(dataclasses.replace(cell, ci_low=low, ci_high=high, no_interval=known[key].reason))
    return completed_cells


def mean_tables(tables: Sequence[Table], source: ReportSource, items: ItemScores) -> list[Table]:
    """Tables with one row for all seeds of a model, in the order of the first seeds; the same if no model has several.

    Args:
        tables: with a row for each seed; they may share columns.
        source: of the tables.
        items: of the results.
    """
    if len(_by_model(source.rows)) == len(source.rows):
        return [*tables]
    groups = [*_by_model(tables[0].rows).values()]
    by_name = {row.name: row for row in tables[0].rows}
    places = {row.name: place for place, row in enumerate(tables[0].rows)}
    rows = []
    for group in groups:
        compared = next((row for row in group if row.baseline), group[0])
        base = by_name.get(compared.baseline or "", compared)
        baseline = compared.baseline and compared.baseline.removesuffix(f" (seed {base.seed})")
        rows.append(dataclasses.replace(group[0], name=group[0].model, seed=None, baseline=baseline))

    def means(column: Column, cells: Sequence[Cell]) -> list[Cell]:
        of_rows = [{each.seed: cells[places[each.name]] for each in group} for group in groups]
        made = [_mean_cell(row.name, column, own, source) for row, own in zip(rows, of_rows, strict=True)]
        return with_noise(_with_evidence(made, items))

    spreads: dict[Model, float] = {}
    cells: dict[Column, list[Cell]] = {}
    averaged = []
    for table in tables:
        new = [column for column in table.columns if column not in cells]
        cells |= {column: means(column, table.cells(column)) for column in new}
        # the spreads of the first table stay, so that its numbers do
        spreads = model_spreads([cells[column] for column in table.columns]) | spreads
        for column in new:
            whole = _with_intervals(with_spreads(cells[column], spreads), items)
            of_seeds = table.cells(column)
            conditions = dict.fromkeys(name for cell in of_seeds for name in cell.all_gains)
            gains = [_seed_gains(of_seeds, name) for name in conditions]
            gains = [_with_intervals(means(own[0].column, own), items) for own in gains]
            cells[column] = with_gains(whole, gains)
        scores = [cell for column in table.columns for cell in cells[column]]
        seeds = max((len(cell.by_seed) for cell in scores), default=0) or 1
        averaged.append(Table(rows=tuple(rows), columns=table.columns, scores=scores, seeds=seeds))
    return averaged


def _seed_gains(cells: Sequence[Cell], condition: str) -> list[Cell]:
    """The gains of seeds in one condition; an empty cell where there is none."""
    column = next(cell.all_gains[condition].column for cell in cells if condition in cell.all_gains)
    return [cell.all_gains.get(condition, Cell(row=cell.row, column=column, rows=cell.rows)) for cell in cells]


def _by_model(rows: Sequence[RowRecord]) -> dict[tuple[str | None, ...] | str, list[RowRecord]]:
    """The rows that differ only in their seed."""
    models: dict[tuple[str | None, ...] | str, list[RowRecord]] = {}
    for row in rows:
        models.setdefault(row.name if row.seed is None else row.but_for_seed, []).append(row)
    return models


def _mean_cell(row: str, column: Column, cells: Mapping[int | None, Cell], source: ReportSource) -> Cell:
    """The mean over seeds, without evidence and an interval from items; ``cells`` are by seed."""
    rows = tuple(cell.row for cell in cells.values())
    all_results = tuple(result for cell in cells.values() for result in cell.all_results)
    group = min((cell.group for cell in cells.values() if cell.value is not None), default=0)
    numbers = {seed: cell for seed, cell in cells.items() if cell.value is not None and cell.group == group}
    if not numbers:
        first = next(iter(cells.values()))
        return dataclasses.replace(first, row=row, column=column, rows=rows, all_results=all_results)
    by_seed = {seed: cell.value for seed, cell in numbers.items() if cell.value is not None}
    models = {cell.results[0].model.get("hash") or str(cell.results[0].path) for cell in numbers.values()}
    if len(models) == 1 and len({*by_seed.values()}) == 1:  # a pretrained model has one number for all seeds
        by_seed = dict([*by_seed.items()][:1])
    half_widths = [
        (cell.ci_high - cell.ci_low) / 2
        for cell in numbers.values()
        if cell.ci_low is not None and cell.ci_high is not None
    ]
    own = [*numbers.values()]
    is_published = len(own) == 1 and own[0].evidence is None  # whose interval is what was printed
    return Cell(
        row=row,
        column=column,
        value=fmean(by_seed.values()),
        ci_low=own[0].ci_low if is_published else None,
        ci_high=own[0].ci_high if is_published else None,
        n=own[0].n if len({cell.n for cell in own}) == 1 else 0,  # unknown, of seeds with scores for different items
        group=group,
        protocol_differences=own[0].protocol_differences,
        rows=rows,
        by_seed=by_seed,
        image_ci_half_width=fmean(half_widths) if half_widths else None,
        all_results=all_results,
        results=tuple(cell.results[0] for cell in own),
        trained=any(source.is_trained(cell.row, cell.results[0]) for cell in own),
    )


def with_noise(cells: Sequence[Cell]) -> list[Cell]:
    """The means of a column with the training noise of their protocol, pooled over distinct results."""
    noise = {
        group: training_noise([each.evidence for each in _distinct(cells, group) if each.evidence is not None])
        for group in {cell.group for cell in cells if cell.value is not None}
    }
    return [cell if cell.value is None else dataclasses.replace(cell, noise=noise[cell.group]) for cell in cells]


def _distinct(cells: Iterable[Cell], group: int) -> Iterable[Cell]:
    """The means of a protocol, once for rows with the same results."""
    return {
        cell.key: cell for cell in cells if cell.value is not None and cell.group == group and cell.by_seed
    }.values()


def model_spreads(columns: Iterable[Sequence[Cell]]) -> dict[Model, float]:
    """Model → how much its seeds differ relative to those of all models, averaged over ranked columns with noise."""
    spreads: dict[Model, list[float]] = {}
    for cells in columns:
        for group in sorted({cell.group for cell in cells if cell.column.ranked}):
            for cell in _distinct(cells, group):
                spread = None if cell.evidence is None else cell.noise.relative_spread(cell.evidence)
                if spread is not None:
                    spreads.setdefault(_model(cell), []).append(spread)
    return {model: fmean(own) for model, own in spreads.items()}


def with_spreads(cells: Sequence[Cell], spreads: Mapping[Model, float]) -> list[Cell]:
    """The cells of a column with the spreads of their models as a part of their evidence."""
    known = {cell.key: cell.evidence and dataclasses.replace(cell.evidence, spread=spreads.get(_model(cell)))
             for cell in cells}  # fmt: skip
    return [dataclasses.replace(cell, evidence=known[cell.key]) for cell in cells]


def _model(cell: Cell) -> Model:
    return tuple(str(result.model.get("hash") or result.path) for result in cell.results)
