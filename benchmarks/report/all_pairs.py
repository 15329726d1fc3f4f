"""The differences of all pairs of models on each metric, and a matrix of the significant ones.

The tests are those of the main table, in one family: on request every pair of models of every ranked column,
Holm-corrected together. ``scripts/check_statistics.py --part pairs`` simulates the familywise error.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter

from benchmarks.report.cell_text import UNCREDITED
from benchmarks.report.figure import FigureSet
from benchmarks.report.forest_plots import Difference, credit_note, difference_figure, effect_direction
from benchmarks.report.report import Report
from benchmarks.report.significance import paired_difference
from benchmarks.report.table import Column

MATRIX_TITLE = "Numbers of significant differences"
_SIGNS = {"better": "▲", "worse": "▼", "not credited": UNCREDITED, "not significant": "≈"}


@functools.lru_cache(maxsize=1)  # shared by all formats
def pair_differences(report: Report) -> dict[Column, list[Difference]]:
    """Ranked column → the tested pairs of models, each with the better one first, in the order of the scores."""
    table, found = report.table, dict[Column, list[Difference]]()
    for column in table.columns if report.pairs == "all" else ():
        numbers = [cell for cell in table.column_cells(column) if cell.value is not None]
        best_first = sorted(numbers, key=lambda cell: cell.value or 0.0, reverse=bool(column.higher_is_better))
        for cell, other in itertools.combinations(best_first, 2):
            delta = paired_difference(cell, other, report.evidence, table.p_values)
            if delta is not None and column.ranked:
                found.setdefault(column, []).append((cell, delta))
    return found


def all_pairs(report: Report) -> FigureSet | None:
    """A figure for each metric, and the matrix; None unless the report has all pairs."""
    pairs = pair_differences(report)
    if not pairs:
        return None
    rows = [row.name for row in report.table.rows]
    counts = Counter[tuple[str, str, str]]()
    for cell, delta in itertools.chain(*pairs.values()):
        better = effect_direction(cell, delta)
        counts[cell.row, delta.baseline, better] += 1
        counts[delta.baseline, cell.row, "worse" if better == "better" else better] += 1
    matrix = [
        (row, *(" ".join(f"{sign}{counts[row, other, name]}" for name, sign in _SIGNS.items()
                         if counts[row, other, name]) or "—" for other in rows))
        for row in rows
    ]  # fmt: skip
    return FigureSet(
        lead="The difference of each pair of models, the better one first, with its 95 % interval, which is not "
        f"corrected. P-values are Holm-corrected in one family, the {report.table.comparisons} tests of the main "
        "table: all pairs of models with scores for the same items under the same settings, on all ranked metrics"
        + (", and differences from the baseline on the others." if report.table.baselines - {None} else "."),
        figures=tuple(difference_figure(column, found, "pairs") for column, found in pairs.items()),
        notes=(
            "The matrix counts the metrics on which the model of the row is significantly better (▲) or worse (▼) than "
            "that of the column, or does not differ significantly (≈)." + credit_note(itertools.chain(*pairs.values())),
        ),
        headers=("model", *rows),
        rows=tuple(matrix),
    )
