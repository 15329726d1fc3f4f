"""The answer in one sentence, and one sentence for every row, made from the tests and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.report.cell_text import column_title, decimals
from benchmarks.report.chance_level import no_row_above_chance
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import format_number, join_or_count, join_with_and

_WITH_SIZE = 2


def headline(table: Table) -> str:
    """The sentence for the row that differs most from its baseline, and where no row is told from chance."""
    return " ".join(filter(None, (_comparison(table), no_row_above_chance(table))))


def _comparison(table: Table) -> str:
    """The sentence for the row that differs most from its baseline, gains counted before losses."""
    compared = [row.name for row in table.rows if _deltas(table, row.name)]
    if compared:
        leader = max(compared, key=lambda name: _gains(table, name))
        behind = [name for name in compared if _gains(table, name)[0] < 0]
        return (
            row_summary(table, leader)
            if _wins(table, leader) or not behind or len(compared) == 1
            else _none_beats(behind)
        )
    if not any(cell.value is not None for cell in table.cells.values()):
        return "There is no number yet; the table says why."
    if len(table.rows) == 1:
        return "One row: there is nothing to compare it with."
    if not table.comparisons:
        return "No two rows could be tested against each other."
    best = [cell for cell in table.cells.values() if cell.mark == "best"]
    if not best:
        return "No row can be told from all the others on any measure."
    by_row: dict[str, list[str]] = {}
    for cell in best:
        by_row.setdefault(cell.row, []).append(column_title(cell.column))
    others = "others measured alike" if any(cell.group for cell in table.cells.values()) else "others"
    told = join_with_and([f"{row} on {join_with_and(on)}" for row, on in by_row.items()])
    return f"Told from all {others} by paired tests: {told}."


def row_summaries(table: Table) -> list[str]:
    """One sentence for every row that has a baseline, in the order of the table."""
    return [row_summary(table, row.name) for row in table.rows if _deltas(table, row.name)]


def row_summary(table: Table, row: str) -> str:
    """``clips beats clip by 6.1 points [4.9, 7.3] on T→I R@1; on POPE no difference could be shown.``"""
    cells = _deltas(table, row)
    better = [cell for cell in cells if _gain(cell) > 0]
    worse = [cell for cell in cells if _gain(cell) < 0]
    alike = [cell for cell in cells if _gain(cell) == 0]
    baseline = cells[0].delta.baseline if cells[0].delta else ""
    if not better and not worse:
        return f"Between {row} and {baseline} no difference could be shown on any of {len(cells)} measures."
    parts = []
    if better:
        parts.append(f"{row} beats {baseline} {_on(better)}")
    if worse:
        parts.append(f"{'it loses' if better else f'{row} loses to {baseline}'} {_on(worse)}")
    if alike:
        parts.append(f"on {_named(alike)} no difference could be shown")
    return "; ".join(parts) + "."


def _on(cells: Sequence[Cell]) -> str:
    """The sizes on the first measures, each of another benchmark, and the names of the other measures."""
    leading: dict[str, Cell] = {}
    for cell in cells:
        if len(leading) < _WITH_SIZE:
            leading.setdefault(cell.column.benchmark, cell)
    rest = [cell for cell in cells if cell not in leading.values()]
    sizes = join_with_and([_by(cell) for cell in leading.values()])
    return sizes + (f", and also on {_named(rest)}" if rest else "")


def _named(cells: Sequence[Cell]) -> str:
    return join_or_count([column_title(cell.column) for cell in cells], "other measures")


def _deltas(table: Table, row: str) -> list[Cell]:
    """The row's cells that can be compared, in the order of the columns; those of unranked columns left out."""
    return [
        cell
        for column in table.columns
        for cell in [table.cells[row, column.benchmark, column.metric]]
        if cell.delta is not None and column.higher_is_better is not None
    ]


def _gain(cell: Cell) -> int:
    """1 where the row is better than its baseline, -1 where worse, 0 where no difference was shown."""
    if cell.delta is None or not cell.delta.significant:
        return 0
    return 1 if (cell.delta.value > 0) == bool(cell.column.higher_is_better) else -1


def _wins(table: Table, row: str) -> bool:
    return any(_gain(cell) > 0 for cell in _deltas(table, row))


def _none_beats(behind: Sequence[str]) -> str:
    """``No row beats its baseline on any measure; a and b lose to it on some.``"""
    names = join_or_count(behind, "rows")
    return f"No row beats its baseline on any measure; {names} {'loses' if len(behind) == 1 else 'lose'} to it on some."


def _gains(table: Table, row: str) -> tuple[int, int]:
    gains = [_gain(cell) for cell in _deltas(table, row)]
    return sum(gains), sum(map(abs, gains))


def _by(cell: Cell) -> str:
    assert cell.delta is not None
    places = decimals(cell.column)
    sign = 1 if cell.delta.value > 0 else -1
    low, high = sorted((sign * cell.delta.ci_low, sign * cell.delta.ci_high))
    span = f" [{format_number(low, places)}, {format_number(high, places)}]" if math.isfinite(low) else ""
    return f"by {format_number(abs(cell.delta.value), places)} points{span} on {column_title(cell.column)}"
