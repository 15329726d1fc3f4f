"""LaTeX: the main table as a float with booktabs, for a paper."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.report.cell_text import UNCREDITED, decimals, interval_text, margin, missing_text, score, signs
from benchmarks.report.chance_level import trivial_baselines
from benchmarks.report.latex_style import COLUMN_GAP, FloatFit, fit_float, split_columns
from benchmarks.report.notes import LATEX, mark_legend, variance_sources
from benchmarks.report.overall import Interval, Overall
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column, RankMark, Table
from benchmarks.report.text_table import latex_table, main_table, row_headings
from benchmarks.results.formatting import format_number, strip_control_chars
from benchmarks.results.results import CHANCE

if TYPE_CHECKING:
    import pandas as pd

_PACKAGES = r"% \usepackage{booktabs}; names with accents: \usepackage[T1]{fontenc}"
_CENTERING = r"\centering"  # once in each float
_ROWS_PER_FLOAT = 45
_Shown = Literal["values", "inline", "intervals"]  # inline: values with intervals


def render_latex(report: Report) -> str:
    """The main table as floats with captions, published results as another one, and notes as comments.

    A table is set in one column or across both, at 9 to 7 pt; one that is wider is divided by its columns. Characters
    that pdflatex lacks (Chinese, emoji) become their code points.
    """
    name = re.sub(r"[^a-z0-9]+", "-", report.source.title.casefold()).strip("-") or "results"
    intervals = report.latex.intervals
    if intervals == "auto":
        intervals = "inline" if fit_float(_texts(report, "inline")) else "separate"
    shown: _Shown = "inline" if intervals == "inline" else "values"
    parts = _floats(report, _caption(report, inline=shown == "inline"), f"tab:{name}", shown)
    if intervals == "separate":
        caption = latex_text(f"95 % intervals over {variance_sources(report.table)}.")
        parts += _floats(report, caption, f"tab:{name}-intervals", "intervals")
    parts += map(_comment, report.all_notes(LATEX))
    if report.reference_results:
        parts += _frame_floats(report.reference_results.text(), REFERENCE_NOTE, f"tab:{name}-published")
        parts += map(_comment, report.reference_results.sources())
    return "\n".join([_PACKAGES, *parts]) + "\n"


def _frame_floats(frame: pd.DataFrame, caption: str, label: str) -> list[str]:
    """A frame of unescaped strings, in as many floats as its rows and columns need."""
    lines: list[str] = []
    for start in range(0, len(frame), _ROWS_PER_FLOAT):
        part = frame.iloc[start : start + _ROWS_PER_FLOAT]
        texts = [[*map(str, part.index)], *([name, *part[name]] for name in part.columns)]
        escaped = part.map(latex_text).rename(latex_text).rename(latex_text, axis=1)
        for columns in split_columns(texts):
            number = f"-{lines.count(_CENTERING) + 1}" if lines else ""
            fit = fit_float([texts[0], *(texts[1 + index] for index in columns)])
            lines += _float(latex_text(caption), label + number, latex_table(escaped.iloc[:, columns]), fit)
    return lines


def _floats(report: Report, caption: str, label: str, shown: _Shown) -> list[str]:
    """The main table, in as many floats as its columns need."""
    frame, texts = _frame(report, shown), _texts(report, shown)
    num_lines = len(frame) - len(report.table.rows)
    parts = split_columns(texts)
    lines: list[str] = []
    for number, columns in enumerate(parts):
        fit = fit_float([texts[0], *(texts[1 + index] for index in columns)])
        title = caption if number == 0 else latex_text(f"Continued: part {number + 1} of {len(parts)}.")
        tabular = latex_table(frame.iloc[:, columns], num_footer_lines=num_lines)
        tabular = _with_groups(tabular, report.table, 1 + len(columns))
        lines += _float(title, label + (f"-{number + 1}" if number else ""), tabular, fit)
    return lines


def _with_groups(tabular: list[str], table: Table, num_columns: int) -> list[str]:
    """A heading above each group of models, and a space between models of different LLMs."""
    start = tabular.index(r"\midrule") + 1
    headings = row_headings(table)
    for index, row in reversed([*enumerate(table.rows)]):
        if index in headings:
            heading = rf"\multicolumn{{{num_columns}}}{{l}}{{\textit{{{latex_text(headings[index])}}}}} \\"
            tabular[start + index : start + index] = [r"\midrule", heading] if index else [heading]
        elif index and row.llm != table.rows[index - 1].llm:
            tabular.insert(start + index, r"\addlinespace")
    return tabular


def _caption(report: Report, *, inline: bool) -> str:
    sentences = [report.answer]
    if report.latex.marks == "ranks":
        sentences.append(
            "Bold: best; underlined: second best, both without regard to tests and among models with the same "
            "settings; equal numbers share a mark. A circle: tested against the best without a significant difference."
        )
    else:
        sentences += [line for line in mark_legend(report.table, LATEX) if line.startswith(("Best", "Tied"))]
    if any(cell.credited is False for cell in report.table.cells.values()):
        sentences.append(f"{UNCREDITED}: not credited to the images, and without a mark.")
    if inline and any(margin(cell) for cell in report.table.cells.values()):
        sentences.append(f"With 95 % intervals over {variance_sources(report.table)}.")
    return latex_text(" ".join(sentences))


def _float(caption: str, label: str, tabular: Sequence[str], fit: FloatFit | None) -> list[str]:
    fit = fit or FloatFit(environment="table*", size=r"\scriptsize")
    opening = [rf"\begin{{{fit.environment}}}[t]", _CENTERING, fit.size]
    opening += [rf"\setlength{{\tabcolsep}}{{{COLUMN_GAP:g}pt}}", rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    return [*opening, *tabular, rf"\end{{{fit.environment}}}"]


def _frame(report: Report, shown: _Shown) -> pd.DataFrame:
    """The main table with the benchmarks above their metrics, then the averages and mean ranks."""
    import pandas as pd

    cell = _interval if shown == "intervals" else functools.partial(_cell, report, shown == "inline")
    frame = main_table(report, cell, latex_text, _chance)
    headers = [(latex_text(column.benchmark), _metric_header(column)) for column in report.table.columns]
    for title, numbers, overall, benchmarks in _overall(report):
        of_rows = [
            _overall_text(numbers[row.name], shown) + latex_text(overall.sign(row.name, benchmarks))
            for row in report.table.rows
        ]
        frame[title] = of_rows + [""] * (len(frame) - len(of_rows))
        headers.append(("all", title))
    frame.columns = pd.MultiIndex.from_tuples(headers)
    return frame


def _overall(report: Report) -> list[tuple[str, dict[str, Interval], Overall, tuple[str, ...]]]:
    """Title, numbers and benchmarks of the columns over several benchmarks."""
    found = [
        (title + overall.of.replace(" of the", ","), numbers, overall, benchmarks)
        for overall in report.overall
        for title, numbers, benchmarks in (
            ("average", overall.averages, overall.averaged),
            ("mean rank", overall.ranks, overall.ranked),
        )
    ]
    rows = {row.name for row in report.table.rows}
    return [each for each in found if each[1].keys() == rows]


def _overall_text(found: Interval, shown: _Shown) -> str:
    value = latex_text(format_number(found.value, 1))
    if math.isnan(found.low):
        return latex_text("—") if shown == "intervals" else value
    low, high = (latex_text(format_number(each, 1)) for each in (found.low, found.high))
    if shown == "intervals":
        return f"{low} -- {high}"
    return value + (rf" {{\scriptsize [{low}, {high}]}}" if shown == "inline" else "")


def _texts(report: Report, shown: _Shown) -> list[list[str]]:
    """The texts of each column as printed, the models' names first."""
    as_text = {"inline": score, "intervals": interval_text, "values": lambda cell: score(cell).split(" ")[0]}[shown]
    columns = [[row.name for row in report.table.rows]]
    for column in report.table.columns:
        texts = [missing_text(cell) or as_text(cell) for cell in report.table.column_cells(column)]
        chance = [text if name == CHANCE else f"{name} {text}" for name, text in trivial_baselines(column).items()]
        above = column.benchmark[:: sum(each.benchmark == column.benchmark for each in report.table.columns)]
        columns.append([above, column.label, *texts, *chance, report.items_text(column)])
    columns += [[title, "0" * {"inline": 16, "intervals": 13, "values": 4}[shown]] for title, *_ in _overall(report)]
    return columns


