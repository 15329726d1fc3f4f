"""``clips-bench report DIR``: write every format of the report and print the main table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clips.core.artifact import atomic_write, log_info, writable_directory
from clips.errors import unknown_name_error


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report of a study, or of any directory of result files.

    Args:
        directory: a study's output, or a directory with ``<row>/<benchmark>.json``.
        output: where the report goes; where not given ``report`` inside the directory, with a baseline
            ``report-vs-MODEL``, with rows or columns ``report-subset``, so that the study's own stays.
        baseline: the row that the others are compared with; as the study says where not given.
        reference_results: results that papers report, shown apart: SET or SET:ROW, ``clips`` or
            ``openclip:ViT-B-32/openai`` (sets: clips, openvision, siglip2, pe, llava, llava_more, openclip). Where
            ``baseline`` names one of them, the others' differences to it are shown.
        rows: only these, in this order: names or patterns, ``clip,clips`` or ``clips*``.
        columns: only these, in this order: ``BENCHMARK`` or ``BENCHMARK:METRIC``, ``retrieval,pope:accuracy``; also
            metrics that the main table leaves out.
        formats: which of html, csv, wide, reference_results, seeds, sweep, markdown, latex, svg, pdf to write; all
            where empty.
    """

    directory: str
    output: str | None = None
    baseline: str | None = None
    reference_results: tuple[str, ...] | str = ()
    rows: tuple[str, ...] | str = ()
    columns: tuple[str, ...] | str = ()
    formats: tuple[str, ...] | str = ()


def run_report(config: ReportConfig) -> None:
    """Write the report's files and print the table and their place.

    Raises:
        UserError: nothing to report, an unreadable result, an unknown baseline, row, column or format, no place to
            write.
    """
    from rich.console import Console

    from benchmarks.report.formats import REPORT_FORMATS
    from benchmarks.report.load_results import MissingValue
    from benchmarks.report.report import build_report
    from benchmarks.report.row_selection import Selection
    from benchmarks.report.terminal_table import print_report

    formats = _names(config.formats)
    for name in formats:
        if name not in REPORT_FORMATS:
            raise unknown_name_error(name, REPORT_FORMATS, "format")
    selection = Selection(rows=_names(config.rows), columns=_names(config.columns))
    built = build_report(
        config.directory, baseline=config.baseline, published=_names(config.reference_results), selection=selection
    )
    output = writable_directory(config.output or Path(config.directory) / _folder(config))
    contents = {
        output / name: content
        for chosen in formats or REPORT_FORMATS
        for name, content in REPORT_FORMATS[chosen].files(built).items()
        if content
    }
    for path, content in contents.items():
        atomic_write(path, content)
    print_report(built, Console(highlight=False))
    for (row, benchmark), outcome in built.source.outcomes.items():
        if isinstance(outcome, MissingValue) and outcome.kind == "invalid":
            log_info(f"warning: {row} on {benchmark}: {outcome.reason}")
    written = [*contents]
    log_info(f"report: {', '.join(map(str, written if formats else written[:1]))}")


def _names(given: tuple[str, ...] | str) -> tuple[str, ...]:
    """A list, or names with commas between."""
    words = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in words if name.strip())


def _folder(config: ReportConfig) -> str:
    against = "" if config.baseline is None else "-vs-" + re.sub(r"[^\w.-]+", "_", config.baseline)
    return "report" + against + ("-subset" if config.rows or config.columns else "")
