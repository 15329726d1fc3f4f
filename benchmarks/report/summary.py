"""The headline and one sentence for each model, generated from the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.report.blind_gain import not_credited
from benchmarks.report.cell_text import column_title, decimals, unread_differences
from benchmarks.report.chance_level import no_row_above_chance
from benchmarks.report.notes import marked_apart
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import format_number, join_or_count, join_with_and

_MAX_SIZES = 2


def headline(table: Table) -> str:
    """The sentence on the model that differs most from its baseline, and on metrics without a model above chance."""
    leading = [cell for cell in table.cells.values() if cell.withheld]
    return " ".join(filter(None, (_comparison(table), not_credited(leading), no_row_above_chance(table))))


def _comparison(table: Table) -> str:
    compared = [row.name for row in table.rows if _compared_cells(table, row.name)]
    if compared:
        if len(compared) == 1:
            return row_summary(table, compared[0])
        directions = {name: [_direction(cell) for cell in _compared_cells(table, name)] for name in compared}
        better = [name for name in compared if 1 in directions[name]]
        if better:
            return row_summary(table, max(better, key=lambda name: (sum(directions[name]), directions[name].count(1))))
        return _none_better(table, [name for name in compared if -1 in directions[name]])
    if not any(cell.value is not None for cell in table.cells.values()):
        return "There is no number yet; the table states the reasons."
    if len(table.rows) == 1:
        return "One model: there is no other to compare it with."
    if not _tests(table):
        return "No two models could be tested against each other."
    best = [cell for cell in table.cells.values() if cell.mark == "best"]
    if not best and any(cell.withheld == "best" for cell in table.cells.values()):
        return ""  # `not_credited` names them
    others = "others"
    if parts := marked_apart(table):
        others += f" with the same {join_with_and(parts)}"
    if not best:
        return "No model is significantly better than all others on any metric."
    by_row: dict[str, list[str]] = {}
    for cell in best:
        by_row.setdefault(cell.row, []).append(column_title(cell.column))
    where = join_with_and([f"{row} on {join_with_and(titles)}" for row, titles in by_row.items()])
    text = f"Significantly better than all {others} by paired tests: {where}"
    unread = unread_differences(table, best, {row.name for row in table.rows})
    return f"{text}; different shares of answers were not read: {unread}." if unread else f"{text}."


def _tests(table: Table) -> int:
    """Number of tests on the ranked columns of the table."""
    ranked = {(column.benchmark, column.metric) for column in table.columns if column.ranked}
    return sum(key[:2] in ranked for key in table.p_values)


def _none_better(table: Table, worse: Sequence[str]) -> str:
    """The sentence where no model is better than its baseline in any test."""
    cells = [cell for row in table.rows for cell in _compared_cells(table, row.name)]
    baselines = {cell.delta.baseline for cell in cells if cell.delta}
    name = baselines.pop() if len(baselines) == 1 else "its baseline"
    uncredited = [cell for cell in cells if cell.delta and cell.delta.significant and not _direction(cell)]
    if not worse and not uncredited:
        text = f"No model differs significantly from {name} in any of {len(cells)} tests"
    else:
        text = f"No model beats {name} in any of {len(cells)} tests"
    parts = [
        text,
        *(
            [f"{join_or_count(worse, 'models')} {'loses' if len(worse) == 1 else 'lose'} to it in some"]
            if worse
            else []
        ),
        *([f"not credited to the images: the difference of {_cells(uncredited)}"] if uncredited else []),
    ]
    untested = [cell for row in table.rows for cell in _untested_cells(table, row.name)]
    return "; ".join(parts + ([f"not tested: {_cells(untested)}"] if untested else [])) + "."


def _cells(cells: Sequence[Cell]) -> str:
    return join_or_count([f"{cell.row} on {column_title(cell.column)}" for cell in cells], "numbers")


def row_summaries(table: Table) -> list[str]:
    """One sentence for each model with a baseline and a number of both, in the order of the table."""
    return [
        row_summary(table, row.name)
        for row in table.rows
        if _compared_cells(table, row.name) or _untested_cells(table, row.name)
    ]


def row_summary(table: Table, row: str) -> str:
    """``clips beats clip by 6.1 points [4.9, 7.3] on T→I R@1; no significant difference on POPE.``"""
    cells, untested = _compared_cells(table, row), _untested_cells(table, row)
    baseline = next(each.baseline for each in table.rows if each.name == row) or ""
    if not cells:
        return f"{row} was not tested against {baseline} on {_titles(untested)}."
    not_tested = f"; not tested on {_titles(untested)}" if untested else ""
    better, worse, equal = ([cell for cell in cells if _direction(cell) == sign] for sign in (1, -1, 0))
    uncredited = [cell for cell in equal if cell.delta and cell.delta.significant]
    equal = [cell for cell in equal if cell not in uncredited]
    if not better and not worse and not uncredited:
        where = f"any of {len(cells)} metrics" if len(cells) > 1 else _titles(cells)
        return f"{row} and {baseline} do not differ significantly on {where}{not_tested}."
    parts = []
    if better:
        parts.append(f"{row} beats {baseline} {_sizes(better)}")
    if worse:
        parts.append(f"{'it loses' if better else f'{row} loses to {baseline}'} {_sizes(worse)}")
    if equal:
        parts.append(f"no significant difference on {_titles(equal)}")
    if uncredited:
        parts.append(f"not credited to the images: the difference on {_titles(uncredited)}")
    if unread := unread_differences(table, [*better, *worse], {baseline}):
        parts.append(f"different shares of answers were not read: {unread}")
    text = "; ".join(parts) + not_tested
    return f"{text if better or worse else f'{row} and {baseline}: {text}'}."


def _sizes(cells: Sequence[Cell]) -> str:
    """The differences on the first metrics, each of another benchmark, and the other metrics or their benchmarks."""
    first: dict[str, Cell] = {}
    for cell in cells:
        if len(first) < _MAX_SIZES:
            first.setdefault(cell.column.benchmark, cell)
    others = [cell for cell in cells if cell not in first.values()]
    sizes = join_with_and([_size(cell) for cell in first.values()])
    return sizes + (f", and also on {_titles(others)}" if others else "")


def _titles(cells: Sequence[Cell]) -> str:
    benchmarks = join_or_count([*dict.fromkeys(cell.column.benchmark for cell in cells)], "benchmarks")
    return join_or_count([column_title(cell.column) for cell in cells], f"metrics of {benchmarks}")


def _compared_cells(table: Table, row: str) -> list[Cell]:
    """The model's cells with a difference from the baseline, in ranked columns."""
    return [
        cell
        for column in table.columns
        for cell in [table.cells[row, column.benchmark, column.metric]]
        if cell.delta is not None and column.ranked
    ]


