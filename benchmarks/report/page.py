"""The page: its sections in order, rendered with the templates next to this file; a new section is an entry here.

Jinja escapes all text from files; only a figure's SVG is markup, which matplotlib has escaped. The page's content
security policy forbids external resources.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report.averages import overall_section
from benchmarks.report.categories import category_figures
from benchmarks.report.costs import model_costs
from benchmarks.report.examples import ImageDeduplicator, answer_galleries, browser_data
from benchmarks.report.figures import SERIES_COLORS, Figure, FigureSet, render_inline_svg
from benchmarks.report.load_results import ReportSource
from benchmarks.report.measures import cell_texts
from benchmarks.report.notes import PAGE, grouped_notes
from benchmarks.report.plots import forest_plots, gain_figures, length_figures, sweep_figures
from benchmarks.report.published import REFERENCE_NOTE, published_comparison
from benchmarks.report.report import Report
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import commit_text
from benchmarks.study.study_record import StepPlan
from clips.safe_text import jinja_finalize

if TYPE_CHECKING:
    import jinja2

_ABOUT_DETECTABLE = (
    "minimum detectable difference from the baseline: what a single test at the 5 % level finds with power 0.8; "
    "a range is over the models"
)
_TEMPLATES = Path(__file__).parent / "templates"


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


def _reproduction(source: ReportSource) -> dict[str, Any]:
    """Commands, versions and hashes to reproduce the numbers, from the study's record and the results."""
    study = source.study
    results = [(name, row, result) for name in source.benchmarks for row, result in source.results(name).items()]
    first = {name: result for name, _, result in reversed(results)}
    facts: dict[str, object] = dict(study.machine) if study else {}
    if study and study.git:
        facts["commit"] = commit_text(study.git)
    counts = Counter(commit_text(result.git) for *_, result in results if result.git.get("commit"))
    if counts:  # results of one study may come from several commits
        commits = [f"{commit} ({count} of {counts.total()} results)" for commit, count in counts.most_common()]
        facts["evaluated by commit"] = ", ".join(commits)
    facts |= study.versions if study else results[0][2].versions if results else {}
    protocols = {name: first[name].protocol for name in source.benchmarks if name in first}
    return {
        "study": study,
        "plan": plan_columns(study.steps) if study else [],
        "facts": {name: str(value) for name, value in facts.items()},
        "protocols": {
            name: {key.replace("_", " "): str(value) for key, value in protocol.items()}
            for name, protocol in protocols.items()
        },
        "measured": [
            (row, name, result.model.get("path", ""), result.model.get("hash", "")[:12], result.fingerprint[:12])
            for name, row, result in results
        ],
    }


def plan_columns(steps: Mapping[str, StepPlan]) -> list[list[str]]:
    """``[["data × 2"], ["encoder × 3"], …]``: the steps by the longest way to them, counted by kind."""

    @functools.cache
    def depth(name: str) -> int:
        return max((depth(parent) + 1 for parent in steps[name].parents), default=0)

    counts = Counter((depth(name), step.kind) for name, step in steps.items())
    columns = itertools.groupby(sorted(counts), key=lambda place: place[0])
    return [[f"{place[1]} × {counts[place]}" for place in places] for _, places in columns]


SECTIONS: tuple[Section, ...] = (
    Section(title="Results", build=lambda report: report.table),
    Section(title="Published numbers", build=lambda report: report.reference_results),
    Section(title="Measured and published", build=lambda report: published_comparison(report.table)),
    Section(title="Differences from the baseline", build=lambda report: forest_plots(report.table)),
    Section(title="Averages and ranks", build=lambda report: overall_section(report.overall)),
    Section(title="Gain over blind", build=lambda report: gain_figures(report.table)),
    Section(title="Sweeps", build=lambda report: sweep_figures(report.source, report.table)),
    Section(title="Recall vs. caption length", build=lambda report: length_figures(report.source, report.details)),
    Section(title="Examples", build=lambda report: answer_galleries(report.source, every_item=report.every_item)),
    Section(
        title="By category",
        build=lambda report: category_figures(report.source, report.table, report.items),
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
        build=lambda report: _reproduction(report.source),
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


def render_page(report: Report) -> str:
    """The complete page as HTML."""
    places = {each: place for place, each in enumerate(report.notes)}

    def note(cell: Cell, kind: str) -> int | None:
        """The place of the note on a cell's sign, or on why it is missing."""
        return next((place for each, place in places.items() if each.is_about(cell, kind)), None)

    names = [row.name for row in report.table.rows]
    averages = [each for each in report.overall if each.averages and report.has_all_of(each.averages, each.averaged)]
    sorted_by = next((each for each in averages[::-1] if each.order == names), None)

    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=report.source.title,
            command="clips-bench report",
            report=report,
            first_notes=report.first_notes(PAGE),
            note_groups=grouped_notes(report.notes),
            place=places.__getitem__,
            note=note,
            error_bar=functools.partial(error_bar, report.table),
            browser=_browser_json(report),
            costs=model_costs(report.table),
            averages=averages,
            sorted_by=sorted_by,
            detectable=[report.table.detectable(column) for column in report.table.columns],
            about_detectable=_ABOUT_DETECTABLE,
            placed=[
                (group, place == 0, column)
                for group, (_, columns) in enumerate(report.table.benchmarks)
                for place, column in enumerate(columns)
            ],
            sections=[
                (section, "figures" if isinstance(content, FigureSet) else section.id, content)
                for section, content in built_sections(report)
            ],
        )
    )


def _browser_json(report: Report) -> str:
    """What a click on a cell shows, safe inside of a script element; empty without items."""
    galleries = next((content for section, content in built_sections(report) if section.title == "Examples"), None)
    if not galleries or not report.table.columns:
        return ""
    data = browser_data(galleries, report.source, every_item=report.every_item)
    column = report.table.columns[0]
    data["rows"] = {cell.row: cell.rows for cell in report.table.cells(column)}  # of a mean over seeds, its seeds
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=jinja_finalize,
    )
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment.globals.update(
        cell_texts=cell_texts,
        render_inline_svg=render_inline_svg,
        thumbnail=ImageDeduplicator().tag,
        series=lambda index: index % SERIES_COLORS,
        reference_note=REFERENCE_NOTE,
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return environment


def error_bar(table: Table, cell: Cell) -> tuple[float, float, float] | None:
    """The ends of a cell's interval and its value on the common axis of its column, in per cent; None without one."""
    if cell.ci_low is None or cell.ci_high is None or cell.value is None:
        return None
    column = table.cells(cell.column)
    low = min(each.ci_low for each in column if each.ci_low is not None)
    span = max(each.ci_high for each in column if each.ci_high is not None) - low or 1.0
    start, end, value = (round(100 * (each - low) / span, 2) for each in (cell.ci_low, cell.ci_high, cell.value))
    return start, end, value
