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
    Section(id="forest", title="Differences to the baseline", build=forest_plots),
    Section(id="settings", title="Scores against settings", build=sweep_figures),
    Section(id="lengths", title="Recall against the length of captions", build=length_figures),
    Section(id="relation", title="Retrieval against MLLM benchmarks", build=correlation_figures),
    Section(id="examples", title="Examples", build=lambda report: answer_galleries(limit_rows(report.source))),
    Section(id="cost", title="Scores against their cost", build=cost_figures, about="images seen, FLOPs and hours"),
    Section(
        id="kinds",
        title="Kind by kind",
        build=category_figures,
        about="each benchmark's first measure on the items of one kind alone",
    ),
    Section(
        id="seeds",
        title="Seed by seed",
        build=lambda report: report.table.seeds and report.table,
        about="means, both kinds of noise, and every seed's own number",
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
        about="the losses that every training logged",
    ),
    Section(
        id="found",
        title="What queries find",
        build=lambda report: retrieval_galleries(limit_rows(report.source)),
        about="the five most similar answers to a query, row beside row",
    ),
    Section(
        id="captioned",
        title="Captions",
        build=lambda report: captioned(limit_rows(report.source)),
        about="what was written, beside the references",
    ),
    Section(
        id="maps",
        title="Where a phrase is seen",
        build=lambda report: similarity_maps(limit_rows(report.source)),
        about="bright where the image is similar to the phrase",
    ),
    Section(
        id="timing",
        title="Time",
        build=lambda report: build_timeline(report.source.steps),
        about="how long each step took, and its memory",
    ),
    Section(
        id="reproduce",
        title="How to make these numbers again",
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
