"""Tables for readers: frames of strings, models × metrics, which pandas and rich render."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.report.cell_text import column_header
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
    """The wide view of a report's table: a line per model, the chance levels if any are known, and n.

    Args:
        report: the report.
        cell: formats a number or a missing value.
        text: formats a name, or a text of the last two lines.
        chance: formats a column's chance levels; by default as text.
    """
    import pandas as pd

    table, none = report.table, format_number(None, 0)
    lines = [[cell(table.cell(row, column)) for column in table.columns] for row in table.rows]
    names = [row.name for row in table.rows]
    if has_chance_level(table):
        names.append("chance")
        lines.append([chance(column) if chance else text(chance_text(column) or none) for column in table.columns])
    names.append("n")
    lines.append([text(report.items_text(column) or none) for column in table.columns])
    headers = [text(column_header(column)) for column in table.columns]
    return pd.DataFrame(lines, index=[text(name) for name in names], columns=headers, dtype=object)


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of Markdown strings as a pipe table."""
    alignment = ["left", *["right"] * frame.shape[1]]
    return frame.to_markdown(tablefmt="pipe", disable_numparse=True, colalign=alignment)


def latex_table(frame: pd.DataFrame, *, num_footer_lines: int = 0) -> list[str]:
    """A frame of LaTeX strings as the lines of a booktabs tabular.

    Args:
        frame: with two column levels, a rule groups the columns with equal upper headers.
        num_footer_lines: number of last lines below a rule.
    """
    column_format = "l" + "r" * frame.shape[1]
    lines = frame.style.to_latex(column_format=column_format, hrules=True, multicol_align="c").splitlines()
    if frame.columns.nlevels > 1:
        lines.insert(lines.index(r"\midrule") - 1, " ".join(_rules([*frame.columns.get_level_values(0)])))
    if num_footer_lines:
        lines.insert(lines.index(r"\bottomrule") - num_footer_lines, r"\midrule")
    return lines


def _rules(headers: list[str]) -> list[str]:
    starts = [index for index, name in enumerate(headers) if index == 0 or name != headers[index - 1]]
    stops = [*starts[1:], len(headers)]
    return [rf"\cmidrule(lr){{{start + 2}-{stop + 1}}}" for start, stop in zip(starts, stops, strict=True)]
