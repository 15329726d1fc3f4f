"""Tables as people read them: frames of texts, models down and metrics across, which pandas and rich write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.report.cell_text import column_head
from benchmarks.report.chance_level import chance_text, has_chance_level
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import format_number

if TYPE_CHECKING:
    import pandas as pd


def main_table(
    report: Report,
    cell: Callable[[Cell], Any],
    text: Callable[[str], Any],
    chance: Callable[[Column], Any] | None = None,
) -> pd.DataFrame:
    """The wide view of a report's table, below the models the lines on chance, where it is known, and on n.

    Args:
        report: the report.
        cell: what a format shows of a number, or of its absence.
        text: what it shows of a name or of the words in the two last lines.
        chance: what it shows of a column's chance; its words where not given.
    """
    import pandas as pd

    table, none = report.table, format_number(None, 0)
    lines = [[cell(table.cell(row, column)) for column in table.columns] for row in table.rows]
    names = [row.name for row in table.rows]
    if has_chance_level(table):
        names.append("chance")
        lines.append([chance(column) if chance else text(chance_text(column) or none) for column in table.columns])
    names.append("n")
    lines.append([text(report.n_words(column) or none) for column in table.columns])
    heads = [text(column_head(column)) for column in table.columns]
    return pd.DataFrame(lines, index=[text(name) for name in names], columns=heads, dtype=object)


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of Markdown texts as a pipe table."""
    aligned = ["left", *["right"] * frame.shape[1]]
    return frame.to_markdown(tablefmt="pipe", disable_numparse=True, colalign=aligned)


def latex_table(frame: pd.DataFrame, *, foot: int = 0) -> list[str]:
    """A frame of LaTeX texts as the lines of a booktabs tabular.

    Args:
        frame: where its columns have two levels, the upper one is above a rule over what it has in common.
        foot: how many of the last lines are below a rule.
    """
    width = frame.shape[1]
    written = frame.style.to_latex(column_format="l" + "r" * width, hrules=True, multicol_align="c")
    lines = written.splitlines()
    if frame.columns.nlevels > 1:
        lines.insert(lines.index(r"\midrule") - 1, " ".join(_rules([*frame.columns.get_level_values(0)])))
    if foot:
        lines.insert(lines.index(r"\bottomrule") - foot, r"\midrule")
    return lines


def _rules(above: list[str]) -> list[str]:
    starts = [place for place, name in enumerate(above) if place == 0 or name != above[place - 1]]
    ends = [*starts[1:], len(above)]
    return [rf"\cmidrule(lr){{{start + 2}-{end + 1}}}" for start, end in zip(starts, ends, strict=True)]
