"""The main table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.report.model import Report
from benchmarks.report.table import Cell
from benchmarks.report.wording import column_head, decimals, group_sign, half_width, number, short_gap, visible

if TYPE_CHECKING:
    from rich.console import Console


def print_table(report: Report, console: Console) -> None:
    """The answer, the main table and its remarks. Names are printed as text, never as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(visible(report.source.title)), title_style="bold", header_style="", pad_edge=False)
    table.add_column("")
    for column in report.table.columns:
        table.add_column(Text(visible(column_head(column))), justify="right", overflow="fold")
    for row in report.table.rows:
        cells = [_text(report.table.cell(row, column)) for column in report.table.columns]
        table.add_row(Text(visible(row.name), style="bold"), *cells)
    console.print(table)
    console.print(Text(visible(report.answer), style="bold"))
    for remark in report.remarks:
        console.print(Text(f"  {visible(remark)}", style="dim"))


def _text(cell: Cell):  # rich is imported only when a table is printed
    from rich.text import Text

    if cell.value is None:
        return Text(short_gap(cell), style="red" if cell.gap and cell.gap.kind == "failed" else "dim")
    style = {"best": "bold green", "tied": "green", "": ""}[cell.mark]
    text = Text(number(cell.value, decimals(cell.column)), style=style)
    text.append(f" {half_width(cell)}{group_sign(cell)}", style="dim")
    return text
