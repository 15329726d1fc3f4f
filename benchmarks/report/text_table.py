"""Tables for readers: frames of strings, models × metrics, which pandas and rich render."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.report.cell_text import NOT_RUN, column_header, decimals, margin, missing_label, signs
from benchmarks.report.chance_level import chance_text, has_chance_level
from benchmarks.report.notes import PLAIN, TERMINAL
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results.formatting import format_number, strip_control_chars

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.text import Text


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


def row_headings(table: Table) -> dict[int, str]:
    """Index of a row of the table → the heading above it."""
    groups = [row.group for row in table.rows]
    return {index: group for index, group in enumerate(groups) if group and (index == 0 or group != groups[index - 1])}


def markdown_table(frame: pd.DataFrame, *, left: Collection[str] = ()) -> str:
    """A frame of Markdown strings as a pipe table; the index and the columns ``left`` are left-aligned."""
    alignment = ["left", *("left" if name in left else "right" for name in frame.columns)]
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


_BORDER = 3  # a column's border and its padding
_LONG = 14  # characters of a number with its margins; longer cells are remarks


def print_report(report: Report, console: Console) -> None:
    """Print the main table, a sentence for each compared model, the legend and the notes; names are never markup.

    The table is transposed if it has more metrics than models, so that it stays narrow, and split if it is too wide.
    """
    from rich.text import Text

    frame = main_table(report, _text, lambda text: Text(strip_control_chars(text), style="dim"))
    groups = [row.group for row in report.table.rows]
    if any(groups):
        heads = itertools.zip_longest(groups, frame.index, fillvalue="")
        frame.index = [f"{group}: {name}" if group else name for group, name in heads]
    whole = [frame.T, frame] if frame.shape[1] > len(frame) else [frame, frame.T]
    for number, (part, widths) in enumerate(_split(frame, console.width, whole)):
        print_frame(part, console, title="" if number else report.source.title, widths=widths)
    console.print(Text(strip_control_chars(report.answer), style="bold"))
    for sentence in report.other_sentences:
        console.print(Text(strip_control_chars(sentence)))
    if report.reference_results:
        console.print(Text(f"Published. {REFERENCE_NOTE}", style="dim"))
        published = report.reference_results.text()
        for part, widths in _split(published, console.width, [published.T]):
            print_frame(part, console, widths=widths)
    for note in report.all_notes(TERMINAL if console.color_system else PLAIN):
        console.print(Text(f"  {strip_control_chars(note)}", style="dim"))


def print_frame(
    frame: pd.DataFrame, console: Console, *, title: str = "", widths: Sequence[int | None] | None = None
) -> None:
    """Print a frame of strings as a table; long names wrap and are never cut."""
    from rich.table import Table
    from rich.text import Text

    def plain(value: object, style: str = "") -> Text:
        return Text(value.plain if isinstance(value, Text) else strip_control_chars(str(value)), style=style)

    table = Table(title=plain(title) if title else None, title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("", overflow="fold")
    for header, width in zip(frame.columns, widths or [None] * frame.shape[1], strict=True):
        table.add_column(plain(header), justify="right" if header else "left", overflow="fold", width=width)
    for name, line in zip(frame.index, frame.to_numpy(), strict=True):
        table.add_row(plain(name, "bold"), *(each if isinstance(each, Text) else plain(each) for each in line))
    console.print(table)


def _split(
    frame: pd.DataFrame, width: int, whole: Iterable[pd.DataFrame]
) -> Iterator[tuple[pd.DataFrame, list[int] | None]]:
    """Parts of a frame no wider than the terminal, with their column widths.

    That is the first frame of ``whole`` that fits, else groups of columns of ``frame``, each without the rows that have
    neither a number nor a failure in it.
    """
    for each in whole:
        if max(map(len, each.index), default=0) + sum(_min_widths(each)) < width:
            yield each, None
            return
    room = width - min(max(map(len, frame.index), default=0), width // 2) - _BORDER
    for indices in _column_groups(_min_widths(frame, _LONG), room):
        part = frame.iloc[:, indices]
        shown = ~part.map(str).isin([format_number(None, 0), NOT_RUN]).all(axis=1)
        yield part[shown], [min(each, max(room, 2 * _BORDER)) - _BORDER for each in _min_widths(part, _LONG)]


def _min_widths(frame: pd.DataFrame, unbroken: int = 0) -> list[int]:
    """The minimum width of each column; headers wrap between words, and cells of more than ``unbroken`` characters."""
    cells = ([str(cell) for cell in frame.iloc[:, index]] for index in range(frame.shape[1]))
    texts = (
        [*str(header).split(), *(word for cell in each for word in (cell.split() if len(cell) > unbroken else [cell]))]
        for header, each in zip(frame.columns, cells, strict=True)
    )
    return [max(map(len, each), default=0) + _BORDER for each in texts]


def _column_groups(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    group: list[int] = []
    for index, width in enumerate(widths):
        if group and sum(widths[each] for each in group) + width > room:
            yield group
            group = []
        group.append(index)
    yield group


def _text(cell: Cell) -> Text:
    from rich.text import Text

    if cell.value is None:
        failed = cell.missing is not None and cell.missing.kind in {"failed", "invalid"}
        return Text(missing_label(cell), style="red" if failed else "dim")
    style = {"best": "bold green", "tied": "green", "": ""}[cell.mark]
    text = Text(format_number(cell.value, decimals(cell.column)), style=style)
    text.append(f" {margin(cell)}{signs(cell)}", style="dim")
    return text
