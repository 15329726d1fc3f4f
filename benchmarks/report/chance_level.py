"""Which scores are told from those of answers that are made without looking, and how the latter are put into words.

A score is told from chance where its 95 % interval lies above all that such answers give: a guess among the options,
and, where it gives more, always saying yes or always naming the majority class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from benchmarks.report.cell_text import column_title, decimals
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.formatting import decimals_needed, format_number, join_or_count, join_with_and
from benchmarks.results.results import CHANCE


def has_chance_level(table: Table) -> bool:
    """Whether chance is known of some column."""
    return any(column.chance_levels for column in table.columns)


def trivial_baselines(column: Column) -> dict[str, str]:
    """Way of answering without looking → its score as shown; beside chance itself only ways that give more."""
    best = column.chance_levels.get(CHANCE)
    kept = {
        way: value for way, value in column.chance_levels.items() if way == CHANCE or best is None or _more(value, best)
    }
    return {way: format_number(value, decimals_needed(value, decimals(column))) for way, value in kept.items()}


def _more(value: float, best: float) -> bool:
    """Whether it is more, and by more than rounding: naming one of C equally common classes gives what a lot gives."""
    return value > best and not math.isclose(value, best)


def chance_text(column: Column) -> str:
    """``"50.0"``, or ``"50.0 (always yes 66.7)"``; empty where chance is not known."""
    parts = trivial_baselines(column)
    others = ", ".join(f"{way} {text}" for way, text in parts.items() if way != CHANCE)
    return parts.get(CHANCE, "") + (f" ({others})" if others else "")


def is_above_chance(cell: Cell) -> bool | None:
    """Whether a cell's interval lies above all that answers without looking give; None where that cannot be said."""
    blind: Mapping[str, float] = cell.column.chance_levels
    if not blind or cell.group or cell.ci_low is None or cell.ci_high is None or cell.column.higher_is_better is None:
        return None
    return cell.ci_low > max(blind.values()) if cell.column.higher_is_better else cell.ci_high < min(blind.values())


def _measure(column: Column) -> str:
    """The measure, and what gives more on it than guessing does: ``pope F1 (always yes)``."""
    others = [way for way in trivial_baselines(column) if way != CHANCE]
    return column_title(column) + (f" ({' or '.join(others)})" if others else "")


def no_row_above_chance(table: Table) -> str:
    """A sentence on the measures on which no row at all is told from chance; empty where there is none. Of a measure
    that some rows were asked by another protocol, whose chance is not that of the column, nothing is said."""
    told = {column: [is_above_chance(cell) for cell in table.column_cells(column)] for column in table.columns}
    known = [column for column, said in told.items() if set(said) - {None}]
    apart = {column for column in known if any(cell.group for cell in table.column_cells(column))}
    lost = [column for column in known if True not in told[column] and column not in apart]
    if not lost:
        return ""
    if len(lost) == len(known) > 1:
        return "No row can be told from chance on any measure of which chance is known."
    return f"No row can be told from chance on {join_or_count([_measure(column) for column in lost], 'measures')}."


def chance_notes(table: Table) -> list[str]:
    """Lines for below the table: what chance is, and which scores are not told from it."""
    if not has_chance_level(table):
        return []
    lost: dict[str, list[str]] = {}
    for column in table.columns:
        for cell in table.column_cells(column):
            if is_above_chance(cell) is False:
                lost.setdefault(cell.row, []).append(_measure(column))
    ways = list(dict.fromkeys(way for column in table.columns for way in trivial_baselines(column)))
    beside = (
        f", beside it {join_with_and([way for way in ways if way != CHANCE])} where that gives more" if ways[1:] else ""
    )
    alike: dict[tuple[str, ...], list[str]] = {}
    for row, names in lost.items():
        alike.setdefault(tuple(names), []).append(row)
    where = [f"{join_or_count(rows, 'rows')} on {join_or_count(names, 'measures')}" for names, rows in alike.items()]
    return [
        f"Chance is what guessing among the answers gives, computed from the same items{beside}.",
        *(
            [f"Not told from chance, since the interval is not wholly better than it: {'; '.join(where)}."]
            if where
            else []
        ),
    ]
