"""The main table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.report.model import Report
from benchmarks.report.published import REMARK, PublishedTable
from benchmarks.report.remarks import PLAIN, TERMINAL
from benchmarks.report.table import Cell
from benchmarks.report.wording import column_head, decimals, group_sign, margin, number, short_gap, visible

if TYPE_CHECKING:
    from rich.console import Console


def print_table(report: Report, console: Console) -> None:
    """The main table, a sentence for each compared row, the legend and remarks. Names are text, never markup.

    Metrics go down the side where there are more of them than rows, so that the table stays narrow.
    """
    from rich.table import Table
    from rich.text import Text

    model = report.table
    heads = [column_head(column) for column in model.columns]
    names = [row.name for row in model.rows]
    cells = [[_text(model.cell(row, column)) for column in model.columns] for row in model.rows]
    if len(heads) > len(names):
        heads, names, cells = names, heads, [list(column) for column in zip(*cells, strict=True)]
    table = Table(title=Text(visible(report.source.title)), title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("")
    for head in heads:
        table.add_column(Text(visible(head)), justify="right", overflow="fold")
    for name, line in zip(names, cells, strict=True):
        table.add_row(Text(visible(name), style="bold"), *line)
    console.print(table)
    console.print(Text(visible(report.answer), style="bold"))
    for sentence in report.sentences:
        if sentence != report.answer:
            console.print(Text(visible(sentence)))
    if report.published:
        _print_published(report.published, console)
    for remark in report.below(TERMINAL if console.color_system else PLAIN):
        console.print(Text(f"  {visible(remark)}", style="dim"))


def _print_published(published: PublishedTable, console: Console) -> None:
    """Below the main table, rows of others; metrics go down the side."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"Published. {REMARK}", style="dim"), title_justify="left", pad_edge=False)
    table.add_column("")
    for row in published.rows:
        table.add_column(Text(visible(published.name(row))), justify="right", overflow="fold")
    columns = zip(*(published.texts(row) for row in published.rows), strict=True)
    for head, texts in zip(published.heads(), columns, strict=True):
        table.add_row(head, *texts)
    console.print(table)


def _text(cell: Cell):  # rich is imported only when a table is printed
    from rich.text import Text

    if cell.value is None:
        return Text(short_gap(cell), style="red" if cell.gap and cell.gap.kind == "failed" else "dim")
    style = {"best": "bold green", "tied": "green", "": ""}[cell.mark]
    text = Text(number(cell.value, decimals(cell.column)), style=style)
    text.append(f" {margin(cell)}{group_sign(cell)}", style="dim")
    return text
