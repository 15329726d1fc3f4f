"""The main table as a frame of strings, models × metrics; as Markdown and in the terminal, LaTeX is in ``latex.py``.

Every format escapes names and reasons, since they come from untrusted files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.report.measures import cell_texts
from benchmarks.report.notes import MARKDOWN, PLAIN, TERMINAL, brief_notes, grouped_notes, mark_legend
from benchmarks.report.published import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.results.formatting import join_or_count, strip_control_chars
from clips.safe_text import escape_markdown

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

    columns = report.table.columns
    lines = [[cell(report.table.cells(column)[place]) for column in columns] for place in range(len(report.table.rows))]
    names = [row.name for row in report.table.rows]
    if report.table.has_chance_level:
        names.append("chance")
        lines.append([chance(column) if chance else text(column.chance_text) for column in columns])
    names.append("n")
    lines.append([text(column.items) for column in columns])
    headers = [text(column.title + column.arrow) for column in columns]
    return pd.DataFrame(lines, index=[text(name) for name in names], columns=headers, dtype=object)


def render_markdown(report: Report) -> str:
    """Markdown for a README: the answer, the main table and its notes, then published results."""
    import pandas as pd

    source = report.source
    title, question, verdict, answer = map(
        escape_markdown, (source.title, source.question, report.verdict, report.answer)
    )
    frame = main_table(report, _markdown_cell, escape_markdown)
    for index, heading in reversed(report.table.headings.items()):
        above = pd.DataFrame("", index=[f"**{escape_markdown(heading)}**"], columns=frame.columns)
        frame = pd.concat([frame.iloc[:index], above, frame.iloc[index:]])
    parts = [f"# {title}", question, verdict and f"**{verdict}**", answer]
    parts += [_pipe_table(frame), markdown_list(report.all_notes(MARKDOWN))]
    if reference := report.reference_results:
        parts += ["## Published numbers", REFERENCE_NOTE]
        parts += [markdown_frame(reference.text()), markdown_list(reference.sources())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_cell(cell: Cell) -> str:
    if cell.value is None:
        return cell.missing_label
    marked = {"best": "**{}**", "tied": "*{}*", "": "{}"}[cell.mark].format(cell.number)
    return " ".join([marked, *(text for _, text in cell_texts(cell, "markdown"))]) + cell.signs


def markdown_frame(frame: pd.DataFrame, *, left: Collection[str] = ()) -> str:
    """A frame of unescaped strings as a pipe table; the index and the columns ``left`` are left-aligned."""
    return _pipe_table(frame.map(escape_markdown).rename(escape_markdown).rename(escape_markdown, axis=1), left)


def _pipe_table(frame: pd.DataFrame, left: Collection[str] = ()) -> str:
    alignment = ["left", *("left" if name in left else "right" for name in frame.columns)]
    return frame.to_markdown(tablefmt="pipe", disable_numparse=True, colalign=alignment)


def markdown_list(lines: Iterable[str]) -> str:
    """Unescaped lines as a list."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


_BORDER = 3  # a column's border and its padding
_LONG = 14  # characters of a number with its margins; longer cells are remarks
_MOST_REASONS = 3  # why no model was tested


def print_report(report: Report, console: Console, *, all_notes: bool = False, brief: bool = False) -> None:
    """Print the main table, a sentence for each compared model, the legend and the notes; names are never markup.

    ``brief`` prints two lines instead: what was won and what was not, and the first caveats.
    """
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(strip_control_chars(text), style=style))

    if brief and report.verdict:
        line(f"{report.verdict} {report.answer.partition('. ')[0].rstrip('.')}.", "bold")
        if caveats := brief_notes(report.notes)[:2]:
            line(f"Caveats: {' '.join(caveats)}")
        return
    frame = main_table(report, _terminal_cell, lambda text: Text(strip_control_chars(text), style="dim"))
    groups = [row.group for row in report.table.rows]
    if any(groups):
        heads = itertools.zip_longest(groups, frame.index, fillvalue="")
        frame.index = [f"{group}: {name}" if group else name for group, name in heads]
    print_frame(frame, console, title=report.source.title, transposable=True)
    if report.verdict:
        line(report.verdict, "bold")
    line(report.answer)
    for sentence in report.other_sentences:
        line(sentence)
    if report.reference_results:
        line(f"Published. {REFERENCE_NOTE}", "dim")
        published = report.reference_results.text()
        print_frame(published, console, transposable=True)
    style = TERMINAL if console.color_system else PLAIN
    notes = report.all_notes(style) if all_notes else report.first_notes(style)
    if not report.table.differences:  # why nothing could be tested, in full
        reasons = [note.text for note in report.notes if note.kind in {"protocol", "other items", "untested"}]
        notes = reasons[:_MOST_REASONS] or notes
    elif not all_notes:  # whom the marks leave out, in full, too
        apart = [note.text for note in report.notes if note.kind == "other items"]
        others = brief_notes([note for note in report.notes if note.kind != "other items"])
        notes = [*mark_legend(report.table, style), *apart[:_MOST_REASONS], *others]
    for note in notes:
        line(f"  {note}", "dim")
    if report.notes and not all_notes:
        kinds = ", ".join(title.lower() for title, _ in grouped_notes(report.notes))
        line(f"  Other formats explain: {kinds}.", "dim")