def _untested_cells(table: Table, row: str) -> list[Cell]:
    """The model's cells without a test against the baseline, though both have a number, in ranked columns."""
    baseline = next(each.baseline for each in table.rows if each.name == row)
    found = []
    for column in table.columns if baseline else ():
        cell, base = (table.cells.get((name or "", column.benchmark, column.metric)) for name in (row, baseline))
        numbers = cell is not None and base is not None and cell.value is not None and base.value is not None
        if cell is not None and numbers and cell.delta is None and column.ranked:
            found.append(cell)
    return found


def _direction(cell: Cell) -> int:
    """1 if significantly better than the baseline, -1 if worse, 0 if not significant or the better is not credited."""
    if cell.delta is None or not cell.delta.significant:
        return 0
    if cell.delta.credited is False:
        return 0
    return 1 if (cell.delta.value > 0) == bool(cell.column.higher_is_better) else -1


def _size(cell: Cell) -> str:
    assert cell.delta is not None
    places = decimals(cell.column)
    sign = 1 if cell.delta.value > 0 else -1
    low, high = sorted((sign * cell.delta.ci_low, sign * cell.delta.ci_high))
    span = f" [{format_number(low, places)}, {format_number(high, places)}]" if math.isfinite(low) else ""
    return f"by {format_number(abs(cell.delta.value), places)} points{span} on {column_title(cell.column)}"
