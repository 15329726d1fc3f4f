"""The formats of a report; a new format is one entry in ``REPORT_FORMATS``.

Every format escapes names and reasons, since they come from untrusted files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.report import measures
from benchmarks.report.figures import Figure, render_pdf, render_svg
from benchmarks.report.latex import render_latex
from benchmarks.report.page import render_page, report_figures
from benchmarks.report.report import Report
from benchmarks.report.text_table import render_markdown

Files = Mapping[str, str | bytes]
"""Name in the report's directory → content; files with empty content are not written."""


def _one_file(name: str, render: Callable[[Report], str]) -> Callable[[Report], Files]:
    return lambda report: {name: render(report)}


def _figures(suffix: str, render: Callable[[Figure], str | bytes]) -> Callable[[Report], Files]:
    return lambda report: {f"figures/{name}{suffix}": render(figure) for name, figure in report_figures(report).items()}


REPORT_FORMATS: dict[str, Callable[[Report], Files]] = {
    "html": _one_file("index.html", render_page),
    "csv": _one_file("table.csv", measures.render_csv),
    "wide": _one_file("table_wide.csv", measures.render_wide),
    "pairs": _one_file("pairs.csv", measures.render_pairs),
    "seeds": _one_file("seeds.csv", measures.render_seeds),
    "markdown": _one_file("table.md", render_markdown),
    "latex": _one_file("table.tex", render_latex),
    "svg": _figures(".svg", render_svg),
    "pdf": _figures(".pdf", render_pdf),
}
ON_REQUEST = frozenset({"pdf"})
"""Formats that a report has only if they are named: embedding fonts takes a third of a report's time."""
