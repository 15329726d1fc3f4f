"""The main table in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.report.chance import chance_words, has_chance
from benchmarks.report.model import Report
from benchmarks.report.published import REMARK, PublishedTable
from benchmarks.report.remarks import PLAIN, TERMINAL
from benchmarks.report.table import Cell
from benchmarks.wording import column_head, decimals, group_sign, margin, number, short_gap, visible

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
    if has_chance(model):
        names.append("chance")
        cells.append([Text(chance_words(column) or "—", style="dim") for column in model.columns])
    names.append("n")
    cells.append([Text(report.n_words(column) or "—", style="dim") for column in model.columns])
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
    for sentence in report.other_sentences:
        console.print(Text(visible(sentence)))
    if report.published:
        _print_published(report.published, console)
    for remark in report.below(TERMINAL if console.color_system else PLAIN):
        console.print(Text(f"  {visible(remark)}", style="dim"))


def _print_published(published: PublishedTable, console: Console) -> None:
    """Below the main table, rows of others; metrics go down the side where that is not wider than the terminal.

    Otherwise rows do, in as many tables as the columns take; a row is left out of those that it has no number for.
    """
    from rich.text import Text

    console.print(Text(f"Published. {REMARK}", style="dim"))
    names, heads = [published.name(row) for row in published.rows], published.heads()
    lines = [published.texts(row) for row in published.rows]
    columns = [list(column) for column in zip(*lines, strict=True)]
    if max(map(len, heads)) + sum(_width(name, line) for name, line in zip(names, lines, strict=True)) < console.width:
        _print_texts(heads, names, columns, console, narrow=False)
        return
    widths = [_width(head, column) for head, column in zip(heads, columns, strict=True)]
    for places in _pages(widths, console.width - min(max(map(len, names)), console.width // 2) - _EDGES):
        chosen = {name: [line[place] for place in places] for name, line in zip(names, lines, strict=True)}
        there = {name: line for name, line in chosen.items() if set(line) != {number(None, 0)}}
        _print_texts([*there], [heads[place] for place in places], [*there.values()], console)


_EDGES = 3  # a column's edge and the blanks beside it


def _width(head: str, cells: Sequence[str]) -> int:
    """What a column takes at least: its head breaks between words."""
    return max(len(text) for text in (*head.split(), *cells)) + _EDGES


def _pages(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns side by side, as many as there is room for, one at least."""
    page: list[int] = []
    for place, width in enumerate(widths):
        if page and sum(widths[each] for each in page) + width > room:
            yield page
            page = []
        page.append(place)
    yield page


def _print_texts(
    names: Sequence[str], heads: Sequence[str], lines: Sequence[Sequence[str]], console: Console, *, narrow: bool = True
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(pad_edge=False)
    table.add_column("", overflow="fold")
    for head, column in zip(heads, zip(*lines, strict=True), strict=True):
        width = _width(head, column) - _EDGES if narrow else None
        table.add_column(Text(visible(head)), justify="right", overflow="fold", width=width)
    for name, line in zip(names, lines, strict=True):
        table.add_row(Text(visible(name)), *line)
    console.print(table)


def _text(cell: Cell):  # rich is imported only when a table is printed
    from rich.text import Text

    if cell.value is None:
        return Text(short_gap(cell), style="red" if cell.gap and cell.gap.kind in {"failed", "invalid"} else "dim")
    style = {"best": "bold green", "tied": "green", "": ""}[cell.mark]
    text = Text(number(cell.value, decimals(cell.column)), style=style)
    text.append(f" {margin(cell)}{group_sign(cell)}", style="dim")
    return text
