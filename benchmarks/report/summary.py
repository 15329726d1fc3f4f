"""The headline and one sentence for each model, generated from the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.report.blind_gain import not_credited
from benchmarks.report.cell_text import column_title, decimals
from benchmarks.report.chance_level import no_row_above_chance
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
        cells = [cell for name in compared for cell in _compared_cells(table, name)]
        if len(compared) > 1 and not any(cell.delta and cell.delta.significant for cell in cells):
            baselines = {cell.delta.baseline for cell in cells if cell.delta}
            name = baselines.pop() if len(baselines) == 1 else "its baseline"
            return f"No model differs significantly from {name} on any metric."
        balances = {name: _balance(table, name) for name in compared}
        leader = max(compared, key=lambda name: balances[name])
        worse = [name for name in compared if balances[name][0] < 0]
        wins = any(_direction(cell) > 0 for cell in _compared_cells(table, leader))
        if wins or not worse or len(compared) == 1:
            return row_summary(table, leader)
        verb = "loses" if len(worse) == 1 else "lose"
        return f"No model beats its baseline on any metric; {join_or_count(worse, 'models')} {verb} to it on some."
    if not any(cell.value is not None for cell in table.cells.values()):
        return "There is no number yet; the table states the reasons."
    if len(table.rows) == 1:
        return "One model: there is no other to compare it with."
    if not table.comparisons:
        return "No two models could be tested against each other."
    best = [cell for cell in table.cells.values() if cell.mark == "best"]
    if not best and any(cell.withheld == "best" for cell in table.cells.values()):
        return ""  # `not_credited` names them
    if not best:
        return "No model differs significantly from all others on any metric."
    by_row: dict[str, list[str]] = {}
    for cell in best:
        by_row.setdefault(cell.row, []).append(column_title(cell.column))
    others = "others with the same settings" if any(cell.group for cell in table.cells.values()) else "others"
    where = join_with_and([f"{row} on {join_with_and(titles)}" for row, titles in by_row.items()])
    return f"Significantly different from all {others} by paired tests: {where}."


def row_summaries(table: Table) -> list[str]:
    """One sentence for each model with a baseline, in the order of the table."""
    return [row_summary(table, row.name) for row in table.rows if _compared_cells(table, row.name)]


def row_summary(table: Table, row: str) -> str:
    """``clips beats clip by 6.1 points [4.9, 7.3] on T→I R@1; no significant difference on POPE.``"""
    cells = _compared_cells(table, row)
    better, worse, equal = ([cell for cell in cells if _direction(cell) == sign] for sign in (1, -1, 0))
    baseline = cells[0].delta.baseline if cells[0].delta else ""
    uncredited = [cell for cell in equal if cell.delta and cell.delta.significant]
    equal = [cell for cell in equal if cell not in uncredited]
    if not better and not worse and not uncredited:
        return f"{row} and {baseline} do not differ significantly on any of {len(cells)} metrics."
    parts = []
    if better:
        parts.append(f"{row} beats {baseline} {_sizes(better)}")
    if worse:
        parts.append(f"{'it loses' if better else f'{row} loses to {baseline}'} {_sizes(worse)}")
    if equal:
        parts.append(f"no significant difference on {_titles(equal)}")
    if uncredited:
        parts.append(f"not credited to the images: the difference on {_titles(uncredited)}")
    text = "; ".join(parts)
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


def _direction(cell: Cell) -> int:
    """1 if significantly better than the baseline, -1 if worse, 0 if not significant or the better is not credited."""
    if cell.delta is None or not cell.delta.significant:
        return 0
    if cell.delta.credited is False:
        return 0
    return 1 if (cell.delta.value > 0) == bool(cell.column.higher_is_better) else -1


def _balance(table: Table, row: str) -> tuple[int, int]:
    """Significant gains minus losses, and their number."""
    directions = [_direction(cell) for cell in _compared_cells(table, row)]
    return sum(directions), sum(map(abs, directions))


def _size(cell: Cell) -> str:
    assert cell.delta is not None
    places = decimals(cell.column)
    sign = 1 if cell.delta.value > 0 else -1
    low, high = sorted((sign * cell.delta.ci_low, sign * cell.delta.ci_high))
    span = f" [{format_number(low, places)}, {format_number(high, places)}]" if math.isfinite(low) else ""
    return f"by {format_number(abs(cell.delta.value), places)} points{span} on {column_title(cell.column)}"