def print_frame(frame: pd.DataFrame, console: Console, *, title: str = "", transposable: bool = False) -> None:
    """Print a frame of strings as one table; long texts wrap between words, and columns without room are named below.

    Args:
        frame: the frame.
        console: of the terminal.
        title: above the table.
        transposable: print the longer side as lines, or the other one if only this fits.
    """
    frames = [frame, frame.T] if transposable else [frame]
    frames.sort(key=lambda each: len(each) < each.shape[1])
    for each, wraps in itertools.product(frames, (False, True)):
        widths = _widths(each, console.width, wraps=wraps)
        if sum(widths) < console.width:
            _print_table(each, console, title, widths)
            return
    names, *columns = _widths(frames[0], 0)
    widths = [min(names, console.width // 3), *(min(width, console.width // 2) for width in columns)]
    count = max(1, sum(end < console.width for end in itertools.accumulate(widths)) - 1)
    _print_table(frames[0].iloc[:, :count], console, title, widths[: count + 1])
    left = [*map(str, frames[0].columns[count:])]
    if left:
        console.print(f"No room for {join_or_count(left, 'more columns')}; other formats have all.", markup=False)


def _print_table(frame: pd.DataFrame, console: Console, title: str, widths: Sequence[int]) -> None:
    from rich.table import Table
    from rich.text import Text

    def plain(value: object, style: str = "") -> Text:
        return Text(value.plain if isinstance(value, Text) else strip_control_chars(str(value)), style=style)

    table = Table(title=plain(title) if title else None, title_style="bold", title_justify="left", pad_edge=False)
    table.add_column("", overflow="fold", width=widths[0] - _BORDER)
    for header, width in zip(frame.columns, widths[1:], strict=True):
        table.add_column(plain(header), justify="right" if header else "left", overflow="fold", width=width - _BORDER)
    for name, line in zip(frame.index, frame.to_numpy(), strict=True):
        table.add_row(plain(name, "bold"), *(each if isinstance(each, Text) else plain(each) for each in line))
    console.print(table)


def _terminal_cell(cell: Cell) -> Text:
    from rich.text import Text

    if cell.value is None:
        failed = cell.missing is not None and cell.missing.kind in {"failed", "invalid"}
        return Text(cell.missing_label, style="red" if failed else "dim")
    text = Text(cell.number, style={"best": "bold green", "tied": "green", "": ""}[cell.mark])
    text.append(f" {' '.join(text for _, text in cell_texts(cell, 'terminal'))}{cell.signs}", style="dim")
    return text


def _widths(frame: pd.DataFrame, room: int, *, wraps: bool = True) -> list[int]:
    """The width of the names and of each column with its border: if nothing wraps, or if long texts do between words.

    The names, then the last column, that of remarks in a comparison, take what is left of ``room``.
    """
    names = ["", *map(str, frame.index)]
    texts = [names, *([str(header), *map(str, frame.iloc[:, place])] for place, header in enumerate(frame.columns))]
    whole = [max(map(len, each)) + _BORDER for each in texts]
    if not wraps:
        return whole
    parts = [
        [*header.split(), *(part for cell in cells for part in (cell.split() if len(cell) > _LONG else [cell]))]
        for header, *cells in texts
    ]
    widths = [max(map(len, each), default=0) + _BORDER for each in parts]
    for index in (0, -1):
        widths[index] += max(0, min(whole[index] - widths[index], room - 1 - sum(widths)))
    return widths