def _chance(column: Column) -> str:
    """Chance, and below it the trivial baselines that score higher."""
    lines = [text if name == CHANCE else f"{name} {text}" for name, text in trivial_baselines(column).items()]
    first, *others = map(latex_text, lines or ["—"])
    small = "".join(rf"\\{{\scriptsize {other}}}" for other in others)
    return rf"\shortstack[r]{{{first}{small}}}" if others else first


def _metric_header(column: Column) -> str:
    """The metric's label; empty if it repeats the benchmark above it."""
    label = "" if column.label == column.benchmark else column.label
    return latex_text(label + (" ↓" if column.higher_is_better is False else ""))


def _cell(report: Report, inline: bool, cell: Cell) -> str:
    if cell.value is None:
        return latex_text(missing_text(cell))
    value = latex_text(format_number(cell.value, decimals(cell.column)))
    mark = cell.mark if report.latex.marks == "tests" else _rank_mark(report.table, cell)
    marked = {"best": rf"\textbf{{{value}}}", "tied": rf"\underline{{{value}}}", "": value}[mark]
    circle = r"$^{\circ}$" if report.latex.marks == "ranks" and _equals_top(report.table, cell) else ""
    return marked + circle + (_margin(margin(cell)) if inline else "") + latex_text(signs(cell))


