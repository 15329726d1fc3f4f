"""The sections of a report, one entry each in ``SECTIONS``: what they are called and what they show."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.report.caption_length_figures import length_figures
from benchmarks.report.categories import category_figures
from benchmarks.report.correlation import correlation_figures
from benchmarks.report.cost_figures import cost_figures
from benchmarks.report.figure import Figure, FigureSet
from benchmarks.report.forest_plots import forest_plots
from benchmarks.report.gallery.answer_examples import answer_galleries
from benchmarks.report.gallery.caption_examples import captioned
from benchmarks.report.gallery.retrieval_examples import retrieval_galleries
from benchmarks.report.gallery.similarity_maps import similarity_maps
from benchmarks.report.learning_curves import learning_curves
from benchmarks.report.load_results import limit_rows
from benchmarks.report.report import Report
from benchmarks.report.reproduce import reproduction_info
from benchmarks.report.step_timing import build_timeline
from benchmarks.report.sweep_figures import sweep_figures


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page.

    Args:
        id: anchor; and, unless it shows a ``FigureSet``, which needs none of its own, name of the template
            ``sections/<id>.html.jinja``, which sees ``content`` and ``report``.
        title: heading, and entry of the contents.
        build: what is shown; a false value leaves the section out.
        about: what is in it, in a line, where most readers skip it: it is folded up behind its title.
    """

    id: str
    title: str
    build: Callable[[Report], Any]
    about: str = ""

    @property
    def folded(self) -> bool:
        """Whether a reader has to open it."""
        return bool(self.about)


SECTIONS: tuple[Section, ...] = (
    Section(id="table", title="Results", build=lambda report: report.table),
    Section(id="published", title="Published numbers", build=lambda report: report.published),
    Section(id="forest", title="Differences from the baseline", build=forest_plots),
    Section(id="settings", title="Sweeps", build=sweep_figures),
    Section(id="lengths", title="Recall vs. caption length", build=length_figures),
    Section(id="relation", title="Retrieval vs. MLLM scores", build=correlation_figures),
    Section(id="examples", title="Examples", build=lambda report: answer_galleries(limit_rows(report.source))),
    Section(id="cost", title="Score vs. cost", build=cost_figures, about="images seen, FLOPs and hours"),
    Section(
        id="kinds",
        title="By category",
        build=category_figures,
        about="each benchmark's first metric on the items of one category",
    ),
    Section(
        id="seeds",
        title="Per-seed results",
        build=lambda report: report.table.seeds and report.table,
        about="means, intervals, and every seed's own number",
    ),
    Section(
        id="details",
        title="All metrics",
        build=lambda report: report.details.columns and report.details,
        about="with their intervals and numbers of items",
    ),
    Section(
        id="curves",
        title="Learning curves",
        build=lambda report: learning_curves(limit_rows(report.source)),
        about="the logged losses of every training",
    ),
    Section(
        id="found",
        title="Retrieval examples",
        build=lambda report: retrieval_galleries(limit_rows(report.source)),
        about="the five most similar results of each model for a query",
    ),
    Section(
        id="captioned",
        title="Caption examples",
        build=lambda report: captioned(limit_rows(report.source)),
        about="generated captions next to the references",
    ),
    Section(
        id="maps",
        title="Similarity maps",
        build=lambda report: similarity_maps(limit_rows(report.source)),
        about="bright where the image is similar to the phrase",
    ),
    Section(
        id="timing",
        title="Run time",
        build=lambda report: build_timeline(report.source.steps),
        about="time and memory of each step",
    ),
    Section(
        id="reproduce",
        title="Reproduce",
        build=lambda report: reproduction_info(report.source),
        about="commands, protocols, hashes, machine and versions",
    ),
)


@functools.lru_cache(maxsize=1)  # for all formats
def built_sections(report: Report) -> tuple[tuple[Section, Any], ...]:
    """The sections that have something to show, with what they show."""
    return tuple((section, content) for section in SECTIONS if (content := section.build(report)))


def report_figures(report: Report) -> dict[str, Figure]:
    """The figures of all sections, in the order of the page, by their names."""
    sets = [content for _, content in built_sections(report) if isinstance(content, FigureSet)]
    return {figure.name: figure for each in sets for figure in each.figures}
