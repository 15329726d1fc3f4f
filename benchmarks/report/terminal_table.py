"""The main table in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.report.cell_text import decimals, group_sign, margin, short_gap
from benchmarks.report.notes import PLAIN, TERMINAL
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell
from benchmarks.report.text_table import main_table
from benchmarks.results.formatting import format_number, strip_control_chars

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.text import Text

_EDGES = 3  # a column's edge and the blanks beside it


def print_report(report: Report, console: Console) -> None:
    """The main table, a sentence for each compared row, the legend and remarks. Names are text, never markup.

    Metrics go down the side where there are more of them than rows, so that the table stays narrow.
    """
    from rich.text import Text

    frame = main_table(report, _text, lambda text: Text(strip_control_chars(text), style="dim"))
    print_frame(frame.T if frame.shape[1] > len(frame) else frame, console, title=report.source.title)
    console.print(Text(strip_control_chars(report.answer), style="bold"))
    for sentence in report.other_sentences:
        console.print(Text(strip_control_chars(sentence)))
    if report.published:
        console.print(Text(f"Published. {REFERENCE_NOTE}", style="dim"))
        for part, widths in _fitted(report.published.text(), console.width):
            print_frame(part, console, widths=widths)
    for remark in report.below(TERMINAL if console.color_system else PLAIN):
        console.print(Text(f"  {strip_control_chars(remark)}", style="dim"))


def print_frame(
    frame: pd.DataFrame, console: Console, *, title: str = "", widths: Sequence[int | None] | None = None
) -> None:
    """A frame of texts as a table; names break where they are long and are never cut."""
    from rich.table import Table
    from rich.text import Text

    def plain(value: object, style: str = "") -> Text:
        return Text(value.plain if isinstance(value, Text) else strip_control_chars(str(value)), style=style)

    heading = plain(title) if title else None
    table = Table(title=heading, title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("", overflow="fold")
    for head, width in zip(frame.columns, widths or [None] * frame.shape[1], strict=True):
        table.add_column(plain(head), justify="right" if head else "left", overflow="fold", width=width)
    for name, line in zip(frame.index, frame.to_numpy(), strict=True):
        cells = (each if isinstance(each, Text) else plain(each) for each in line)
        table.add_row(plain(name, "bold"), *cells)
    console.print(table)


def _fitted(frame: pd.DataFrame, width: int) -> Iterator[tuple[pd.DataFrame, list[int] | None]]:
    """A frame of texts in parts no wider than the terminal, with the widths of their columns: metrics down the side
    where that is enough, else as many metrics side by side as there is room for, without the rows that have none."""
    on_side = frame.T
    if max(map(len, frame.columns)) + sum(_widths(on_side)) < width:
        yield on_side, None
        return
    room = width - min(max(map(len, frame.index)), width // 2) - _EDGES
    for places in _pages(_widths(frame), room):
        part = frame.iloc[:, places]
        yield part[(part != format_number(None, 0)).any(axis=1)], [each - _EDGES for each in _widths(part)]


def _widths(frame: pd.DataFrame) -> list[int]:
    """What each column takes at least: its head breaks between words."""
    texts = ((*head.split(), *frame.iloc[:, place]) for place, head in enumerate(frame.columns))
    return [max(map(len, each)) + _EDGES for each in texts]


def _pages(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns side by side, as many as there is room for, one at least."""
    page: list[int] = []
    for place, width in enumerate(widths):
        if page and sum(widths[each] for each in page) + width > room:
            yield page
            page = []
        page.append(place)
    yield page


def _text(cell: Cell) -> Text:
    from rich.text import Text

    if cell.value is None:
        return Text(
            short_gap(cell), style="red" if cell.missing and cell.missing.kind in {"failed", "invalid"} else "dim"
        )
    style = {"best": "bold green", "tied": "green", "": ""}[cell.mark]
    text = Text(format_number(cell.value, decimals(cell.column)), style=style)
    text.append(f" {margin(cell)}{group_sign(cell)}", style="dim")
    return text