def _ranked(table: Table, cell: Cell) -> list[float]:
    """The different numbers of a cell's column and protocol as printed, best first; empty without a direction."""
    if not cell.column.ranked:
        return []
    places = decimals(cell.column)
    values = {round(each.value, places) for each in table.column_cells(cell.column)
              if each.value is not None and each.group == cell.group}  # fmt: skip
    return sorted(values, reverse=bool(cell.column.higher_is_better))


def _rank_mark(table: Table, cell: Cell) -> RankMark:
    if cell.credited is False:
        return ""
    first_two = _ranked(table, cell)[:2]
    rank = dict(zip(first_two, ("best", "tied"), strict=False)) if len(first_two) > 1 else {}
    found = rank.get(round(cell.value or 0.0, decimals(cell.column)), "")
    return "best" if found == "best" else "tied" if found == "tied" else ""


def _equals_top(table: Table, cell: Cell) -> bool:
    """Whether a credited cell was tested against the top of its column without a significant difference."""
    if cell.credited is False:
        return False
    group = [each for each in table.column_cells(cell.column) if each.value is not None and each.group == cell.group]
    if not cell.column.ranked or len(group) < 2:
        return False
    top = (max if cell.column.higher_is_better else min)(group, key=lambda each: each.value or 0.0)
    return table.differs(top, cell) is False


def _interval(cell: Cell) -> str:
    return latex_text(interval_text(cell) or missing_text(cell) or "—")


def _margin(text: str) -> str:
    """An interval at 7 pt; without superscripts, whose digits would be smaller."""
    if not text:
        return ""
    above, asymmetric, below = text[1:].replace("\N{NARROW NO-BREAK SPACE}", r"\,").partition("/")
    inner = rf"$+${above}/$-${below[1:]}" if asymmetric else rf"$\pm${above}"
    return rf" {{\scriptsize {inner}}}"


def _comment(text: str) -> str:
    return "% " + strip_control_chars(_one_line(text))


def latex_text(text: str) -> str:
    """Text escaped for pdflatex, on one line."""
    return _encoder().unicode_to_latex(strip_control_chars(_one_line(text)))


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text).strip()  # str.split would also replace narrow no-break spaces


@functools.cache
def _encoder() -> Any:
    from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    special = {ord(character): latex for character, latex in _SPECIAL.items()}
    cyrillic = {code: _code_point(chr(code)) for code in range(0x400, 0x530)}  # pdflatex's default font has none
    rule = UnicodeToLatexConversionRule(RULE_DICT, special | cyrillic)
    return UnicodeToLatexEncoder(
        conversion_rules=[rule, "defaults"], unknown_char_policy=_code_point, unknown_char_warning=False
    )


_SPECIAL = {
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{REPLACEMENT CHARACTER}": "?",
    "|": r"\textbar{}",
    "−": "$-$",
    "→": r"$\rightarrow$",  # text arrows need a font that is rarely installed as outlines
    "←": r"$\leftarrow$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "▲": r"$\bigtriangleup$",  # filled ones need amssymb
    "▼": r"$\bigtriangledown$",
}


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
