"""LaTeX: the main table as a float with booktabs, for a paper."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from benchmarks.report.cell_text import decimals, margin, missing_text, signs
from benchmarks.report.chance_level import trivial_baselines
from benchmarks.report.notes import LATEX
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Column
from benchmarks.report.text_table import latex_table, main_table
from benchmarks.results.formatting import format_number, strip_control_chars
from benchmarks.results.results import CHANCE

_PACKAGES = r"% \usepackage{booktabs,graphicx}; names with accents: \usepackage[T1]{fontenc}"
# shrinks a table to the column's width if it is wider
_RESIZE = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"


def render_latex(report: Report) -> str:
    """The main table as a ``table`` float with a caption, published results as a second one, and notes as comments.

    Characters that pdflatex lacks (Chinese, emoji) become their code points.
    """
    name = re.sub(r"[^a-z0-9]+", "-", report.source.title.casefold()).strip("-") or "results"
    parts = [*_float(_caption(report), f"tab:{name}", _tabular(report)), *map(_comment, report.all_notes(LATEX))]
    if report.reference_results:
        table = report.reference_results.text().map(latex_text).rename(latex_text).rename(latex_text, axis=1)
        parts += _float(latex_text(REFERENCE_NOTE), f"tab:{name}-published", latex_table(table))
        parts += map(_comment, report.reference_results.sources())
    return "\n".join([_PACKAGES, *parts]) + "\n"


def _caption(report: Report) -> str:
    marks = {cell.mark for cell in report.table.cells.values()}
    sentences = [report.answer]
    if "best" in marks:
        sentences.append("Bold: significantly different from every other model of its column (paired test).")
    if "tied" in marks:
        sentences.append("Underlined: at the top of its column, without a significant difference.")
    if any(margin(cell) for cell in report.table.cells.values()):
        sentences.append(f"With 95 % intervals{' over images and seeds' if report.table.seeds else ''}.")
    return latex_text(" ".join(sentences))


def _float(caption: str, label: str, tabular: Sequence[str]) -> list[str]:
    opening = [r"\begin{table}[t]", r"\centering", r"\small", r"\setlength{\tabcolsep}{4pt}"]
    return [*opening, rf"\caption{{{caption}}}", rf"\label{{{label}}}", _RESIZE, *tabular, "}", r"\end{table}"]


def _tabular(report: Report) -> list[str]:
    """The main table with the benchmarks above their metrics."""
    import pandas as pd

    frame = main_table(report, _cell, latex_text, _chance)
    headers = [(latex_text(column.benchmark), _metric_header(column)) for column in report.table.columns]
    frame.columns = pd.MultiIndex.from_tuples(headers)
    return latex_table(frame, num_footer_lines=len(frame) - len(report.table.rows))


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


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return latex_text(missing_text(cell))
    value = latex_text(format_number(cell.value, decimals(cell.column)))
    marked = {"best": rf"\textbf{{{value}}}", "tied": rf"\underline{{{value}}}", "": value}[cell.mark]
    return marked + _margin(margin(cell)) + latex_text(signs(cell))


def _margin(text: str) -> str:
    if not text:
        return ""
    above, asymmetric, below = text[1:].replace("\N{NARROW NO-BREAK SPACE}", r"\,").partition("/")
    inner = rf"^{{+{above}}}_{{-{below[1:]}}}" if asymmetric else rf"\pm {above}"
    return rf" {{\scriptsize ${inner}$}}"


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
}


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
