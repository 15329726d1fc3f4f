"""Markdown: the table, the answer and the remarks, for a README."""

from __future__ import annotations

from benchmarks.report.chance import chance_words, has_chance
from benchmarks.report.model import Report
from benchmarks.report.published import REMARK
from benchmarks.report.remarks import MARKDOWN
from benchmarks.report.table import Cell
from benchmarks.wording import column_head, decimals, gap_words, group_sign, margin, number
from clips.visible import markdown_text


def render_markdown(report: Report) -> str:
    """The main table, its remarks and the answer."""
    table = report.table
    heads = ["", *(markdown_text(column_head(column)) for column in table.columns)]
    lines = [_pipes(heads), _pipes(["---", *(["---:"] * len(table.columns))])]
    for row in table.rows:
        cells = [_markdown_cell(table.cell(row, column)) for column in table.columns]
        lines.append(_pipes([markdown_text(row.name), *cells]))
    if has_chance(table):
        chance = [markdown_text(chance_words(column)) or "—" for column in table.columns]
        lines.append(_pipes(["chance", *chance]))
    lines.append(_pipes(["n", *(report.n_words(column) or "—" for column in table.columns)]))
    remarks = [f"- {markdown_text(remark)}" for remark in report.below(MARKDOWN)]
    title, question, answer = (
        markdown_text(text) for text in (report.source.title, report.source.question, report.answer)
    )
    parts = [f"# {title}", question, f"**{answer}**", "\n".join(lines), "\n".join(remarks), _markdown_published(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_published(report: Report) -> str:
    """The published rows as a table of their own, with their sources; empty without any."""
    table = report.published
    if table is None:
        return ""
    lines = [_pipes(["", *map(markdown_text, table.heads())]), _pipes(["---", *(["---:"] * len(table.columns))])]
    lines += [_pipes([markdown_text(table.name(row)), *map(markdown_text, table.texts(row))]) for row in table.rows]
    sources = [f"- {markdown_text(source)}" for source in table.sources()]
    return "\n\n".join(["## Published numbers", REMARK, "\n".join(lines), "\n".join(sources)])


def _markdown_cell(cell: Cell) -> str:
    if cell.value is None:
        return markdown_text(gap_words(cell))
    value = number(cell.value, decimals(cell.column))
    marked = {"best": f"**{value}**", "tied": f"*{value}*", "": value}[cell.mark]
    return marked + (f" {margin(cell)}" if margin(cell) else "") + group_sign(cell)


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
