"""The page: the sections of ``sections.py``, put into the templates beside this file.

Everything that comes from a file is escaped by Jinja; only a figure's drawing is markup, which matplotlib has escaped.
The page loads nothing: its content security policy forbids it to.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from benchmarks.report.cell_text import (
    column_head,
    column_title,
    decimals,
    ends,
    gap_words,
    group_sign,
    margin,
    short_gap,
)
from benchmarks.report.chance_level import chance_text, has_chance_level, trivial_baselines
from benchmarks.report.figure import FigureSet
from benchmarks.report.figure_export import render_inline_svg
from benchmarks.report.gallery.thumbnails import ImageDeduplicator
from benchmarks.report.glossary import Glossary
from benchmarks.report.notes import PAGE
from benchmarks.report.palette import SERIES_COLORS
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.sections import built_sections
from benchmarks.report.table import Cell, Column, Table
from benchmarks.results import formatting
from clips.sanitize import jinja_finalize

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

_TEMPLATES = Path(__file__).parent / "templates"
_STYLES = ("style.css", "gallery.css")


def render_page(report: Report) -> str:
    """The whole page as one HTML text."""
    glossary, notes = Glossary(), report.below(PAGE)
    environment = _environment(glossary)
    sections = [
        (section, "figures" if isinstance(content, FigureSet) else section.id, content)
        for section, content in built_sections(report)
    ]
    answer = glossary.link(report.answer)
    for column in report.table.columns:
        glossary.look_up(column.label)
    body = environment.get_template("sections.html.jinja").render(
        report=report, notes=notes, note=lambda cell: note_for_cell(cell, notes), sections=sections
    )
    return environment.get_template("page.html.jinja").render(
        title=report.source.title,
        command="clips-bench report",
        report=report,
        answer=answer,
        body=Markup(body),
        sections=sections,
        words=glossary.used,
    )


def render_comparison(*, title: str, answer: str, tables: Mapping[str, pd.DataFrame], notes: Sequence[str]) -> str:
    """A page of some frames of texts.

    Args:
        title: of the page.
        answer: its first sentence.
        tables: heading → frame.
        notes: below them.
    """
    template = _environment(Glossary()).get_template("comparison.html.jinja")
    return template.render(title=title, command="clips-bench compare", answer=answer, tables=tables, notes=notes)


def _environment(glossary: Glossary) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=jinja_finalize,
    )
    words = (
        *(formatting.format_number, formatting.decimals_needed, formatting.difference_ci_text),
        decimals,
        column_head,
        margin,
        ends,
        short_gap,
        gap_words,
    )
    environment.globals.update({function.__name__: function for function in words})
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment.globals.update(
        has_chance=has_chance_level,
        chance_parts=trivial_baselines,
        chance_words=chance_text,
        whisker=error_bar,
        groups=header_groups,
        picture=ImageDeduplicator().tag,
        series=lambda place: place % SERIES_COLORS,
        svg=render_inline_svg,
        gloss=glossary.link,
        published_remark=REFERENCE_NOTE,
        style="".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in _STYLES),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return environment


def note_for_cell(cell: Cell, notes: Sequence[str]) -> int | None:
    """Which of the notes below the table says why a cell is empty or not ranked; None where none does."""
    if cell.missing is None:
        start = f"{group_sign(cell)} {cell.row} on {column_title(cell.column)} "
        return next((place for place, note in enumerate(notes) if note.startswith(start)), None)
    told = f"{cell.missing.kind}: {cell.missing.reason.rstrip('.')}."
    about = [place for place, note in enumerate(notes) if note.endswith(told)]
    return next((place for place in about if cell.row in notes[place]), next(iter(about), None))


@dataclass(frozen=True, kw_only=True)
class ErrorBar:
    """A cell's interval on its column's common axis, in per cent of its length."""

    low: float
    high: float
    value: float


def error_bar(table: Table, cell: Cell) -> ErrorBar | None:
    """Where the interval of a cell lies between the column's lowest and highest end; None without an interval."""
    cells = [
        other for other in table.column_cells(cell.column) if other.ci_low is not None and other.ci_high is not None
    ]
    if cell.ci_low is None or cell.ci_high is None or cell.value is None:
        return None
    low = min(other.ci_low for other in cells if other.ci_low is not None)
    span = max(other.ci_high for other in cells if other.ci_high is not None) - low or 1.0
    place = [round(100 * (value - low) / span, 2) for value in (cell.ci_low, cell.ci_high, cell.value)]
    return ErrorBar(low=place[0], high=place[1], value=place[2])


def header_groups(table: Table) -> list[tuple[str, list[Column]]]:
    """Columns that stand beside each other by benchmark, for a head of two lines."""
    groups: list[tuple[str, list[Column]]] = []
    for column in table.columns:
        if groups and groups[-1][0] == column.benchmark:
            groups[-1][1].append(column)
        else:
            groups.append((column.benchmark, [column]))
    return groups
