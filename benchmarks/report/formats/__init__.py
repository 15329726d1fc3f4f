"""The formats of a report, a file each; one entry each in ``REPORT_FORMATS``.

Names and reasons come from files that others wrote: every format escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from benchmarks.report.figure import Figure
from benchmarks.report.figure_export import render_pdf, render_svg
from benchmarks.report.formats.csv_tables import (
    render_csv,
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
    """What a report is written as."""

    def files(self, report: Report) -> Mapping[str, str | bytes]:
        """Name in the report's directory → content; a file without content is not written."""


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """A format of one text file: its name, and what makes its content."""

    file: str
    render: Callable[[Report], str]

    def files(self, report: Report) -> Mapping[str, str | bytes]:
        """See `Format`."""
        return {self.file: self.render(report)}


@dataclass(frozen=True, kw_only=True)
class FigureFiles:
    """A format of a file for each figure, under ``figures/``: how they end, and what draws one."""

    suffix: str
    draw: Callable[[Figure], str | bytes]

    def files(self, report: Report) -> Mapping[str, str | bytes]:
        """See `Format`."""
        return {f"figures/{name}{self.suffix}": self.draw(figure) for name, figure in report_figures(report).items()}


REPORT_FORMATS: dict[str, ReportFormat] = {
    "html": OneFile(file="index.html", render=render_page),
    "csv": OneFile(file="table.csv", render=render_csv),
    "reference_results": OneFile(file="reference_results.csv", render=render_reference_csv),
    "wide": OneFile(file="table_wide.csv", render=render_wide),
    "seeds": OneFile(file="seeds.csv", render=render_seeds),
    "sweep": OneFile(file="sweep.csv", render=render_sweep_csv),
    "markdown": OneFile(file="table.md", render=render_markdown),
    "latex": OneFile(file="table.tex", render=render_latex),
    "svg": FigureFiles(suffix=".svg", draw=render_svg),
    "pdf": FigureFiles(suffix=".pdf", draw=render_pdf),
}
