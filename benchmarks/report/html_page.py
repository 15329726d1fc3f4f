"""The page: the sections of ``sections.py``, rendered with the templates next to this file.

Jinja escapes all text from files; only a figure's SVG is markup, which matplotlib has escaped. The page's content
security policy forbids external resources.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from benchmarks.report.cards import ImageDeduplicator
from benchmarks.report.cell_text import (
    column_header,
    column_title,
    decimals,
    group_sign,
    interval_text,
    margin,
    missing_label,
    missing_text,
)
from benchmarks.report.chance_level import chance_text, has_chance_level, trivial_baselines
from benchmarks.report.figure import SERIES_COLORS, FigureSet
from benchmarks.report.figure_export import render_inline_svg
from benchmarks.report.notes import PAGE
from benchmarks.report.reference_table import REFERENCE_NOTE
from benchmarks.report.report import Report
from benchmarks.report.sections import built_sections
from benchmarks.report.table import Cell, Column, Table
from benchmarks.report.text_table import row_headings
from benchmarks.results import formatting
from clips.safe_text import jinja_finalize

if TYPE_CHECKING:
    import jinja2
    import pandas as pd

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(report: Report) -> str:
    """The complete page as HTML."""
    notes, environment = report.all_notes(PAGE), _environment()
    sections = [
        (section, "figures" if isinstance(content, FigureSet) else section.id, content)
        for section, content in built_sections(report)
    ]
    body = environment.get_template("sections.html.jinja").render(
        report=report,
        notes=notes,
        note=lambda cell, sign="": note_for_cell(cell, notes, sign),
        sections=sections,
    )
    return environment.get_template("page.html.jinja").render(
        title=report.source.title,
        command="clips-bench report",
        report=report,
        body=Markup(body),
        sections=sections,
    )


def render_comparison(*, title: str, answer: str, tables: Mapping[str, pd.DataFrame], notes: Sequence[str]) -> str:
    """A page of tables.

    Args:
        title: of the page.
        answer: its first sentence.
        tables: heading → frame of strings.
        notes: below the tables.
    """
    template = _environment().get_template("comparison.html.jinja")
    return template.render(title=title, command="clips-bench compare", answer=answer, tables=tables, notes=notes)


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
    functions = (
        *(chance_text, column_header, decimals, error_bar, formatting.decimals_needed, formatting.difference_ci_text),
        *(formatting.format_number, has_chance_level, header_groups, interval_text, margin, missing_label),
        *(missing_text, render_inline_svg, row_headings, trivial_baselines),
    )
    environment.globals.update({function.__name__: function for function in functions})
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment.globals.update(
        thumbnail=ImageDeduplicator().tag,
        series=lambda index: index % SERIES_COLORS,
        reference_note=REFERENCE_NOTE,
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return environment


def note_for_cell(cell: Cell, notes: Sequence[str], sign: str = "") -> int | None:
    """Index of the note on why a cell is missing, not ranked, or with ``sign`` not credited; None without one."""
    if cell.missing is None:
        start = f"{sign or group_sign(cell)} {cell.row} on {column_title(cell.column)} "
        return next((index for index, note in enumerate(notes) if note.startswith(start)), None)
    reason = f"{cell.missing.kind}: {cell.missing.reason.rstrip('.')}."
    indices = [index for index, note in enumerate(notes) if note.endswith(reason)]
    return next((index for index in indices if cell.row in notes[index]), next(iter(indices), None))


@dataclass(frozen=True, kw_only=True)
class ErrorBar:
    """A cell's interval on the common axis of its column, in per cent of the axis."""

    low: float
    high: float
    value: float


def error_bar(table: Table, cell: Cell) -> ErrorBar | None:
    """The interval of a cell between the lowest and the highest end of its column; None without an interval."""
    if cell.ci_low is None or cell.ci_high is None or cell.value is None:
        return None
    cells = table.column_cells(cell.column)
    low = min(each.ci_low for each in cells if each.ci_low is not None)
    span = max(each.ci_high for each in cells if each.ci_high is not None) - low or 1.0
    start, end, value = (round(100 * (each - low) / span, 2) for each in (cell.ci_low, cell.ci_high, cell.value))
    return ErrorBar(low=start, high=end, value=value)


def header_groups(table: Table) -> list[tuple[str, list[Column]]]:
    """Adjacent columns by benchmark, for a header of two lines."""
    groups = itertools.groupby(table.columns, key=lambda column: column.benchmark)
    return [(benchmark, [*columns]) for benchmark, columns in groups]
