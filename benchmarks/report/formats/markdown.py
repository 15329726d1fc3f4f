"""Markdown: the table, the answer and the remarks, for a README."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from benchmarks.report.model import Report
from benchmarks.report.published import REMARK
from benchmarks.report.remarks import MARKDOWN
from benchmarks.report.table import Cell
from benchmarks.report.text_table import main_table, markdown_table
from benchmarks.wording import decimals, gap_words, group_sign, margin, number
from clips.visible import markdown_text

if TYPE_CHECKING:
    import pandas as pd


def render_markdown(report: Report) -> str:
    """The main table, its remarks and the answer, then the published rows with their sources."""
    title, question, answer = map(markdown_text, (report.source.title, report.source.question, report.answer))
    table = markdown_table(main_table(report, _markdown_cell, markdown_text))
    parts = [f"# {title}", question, answer and f"**{answer}**", table, markdown_list(report.below(MARKDOWN))]
    if report.published:
        published, sources = markdown_frame(report.published.text()), markdown_list(report.published.sources())
        parts += ["## Published numbers", REMARK, published, sources]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_frame(frame: pd.DataFrame) -> str:
    """A frame of any texts as a pipe table."""
    return markdown_table(frame.map(markdown_text).rename(markdown_text).rename(markdown_text, axis=1))


def markdown_list(lines: Iterable[str]) -> str:
    """Texts as a list."""
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    if cell.value is None:
        return markdown_text(gap_words(cell))
    value = number(cell.value, decimals(cell.column))
    marked = {"best": f"**{value}**", "tied": f"*{value}*", "": value}[cell.mark]
    return marked + (f" {margin(cell)}" if margin(cell) else "") + group_sign(cell)
