"""Aggregation of seeds: one row of means for all seeds of a model, with intervals over images and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.report.load_results import ReportSource
from benchmarks.report.significance import Evidence
from benchmarks.report.table import Cell, SeedVariance, Table
from benchmarks.study.rows import RowRecord


def has_seeds(source: ReportSource) -> bool:
    """Whether a model was trained with more than one seed."""
    return len(groups(source.rows)) < len(source.rows)


def groups(rows: Sequence[RowRecord]) -> list[tuple[RowRecord, ...]]:
    """Groups of rows that differ only in their seed, in the order of their first rows."""
    by_model: dict[tuple[str | None, ...] | str, list[RowRecord]] = {}
    for row in rows:
        by_model.setdefault(row.name if row.seed is None else row.but_for_seed, []).append(row)
    return [tuple(group) for group in by_model.values()]


def aggregate_seeds(table: Table, evidence: Evidence) -> Table:
    """A table with one row for all seeds of a model, in the order of the first seeds."""
    members = groups(table.rows)
    by_name = {row.name: row for row in table.rows}
    rows = tuple(_mean_row(group, by_name) for group in members)
    cells = {
        (row.name, column.benchmark, column.metric): _mean_cell(row.name, [table.cell(one, column) for one in group])
        for row, group in zip(rows, members, strict=True)
        for column in table.columns
    }
    means = Table(rows=rows, columns=table.columns, cells=cells, comparisons=0)
    evidence.pool_training_noise(means)
    means = with_intervals(means, evidence)
    return dataclasses.replace(means, seeds=max((len(cell.by_seed) for cell in means.cells.values()), default=0) or 1)


def with_intervals(table: Table, evidence: Evidence) -> Table:
    """The table with 95 % intervals computed from items, over images and, if known, seeds."""
    cells = {key: _with_interval(cell, evidence) for key, cell in table.cells.items()}
    return dataclasses.replace(table, cells=cells)


def _mean_row(group: tuple[RowRecord, ...], by_name: Mapping[str, RowRecord]) -> RowRecord:
    first, compared = group[0], next((row for row in group if row.baseline), group[0])
    baseline = compared.baseline and _without_seed(compared.baseline, by_name.get(compared.baseline, compared))
    return dataclasses.replace(first, name=_without_seed(first.name, first), seed=None, baseline=baseline)


def _without_seed(name: str, row: RowRecord) -> str:
    return name.removesuffix(f" (seed {row.seed})")


def _mean_cell(row: str, cells: list[Cell]) -> Cell:
    group = min((cell.group for cell in cells if cell.value is not None), default=0)
    numbers = [cell for cell in cells if cell.value is not None and cell.group == group]
    if not numbers:
        return dataclasses.replace(cells[0], row=row)
    values = {cell.seed: cell.value for cell in numbers if cell.value is not None}
    half_widths = [
        (cell.ci_high - cell.ci_low) / 2 for cell in numbers if cell.ci_low is not None and cell.ci_high is not None
    ]
    return dataclasses.replace(
        numbers[0],
        row=row,
        value=fmean(values.values()),
        ci_low=None,
        ci_high=None,
        by_seed=values,
        members=tuple(cell.row for cell in numbers),
        image_ci_half_width=fmean(half_widths) if half_widths else None,
    )


def _with_interval(cell: Cell, evidence: Evidence) -> Cell:
    scores, found = evidence.scores(cell), evidence.interval(cell)
    if scores is None or found is None:
        missing = cell.value is not None and cell.ci_low is None
        return dataclasses.replace(cell, no_interval=evidence.why_no_scores(cell)) if missing else cell
    low, high = (None if end is None else end * cell.column.scale for end in (found.low, found.high))
    by_seed = dict([*cell.by_seed.items()][: scores.num_seeds])  # a pretrained model has one number for all seeds
    return dataclasses.replace(
        cell,
        ci_low=low,
        ci_high=high,
        by_seed=by_seed,
        seed_variance=_seed_variance(scores.trained, evidence, cell) if cell.members else "",
        no_interval=found.reason,
    )


def _seed_variance(trained: bool, evidence: Evidence, cell: Cell) -> SeedVariance:
    if not trained:
        return "none"
    return "included" if evidence.training_noise(cell).degrees else "unknown"
