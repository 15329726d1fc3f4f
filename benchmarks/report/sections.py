"""The sections of the report page, in order; a new section is one entry in ``SECTIONS``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.report.blind_figures import gain_figures
from benchmarks.report.caption_length_figures import length_figures
from benchmarks.report.categories import category_figures
from benchmarks.report.examples import answer_galleries
from benchmarks.report.figure import Figure, FigureSet
from benchmarks.report.forest_plots import forest_plots
from benchmarks.report.load_results import limit_rows
from benchmarks.report.overall import overall_section
from benchmarks.report.report import Report
from benchmarks.report.reproduce import reproduction_info
from benchmarks.report.sweep_figures import sweep_figures


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Args:
        title: the heading, and the entry in the table of contents.
        build: report → content; the page omits the section if the content is false. The template ``figures`` shows a
            `FigureSet`, ``sections/<id>.html.jinja`` any other content.
        about: the summary of a folded section; empty if the section is open.
    """

    title: str
    build: Callable[[Report], Any]
    about: str = ""

    @property
    def id(self) -> str:
        """The anchor: ``"Recall vs. caption length"`` → ``"recall-vs-caption-length"``."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower())


SECTIONS: tuple[Section, ...] = (
    Section(title="Results", build=lambda report: report.table),
    Section(title="Published numbers", build=lambda report: report.reference_results),
    Section(title="Differences from the baseline", build=forest_plots),
    Section(title="Averages and ranks", build=lambda report: overall_section(report.overall)),
    Section(title="Gain over blind", build=gain_figures),
    Section(title="Sweeps", build=sweep_figures),
    Section(title="Recall vs. caption length", build=length_figures),
    Section(title="Examples", build=lambda report: answer_galleries(limit_rows(report.source))),
    Section(
        title="By category",
        build=category_figures,
        about="each benchmark's first metric on the items of one category",
    ),
    Section(
        title="Per-seed results",
        build=lambda report: report.table.seeds and report.table,
        about="means, intervals, and every seed's own number",
    ),
    Section(
        title="All metrics",
        build=lambda report: report.details.columns and report.details,
        about="with their intervals and numbers of items",
    ),
    Section(
        title="Reproduce",
        build=lambda report: reproduction_info(report.source),
        about="commands, protocols, hashes, machine and versions",
    ),
)


@functools.lru_cache(maxsize=1)  # shared by all formats
def built_sections(report: Report) -> tuple[tuple[Section, Any], ...]:
    """The sections that have content, each with its content."""
    return tuple((section, content) for section in SECTIONS if (content := section.build(report)))


def report_figures(report: Report) -> dict[str, Figure]:
    """Name → figure, of all sections in the order of the page."""
    sets = [content for _, content in built_sections(report) if isinstance(content, FigureSet)]
    return {figure.name: figure for each in sets for figure in each.figures}
