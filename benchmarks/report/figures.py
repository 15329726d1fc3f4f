"""Every figure of a report by name, for files beside the page."""

from __future__ import annotations

from benchmarks.report.drawing import pdf, standalone_svg
from benchmarks.report.figure import Figure, FigureSet
from benchmarks.report.model import Report
from benchmarks.report.sections import contents


def report_figures(report: Report) -> dict[str, Figure]:
    """The figures of all sections, in the order of the page, by their names."""
    sets = [content for _, content in contents(report) if isinstance(content, FigureSet)]
    return {figure.name: figure for each in sets for figure in each.figures}


def figures(report: Report) -> dict[str, str]:
    """Name → the figure as an SVG file: the light colours, its legend, title and description inside."""
    return {name: standalone_svg(figure) for name, figure in report_figures(report).items()}


def figures_as_pdf(report: Report) -> dict[str, bytes]:
    """Name → the figure as a page of PDF, its fonts embedded."""
    return {name: pdf(figure) for name, figure in report_figures(report).items()}
