"""Markdown: the table, the answer and the remarks, for a README."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from benchmarks.report.cell_text import decimals, gap_words, group_sign, margin
from benchmarks.report.notes import MARKDOWN
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell
from benchmarks.report.text_table import main_table, markdown_table
from benchmarks.results.formatting import format_number
from clips.sanitize import escape_markdown

if TYPE_CHECKING:
    import pandas as pd


def render_markdown(report: Report) -> str:
    """The main table, its remarks and the answer, then the published rows with their sources."""
    title, question, answer = map(escape_markdown, (report.source.title, report.source.question, report.answer))
    table = markdown_table(main_table(report, _markdown_cell, escape_markdown))
    parts = [f"# {title}", question, answer and f"**{answer}**", table, markdown_list(report.below(MARKDOWN))]
    if report.published:
        published, sources = markdown_frame(report.published.text()), markdown_list(report.published.sources())
        parts += ["## Published numbers", REFERENCE_NOTE, published, sources]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_frame(frame: pd.DataFrame) -> str:
    """A frame of any texts as a pipe table."""
    return markdown_table(frame.map(escape_markdown).rename(escape_markdown).rename(escape_markdown, axis=1))


def markdown_list(lines: Iterable[str]) -> str:
    """Texts as a list."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    if cell.value is None:
        return escape_markdown(gap_words(cell))
    value = format_number(cell.value, decimals(cell.column))
    marked = {"best": f"**{value}**", "tied": f"*{value}*", "": value}[cell.mark]
    return marked + (f" {margin(cell)}" if margin(cell) else "") + group_sign(cell)
