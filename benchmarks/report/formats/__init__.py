"""The formats of a report; a new format is one entry in ``REPORT_FORMATS``.

Every format escapes names and reasons, since they come from untrusted files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from benchmarks.report.figure import Figure
from benchmarks.report.figure_export import render_pdf, render_svg
from benchmarks.report.formats.csv_tables import (
    render_csv,
    render_pairs,
    render_reference_csv,
    render_seeds,
    render_sweep_csv,
    render_wide,
)
from benchmarks.report.formats.latex import render_latex
from benchmarks.report.formats.markdown import render_markdown
from benchmarks.report.html_page import render_page
from benchmarks.report.report import Report
from benchmarks.report.sections import report_figures


class ReportFormat(Protocol):
    """A format of a report."""

    def files(self, report: Report) -> Mapping[str, str | bytes]:
        """Name in the report's directory → content; files with empty content are not written."""


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """A format of one text file: its name, and the function that renders its content."""

    file: str
    render: Callable[[Report], str]

    def files(self, report: Report) -> Mapping[str, str | bytes]:
        """See `ReportFormat`."""
        return {self.file: self.render(report)}


@dataclass(frozen=True, kw_only=True)
class FigureFiles:
    """A format of one file per figure, in ``figures/``: the suffix, and the function that renders a figure."""

    suffix: str
    render: Callable[[Figure], str | bytes]

    def files(self, report: Report) -> Mapping[str, str | bytes]:
        """See `ReportFormat`."""
        return {f"figures/{name}{self.suffix}": self.render(figure) for name, figure in report_figures(report).items()}


REPORT_FORMATS: dict[str, ReportFormat] = {
    "html": OneFile(file="index.html", render=render_page),
    "csv": OneFile(file="table.csv", render=render_csv),
    "reference_results": OneFile(file="reference_results.csv", render=render_reference_csv),
    "wide": OneFile(file="table_wide.csv", render=render_wide),
    "pairs": OneFile(file="pairs.csv", render=render_pairs),
    "seeds": OneFile(file="seeds.csv", render=render_seeds),
    "sweep": OneFile(file="sweep.csv", render=render_sweep_csv),
    "markdown": OneFile(file="table.md", render=render_markdown),
    "latex": OneFile(file="table.tex", render=render_latex),
    "svg": FigureFiles(suffix=".svg", render=render_svg),
    "pdf": FigureFiles(suffix=".pdf", render=render_pdf),
}
ON_REQUEST = frozenset({"pdf"})
"""Formats that a report has only if they are named: embedding fonts takes a third of a report's time."""
