"""Chance levels: the scores of trivial baselines, and the models that are significantly above them.

A score is significantly above chance if its 95 % interval is above all trivial baselines: guessing among the options,
always answering yes, and always naming the majority class.
"""

from __future__ import annotations

import math

from benchmarks.report.cell_text import column_title, decimals
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.formatting import decimals_needed, format_number, join_or_count, join_with_and
from benchmarks.results.results import CHANCE


def has_chance_level(table: Table) -> bool:
    """Whether the chance level of any column is known."""
    return any(column.chance_levels for column in table.columns)


def trivial_baselines(column: Column) -> dict[str, str]:
    """Trivial baseline → its score as text: chance, and the baselines that score higher."""
    chance = column.chance_levels.get(CHANCE)
    return {
        name: format_number(value, decimals_needed(value, decimals(column)))
        for name, value in column.chance_levels.items()
        # of C equally frequent classes, the majority class scores as chance does, except for rounding
        if name == CHANCE or chance is None or (value > chance and not math.isclose(value, chance))
    }


def chance_text(column: Column) -> str:
    """``"50.0"``, or ``"50.0 (always yes 66.7)"``; empty if chance is unknown."""
    baselines = trivial_baselines(column)
    chance = baselines.pop(CHANCE, "")
    others = ", ".join(f"{name} {text}" for name, text in baselines.items())
    return chance + (f" ({others})" if others else "")


def is_above_chance(cell: Cell) -> bool | None:
    """Whether a cell's interval is above all trivial baselines; None without an interval or known chance level."""
    column, levels = cell.column, cell.column.chance_levels.values()
    if not levels or cell.group or cell.ci_low is None or cell.ci_high is None or column.higher_is_better is None:
        return None
    return cell.ci_low > max(levels) if column.higher_is_better else cell.ci_high < min(levels)


def _title(column: Column) -> str:
    """The metric, with the trivial baselines that score above chance: ``pope F1 (always yes)``."""
    others = [name for name in trivial_baselines(column) if name != CHANCE]
    return column_title(column) + (f" ({' or '.join(others)})" if others else "")


def no_row_above_chance(table: Table) -> str:
    """A sentence on the metrics on which no model is significantly above chance; empty if there are none.

    It omits columns with a number that is not known to be above chance or not: one without an interval, or of another
    protocol than that of the chance level.
    """
    above = {
        column: {is_above_chance(cell) for cell in table.column_cells(column) if cell.value is not None}
        for column in table.columns
        if column.chance_levels and column.higher_is_better is not None
    }
    none_above = [column for column, values in above.items() if values == {False}]
    if not none_above:
        return ""
    if len(none_above) == len(above) > 1:
        return "No model is significantly above chance on any metric with a known chance level."
    return f"No model is significantly above chance on {join_or_count([*map(_title, none_above)], 'metrics')}."


def chance_notes(table: Table) -> list[str]:
    """Notes below the table: the definition of chance, and the scores not significantly above it."""
    if not has_chance_level(table):
        return []
    by_model: dict[str, list[str]] = {}
    for column in table.columns:
        for cell in table.column_cells(column):
            if is_above_chance(cell) is False:
                by_model.setdefault(cell.row, []).append(_title(column))
    names = list(dict.fromkeys(name for column in table.columns for name in trivial_baselines(column)))
    others = join_with_and([name for name in names if name != CHANCE]) if names[1:] else ""
    by_metrics: dict[tuple[str, ...], list[str]] = {}
    for row, titles in by_model.items():
        by_metrics.setdefault(tuple(titles), []).append(row)
    where = [f"{join_or_count(rows, 'models')} on {join_or_count(on, 'metrics')}" for on, rows in by_metrics.items()]
    lines = [
        "Chance is the score of guessing among the answers, computed from the same items"
        + (f", with {others} where that scores higher." if others else ".")
    ]
    if where:
        lines.append(f"Not significantly above chance (the interval is not entirely better): {'; '.join(where)}.")
    return lines
