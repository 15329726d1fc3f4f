"""LaTeX: the main table as a float with booktabs, for a paper."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.report.averages import Interval, Overall
from benchmarks.report.measures import cell_texts
from benchmarks.report.notes import KINDS, LATEX, mark_legend, variance_sources
from benchmarks.report.published import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.table import ELSEWHERE, UNCREDITED, Cell, Column, RankMark, Table
from benchmarks.report.text_table import main_table
from benchmarks.results.formatting import format_number, strip_control_chars

if TYPE_CHECKING:
    import pandas as pd


_HEAD = (
    r"% Needs \usepackage{booktabs,graphicx}, names with accents \usepackage[T1]{fontenc}. It shrinks to the "
    "width of the page; for larger letters choose --benchmarks, or --latex.intervals none"
)
_ROWS_PER_FLOAT = 45
_OF_MARKS = ("Best", "Tied")  # lines of the legend for the caption; ranks have marks of other meanings


def render_latex(report: Report) -> str:
    """The main table as a float with a caption, published results as others, and notes as comments.

    A table spans the page and shrinks if it is wider, with the caveats below it. Characters that pdflatex lacks
    (Chinese, emoji) become their code points.
    """
    name = re.sub(r"[^a-z0-9]+", "-", report.source.title.casefold()).strip("-") or "results"
    parts = [_HEAD, *_main_float(report, f"tab:{name}"), _comment(f"{report.verdict} {report.answer}".strip())]
    parts += [_comment(line) for line in mark_legend(report.table, LATEX) if not line.startswith(_OF_MARKS)]
    parts += [_comment(note.text) for note in report.notes if not KINDS[note.kind].is_caveat and note.kind != "missing"]
    if report.reference_results:
        frame, label = report.reference_results.text(), f"tab:{name}-published"
        parts += _frame_floats(frame, REFERENCE_NOTE, label)
        parts += map(_comment, report.reference_results.sources())
    return "\n".join(parts) + "\n"


def _main_float(report: Report, label: str) -> list[str]:
    frame, table = _frame(report), report.table
    tabular = _tabular(frame)
    num_below = len(frame) - len(table.rows)
    tabular.insert(tabular.index(r"\bottomrule") - num_below, r"\midrule")
    start = tabular.index(r"\midrule") + 1
    for index, row in reversed([*enumerate(table.rows)]):  # headings of groups, a space between LLMs
        if index in table.headings:
            text = latex_text(table.headings[index])
            heading = rf"\multicolumn{{{1 + frame.shape[1]}}}{{l}}{{\textit{{{text}}}}} \\"
            tabular[start + index : start + index] = [r"\midrule", heading] if index else [heading]
        elif index and row.llm != table.rows[index - 1].llm:
            tabular.insert(start + index, r"\addlinespace")
    if caveats := latex_text(" ".join(note.text for note in report.notes if KINDS[note.kind].is_caveat)):
        tabular += ["", rf"\smallskip\parbox{{\linewidth}}{{\footnotesize {caveats}}}"]
    return _float(_caption(report), label, tabular)


def _frame_floats(frame: pd.DataFrame, caption: str, label: str) -> list[str]:
    """A frame of unescaped strings, in as many floats as its rows need."""
    escaped = frame.map(latex_text).rename(latex_text).rename(latex_text, axis=1)
    lines: list[str] = []
    for number, start in enumerate(range(0, len(frame), _ROWS_PER_FLOAT), 1):
        tabular = _tabular(escaped.iloc[start : start + _ROWS_PER_FLOAT])
        lines += _float(latex_text(caption), f"{label}-{number}" if start else label, tabular)
    return lines


def _float(caption: str, label: str, tabular: Sequence[str]) -> list[str]:
    begin = next(index for index, line in enumerate(tabular) if line.startswith(r"\begin{tabular}"))
    end = tabular.index(r"\end{tabular}") + 1
    shrunk = [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", *tabular[begin:end], "}"]
    opening = [r"\begin{table*}[t]", r"\centering", r"\small", r"\setlength{\tabcolsep}{3pt}"]
    opening += [rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    return [*opening, *tabular[:begin], *shrunk, *tabular[end:], r"\end{table*}"]


def _tabular(frame: pd.DataFrame) -> list[str]:
    """A frame of LaTeX strings as a booktabs tabular; of two column levels, rules group the columns below a header."""
    lines = frame.style.to_latex(column_format="l" + "r" * frame.shape[1], hrules=True, multicol_align="c").splitlines()
    if frame.columns.nlevels > 1:
        headers = [*frame.columns.get_level_values(0)]
        starts = [index for index, name in enumerate(headers) if index == 0 or name != headers[index - 1]]
        stops = [*starts[1:], len(headers)]
        rules = [rf"\cmidrule(lr){{{start + 2}-{stop + 1}}}" for start, stop in zip(starts, stops, strict=True)]
        lines.insert(lines.index(r"\midrule") - 1, " ".join(rules))
    return lines


def _caption(report: Report) -> str:
    sentences, cells = [report.source.title.rstrip(".") + "."], report.table.scores
    if report.latex.marks == "ranks":
        sentences.append(
            "Bold: best; underlined: second best, both without regard to tests and among models with the same "
            "settings; equal numbers share a mark. ≈: tested against the best without a significant difference."
        )
    else:
        sentences += [line for line in mark_legend(report.table, LATEX) if line.startswith(_OF_MARKS)]
    if any(cell.credited is False for cell in cells):
        sentences.append(f"{UNCREDITED}: not credited to the images, and without a mark.")
    if daggers := sorted({cell.dagger for cell in cells if cell.dagger}):
        sentences.append(f"{', '.join(daggers)}: under other settings than the column's, and ranked apart.")
    if any(cell.is_foreign for cell in cells):
        sentences.append(f"{ELSEWHERE}: measured by another tool.")
    if report.latex.intervals == "inline" and any(cell.margin for cell in cells):
        sentences.append(f"With 95 % intervals over {variance_sources(report.table)}.")
    return latex_text(" ".join(sentences))


def _frame(report: Report) -> pd.DataFrame:
    import pandas as pd

    frame = main_table(report, functools.partial(_cell, report), latex_text, _chance)
    frame.iloc[-1] = [latex_text(_short_count(column)) for column in report.table.columns]
    headers = []
    for column in report.table.columns:  # a label that repeats the benchmark above it is left out
        label = "" if column.label == column.benchmark else column.label
        headers.append((latex_text(column.benchmark), latex_text(label + column.arrow)))
    for above, title, numbers, overall, benchmarks in _overall(report):
        of_rows = [
            _overall_text(report, numbers[row.name]) + latex_text(overall.sign(row.name, benchmarks))
            for row in report.table.rows
        ]
        frame[above, title] = of_rows + [""] * (len(frame) - len(of_rows))
        headers.append((above, title))
    frame.columns = pd.MultiIndex.from_tuples(headers)
    return frame


def _short_count(column: Column) -> str:
    """``900/9,000``; the part of a benchmark that is counted in another unit is a caveat."""
    return column.items.partition(" (")[0].replace(" of ", "/")


def _overall(report: Report) -> list[tuple[str, str, dict[str, Interval], Overall, tuple[str, ...]]]:
    """Heading, title, numbers and benchmarks of the columns over several benchmarks, all of which the table has."""
    return [
        ("all" + overall.of.replace(" of the", ","), title, numbers, overall, benchmarks)
        for overall in report.overall
        for title, numbers, benchmarks in overall.columns
        if report.has_all_of(numbers, benchmarks)
    ]


def _overall_text(report: Report, found: Interval) -> str:
    value, low, high = (latex_text(format_number(each, 1)) for each in (found.value, found.low, found.high))
    shown = found.text and report.latex.intervals == "inline"
    return value + (rf" {{\scriptsize [{low}, {high}]}}" if shown else "")


def _chance(column: Column) -> str:
    """Chance, and below it the trivial baselines that score higher."""
    first, *others = map(latex_text, column.chance_lines or [""])
    small = "".join(rf"\\{{\scriptsize {other}}}" for other in others)
    return rf"\shortstack[r]{{{first}{small}}}" if others else first


def _cell(report: Report, cell: Cell) -> str:
    if cell.value is None:
        return cell.missing_label
    mark, close, value = cell.mark, "", latex_text(cell.number)
    if report.latex.marks == "ranks":
        mark, tied = _rank_mark(report.table, cell)
        close = r"$^{\approx}$" if tied else ""
    marked = {"best": rf"\textbf{{{value}}}", "tied": rf"\underline{{{value}}}", "": value}[mark]
    small = "".join(map(_small, _cell_texts(report, cell)))
    return marked + close + small + latex_text(cell.signs)


def _rank_mark(table: Table, cell: Cell) -> tuple[RankMark, bool]:
    """A credited cell's mark by its rank among the printed numbers of its column and protocol: first or second.

    And whether it was tested against the top of its column without a significant difference.
    """
    column, better = cell.column, bool(cell.column.higher_is_better)
    group = [each for each in table.cells(column) if each.value is not None and each.group == cell.group]
    if cell.credited is False or not column.ranked or len(group) < 2:
        return "", False
    numbers = sorted({round(each.value or 0.0, column.places) for each in group}, reverse=better)
    marks: dict[float, RankMark] = {numbers[0]: "best", numbers[1]: "tied"} if len(numbers) > 1 else {}
    top = (max if better else min)(group, key=lambda each: each.value or 0.0)
    return marks.get(round(cell.value or 0.0, column.places), ""), table.differs(top, cell) is False


def _cell_texts(report: Report, cell: Cell) -> list[str]:
    return [text for _, text in cell_texts(cell, "latex")] if report.latex.intervals == "inline" else []


def _small(text: str) -> str:
    """A text of a cell at 7 pt; an interval without superscripts, whose digits would be smaller."""
    if not re.match(r"±|\+.*/−", text):
        return rf" {{\scriptsize {latex_text(text)}}}"
    above, asymmetric, below = text[1:].replace("\N{NARROW NO-BREAK SPACE}", r"\,").partition("/")
    inner = rf"$+${above}/$-${below[1:]}" if asymmetric else rf"$\pm${above}"
    return rf" {{\scriptsize {inner}}}"


def _comment(text: str) -> str:
    return "% " + strip_control_chars(_one_line(text))


def latex_text(text: str) -> str:
    r"""Text escaped for pdflatex, on one line, for any place of a table.

    After ``\\`` or a rule of booktabs, LaTeX reads ``[`` and ``*`` as the start of an option, and pairs such as ``--``
    as another character (a dash).
    """
    encoded: str = _encoder().unicode_to_latex(strip_control_chars(_one_line(text)))
    encoded = _LIGATURE.sub("{}", encoded)
    return f"{{{encoded[0]}}}{encoded[1:]}" if encoded[:1] in {"[", "*"} else encoded


def _one_line(text: str) -> str:
    return re.sub(r"[ \t\r\n]+", " ", text).strip()  # str.split would also replace narrow no-break spaces


@functools.cache
def _encoder() -> Any:
    from pylatexenc.latexencode import (
        RULE_DICT,
        UnicodeToLatexConversionRule,
        UnicodeToLatexEncoder,
        get_builtin_uni2latex_dict,
    )

    special = {ord(character): latex for character, latex in _SPECIAL.items()}
    others = {code: _code_point(chr(code)) for code in get_builtin_uni2latex_dict() if not _PRINTED.match(chr(code))}
    rule = UnicodeToLatexConversionRule(RULE_DICT, others | special)
    return UnicodeToLatexEncoder(
        conversion_rules=[rule, "defaults"], unknown_char_policy=_code_point, unknown_char_warning=False
    )


_LIGATURE = re.compile(r"(?<=[-',`])(?=[-',`])|(?<=[?!])(?=`)")
_SPECIAL = {
    '"': r"\textquotedblright{}",  # pylatexenc's '' would be two apostrophes
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    "\N{REPLACEMENT CHARACTER}": "?",
    "‐": "-",
    "‑": "-",
    "|": r"\textbar{}",
    "−": "$-$",
    "→": r"$\rightarrow$",  # text arrows need a font that is rarely installed as outlines
    "←": r"$\leftarrow$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "▲": r"$\bigtriangleup$",  # filled ones need amssymb
    "▼": r"$\bigtriangledown$",
}
_PRINTED = re.compile(r"[ -~\u00a0-\u0137\u0139-\u0148\u014a-\u017f\u0391-\u03c9–—‘’‚“”„†‡•…‰‹›€™←→↑↓↔≈≠≡≤≥∞∈∑√∂]")
"""The characters that LaTeX prints without a package of symbols; others are printed as code points."""


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"
