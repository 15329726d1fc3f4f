"""LaTeX: the main table as a float with booktabs, for a paper."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from benchmarks.report.cell_text import decimals, gap_words, group_sign, margin
from benchmarks.report.chance_level import trivial_baselines
from benchmarks.report.notes import LATEX
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.report.text_table import latex_table, main_table
from benchmarks.results.formatting import format_number, strip_control_chars
from benchmarks.results.results import CHANCE

_NEEDS = r"% \usepackage{booktabs,graphicx}; names with accents: \usepackage[T1]{fontenc}"
# a table that is wider than the column is made narrower, others stay as they are
_FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def render_latex(report: Report) -> str:
    """The main table as a ``table`` float with a caption, the published rows as a second one; remarks as comments.

    What pdflatex has no sign for (Chinese, emoji) stands as its code point.
    """
    name = re.sub(r"[^a-z0-9]+", "-", report.source.title.casefold()).strip("-") or "results"
    parts = [
        *_float(_caption(report), f"tab:{name}", _rows(report)),
        *(_comment(remark) for remark in report.below(LATEX)),
    ]
    if report.published:
        sources = [_comment(source) for source in report.published.sources()]
        rows = report.published.text().map(latex_text).rename(latex_text).rename(latex_text, axis=1)
        parts += [*_float(latex_text(REFERENCE_NOTE), f"tab:{name}-published", latex_table(rows)), *sources]
    return "\n".join([_NEEDS, *parts]) + "\n"


def _caption(report: Report) -> str:
    marks = {cell.mark for cell in report.table.cells.values()}
    said = [report.answer]
    if "best" in marks:
        said.append("Bold: significantly different from every other model of its column (paired test).")
    if "tied" in marks:
        said.append("Underlined: at the top of its column, without a significant difference.")
    if any(margin(cell) for cell in report.table.cells.values()):
        said.append(f"With 95 % intervals{' over images and seeds' if report.table.seeds else ''}.")
    return latex_text(" ".join(said))


def _float(caption: str, label: str, tabular: Sequence[str]) -> list[str]:
    opening = [r"\begin{table}[t]", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}"]
    return [*opening, rf"\caption{{{caption}}}", rf"\label{{{label}}}", _FITTED, *tabular, "}", r"\end{table}"]


def _rows(report: Report) -> list[str]:
    """A tabular whose head has the benchmarks above their metrics."""
    import pandas as pd

    frame, columns = main_table(report, _cell, latex_text, _chance), report.table.columns
    heads = [(latex_text(column.benchmark), _head(column)) for column in columns]
    frame.columns = pd.MultiIndex.from_tuples(heads)
    return latex_table(frame, foot=len(frame) - len(report.table.rows))


def _chance(column: Column) -> str:
    """Chance, and below it what gives more."""
    lines = [text if way == CHANCE else f"{way} {text}" for way, text in trivial_baselines(column).items()]
    first, *others = map(latex_text, lines or ["—"])
    small = "".join(rf"\\{{\scriptsize {other}}}" for other in others)
    return rf"\shortstack[r]{{{first}{small}}}" if others else first


def _head(column: Column) -> str:
    """The metric; empty where its label only repeats the benchmark above it."""
    label = "" if column.label == column.benchmark else column.label
    return latex_text(label + (" ↓" if column.higher_is_better is False else ""))


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return latex_text(gap_words(cell))
    value = latex_text(format_number(cell.value, decimals(cell.column)))
    marked = {"best": rf"\textbf{{{value}}}", "tied": rf"\underline{{{value}}}", "": value}[cell.mark]
    return marked + _margin(margin(cell)) + latex_text(group_sign(cell))


def _margin(text: str) -> str:
    if not text:
        return ""
    above, lopsided, below = text[1:].replace("\N{NARROW NO-BREAK SPACE}", r"\,").partition("/")
    inner = rf"^{{+{above}}}_{{-{below[1:]}}}" if lopsided else rf"\pm {above}"
    return rf" {{\scriptsize ${inner}$}}"


def _comment(text: str) -> str:
    return "% " + strip_control_chars(_one_line(text))


def latex_text(text: str) -> str:
    """Text that pdflatex prints as it is, on one line."""
    return _encoder().unicode_to_latex(strip_control_chars(_one_line(text)))


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text).strip()  # and not str.split, for which a thin blank is one too


@functools.cache
def _encoder() -> Any:
    from pylatexenc.latexencode import RULE_DICT, UnicodeToLatexConversionRule, UnicodeToLatexEncoder

    own = {ord(character): latex for character, latex in _OWN.items()}
    cyrillic = {code: _code_point(chr(code)) for code in range(0x400, 0x530)}  # which takes a font of its own
    rule = UnicodeToLatexConversionRule(RULE_DICT, own | cyrillic)
    return UnicodeToLatexEncoder(
        conversion_rules=[rule, "defaults"], unknown_char_policy=_code_point, unknown_char_warning=False
    )


_OWN = {
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{REPLACEMENT CHARACTER}": "?",
    "|": r"\textbar{}",
    "−": "$-$",
    "→": r"$\rightarrow$",  # the text's own arrows would take a font that few have as outlines
    "←": r"$\leftarrow$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
}


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
