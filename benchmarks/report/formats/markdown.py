"""Markdown: the table, the answer and the notes, for a README."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from benchmarks.report.cell_text import decimals, margin, missing_text, signs
from benchmarks.report.notes import MARKDOWN
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell
from benchmarks.report.text_table import main_table, markdown_table, row_headings
from benchmarks.results.formatting import format_number
from clips.safe_text import escape_markdown

if TYPE_CHECKING:
    import pandas as pd


def render_markdown(report: Report) -> str:
    """The answer, the main table and its notes, then published results."""
    import pandas as pd

    title, question, answer = map(escape_markdown, (report.source.title, report.source.question, report.answer))
    frame = main_table(report, _markdown_cell, escape_markdown)
    for index, heading in reversed(row_headings(report.table).items()):
        above = pd.DataFrame("", index=[f"**{escape_markdown(heading)}**"], columns=frame.columns)
        frame = pd.concat([frame.iloc[:index], above, frame.iloc[index:]])
    table = markdown_table(frame)
    parts = [f"# {title}", question, answer and f"**{answer}**", table, markdown_list(report.all_notes(MARKDOWN))]
    if reference := report.reference_results:
        parts += ["## Published numbers", REFERENCE_NOTE]
        parts += [markdown_frame(reference.text()), markdown_list(reference.sources())]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_frame(frame: pd.DataFrame, *, left: Collection[str] = ()) -> str:
    """A frame of unescaped strings as a pipe table; see `markdown_table`."""
    return markdown_table(frame.map(escape_markdown).rename(escape_markdown).rename(escape_markdown, axis=1), left=left)


def markdown_list(lines: Iterable[str]) -> str:
    """Unescaped lines as a list."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    if cell.value is None:
        return escape_markdown(missing_text(cell))
    value = format_number(cell.value, decimals(cell.column))
    marked = {"best": f"**{value}**", "tied": f"*{value}*", "": value}[cell.mark]
    return marked + (f" {margin(cell)}" if margin(cell) else "") + signs(cell)
