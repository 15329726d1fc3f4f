"""Several seeds of a row made one: means with their intervals, and differences to the baseline, both over seeds.

Two kinds of noise are kept apart. All seeds see the same pictures, so that the interval over seeds (Student's t) is
the noise of *training*; the intervals that each seed's number had by itself are the noise of *sampling pictures*.
Differences are taken between rows of equal seed, which start from equal weights and see the data in equal order; their
t tests are Holm-corrected as one family.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import fmean, stdev

from benchmarks.report.source import ReportSource
from benchmarks.report.table import Cell, Column, Delta, Table
from benchmarks.statistics import LEVEL, POWER, holm
from benchmarks.study.record import RowRecord

_NO_SPREAD = 1e-9  # of the mean: less is rounding
_Group = tuple[RowRecord, ...]


def has_seeds(source: ReportSource) -> bool:
    """Whether some row was trained with more than one seed."""
    return len(_groups(source.rows)) < len(source.rows)


def over_seeds(table: Table) -> Table:
    """A table of one row for all seeds of a row, in the order of the first seed's rows."""
    groups = _groups(table.rows)
    rows = tuple(_summary_row(group) for group in groups)
    cells = {
        (row.name, column.benchmark, column.metric): _mean_cell(row.name, [table.cell(one, column) for one in group])
        for row, group in zip(rows, groups, strict=True)
        for column in table.columns
    }
    seeds = max(len(group) for group in groups)
    return _with_differences(Table(rows=rows, columns=table.columns, cells=cells, comparisons=0, seeds=seeds))


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of a normal sample; None for fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * _standard_error(values)
    return fmean(values) - half, fmean(values) + half


def t_test(values: Sequence[float]) -> float:
    """Two-sided p-value of "the mean is 0" from two or more values; without any spread 1 where it is 0, 0 where not."""
    from scipy import stats

    mean, error = fmean(values), _standard_error(values)
    if error <= _NO_SPREAD * abs(mean):
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1))


def smallest_shown(differences: Sequence[float]) -> float:
    """The smallest mean difference that a t test at 5 % over as many seeds shows four times in five; NaN if all agree.

    The sum of Student's two quantiles times the standard error, which for two or three seeds is somewhat too large.
    """
    from scipy import stats

    error, freedom = _standard_error(differences), len(differences) - 1
    return float(stats.t.ppf(1 - LEVEL / 2, freedom) + stats.t.ppf(POWER, freedom)) * error if error else math.nan


def _standard_error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values))


def _groups(rows: Sequence[RowRecord]) -> list[_Group]:
    found: dict[tuple[str | None, ...] | str, list[RowRecord]] = {}
    for row in rows:
        found.setdefault(row.name if row.seed is None else row.but_for_seed, []).append(row)
    return [tuple(group) for group in found.values()]


def _summary_row(group: _Group) -> RowRecord:
    first = group[0]
    baseline = first.baseline and _without_seed(first.baseline, first)
    return dataclasses.replace(first, name=_without_seed(first.name, first), seed=None, baseline=baseline)


def _without_seed(name: str, row: RowRecord) -> str:
    return name.removesuffix(f" (seed {row.seed})")


def _mean_cell(row: str, cells: list[Cell]) -> Cell:
    numbers = [cell for cell in cells if cell.value is not None and cell.group == _first_group(cells)]
    if not numbers:
        return dataclasses.replace(cells[0], row=row)
    values = {cell.seed: cell.value for cell in numbers if cell.value is not None}
    differ = len(set(values.values())) > 1  # they do not where nothing was trained: a pretrained encoder
    low, high = (t_interval([*values.values()]) if differ else None) or (None, None)
    halves = [(cell.high - cell.low) / 2 for cell in numbers if cell.low is not None and cell.high is not None]
    return dataclasses.replace(
        numbers[0],
        row=row,
        value=fmean(values.values()),
        low=low,
        high=high,
        by_seed=values,
        sampling=fmean(halves) if halves else None,
    )


def _first_group(cells: list[Cell]) -> int:
    return min((cell.group for cell in cells if cell.value is not None), default=0)


def _with_differences(table: Table) -> Table:
    pairs = [
        (cell, differences)
        for row in table.rows
        for column in table.columns
        if row.baseline and len(differences := _differences(table, row, column)) > 1
        for cell in [table.cell(row, column)]
    ]
    corrected = holm([t_test(differences) for _, differences in pairs])
    cells = dict(table.cells)
    baselines = {row.name: row.baseline for row in table.rows}
    for (cell, differences), p_value in zip(pairs, corrected, strict=True):
        low, high = t_interval(differences) or (math.nan, math.nan)
        baseline = baselines[cell.row]
        assert baseline is not None
        delta = Delta(
            baseline=baseline,
            value=fmean(differences),
            low=low,
            high=high,
            p_value=p_value,
            smallest=smallest_shown(differences),
        )
        cells[cell.row, cell.column.benchmark, cell.column.metric] = dataclasses.replace(cell, delta=delta)
    return dataclasses.replace(table, cells=cells, comparisons=len(pairs))


def _differences(table: Table, row: RowRecord, column: Column) -> list[float]:
    """Row minus baseline at each seed that both have."""
    cell = table.cell(row, column)
    base = table.cells.get((row.baseline or "", column.benchmark, column.metric))
    if base is None or cell.group != base.group:
        return []
    return [value - base.by_seed[seed] for seed, value in cell.by_seed.items() if seed in base.by_seed]
