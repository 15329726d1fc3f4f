"""``clips-bench report DIR…``: write every format of the report and print the main table."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.report.latex_style import LatexStyle
from benchmarks.study.study_record import Display
from clips.commandline.progress import log_if_slow
from clips.core.durable import atomic_write, writable_directory
from clips.errors import UserError, unknown_name_error
from clips.safe_text import log_info


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write the report of a study, of directories of result files, or of tables of items from any harness.

    Args:
        inputs: a study's output, directories with ``<model>/<benchmark>.json``, and tables of items, .parquet or .csv,
            with the columns ``model,benchmark,metric,item,score`` (docs/item-tables.md).
        output: directory of the report; by default ``report`` in the first directory, or beside the first table,
            ``report-vs-MODEL`` with a baseline,
            ``report-subset`` with ``models`` or ``benchmarks``, ``report-vs-MODEL-subset`` with both, so that the
            study's own report stays.
        baseline: the model that the others are compared with; by default the study's.
        reference_results: results from papers, in a table of their own: SET or SET:MODEL, ``clips`` or
            ``openclip:ViT-B-32/openai`` (sets: clips, openvision, openvision2, siglip2, pe, llava,
            llava_more, openclip, mlcd, rice, onevision_1.5, onevision_2_reruns, onevision_encoder, pe_lang, genlip). If
            ``baseline`` is one of them, the table has the differences from it.
        models: only these, in this order: names or patterns, ``clip,clips`` or ``clips*``.
        benchmarks: only these, in this order: ``BENCHMARK`` or ``BENCHMARK:METRIC``, ``retrieval,pope:accuracy``;
            including metrics that the main table omits.
        formats: any of html, csv, wide, pairs, seeds, markdown, latex, svg, pdf; by default
            all but pdf.
        latex: the intervals and marks of the LaTeX table.
        display: names of models and benchmarks, and groups of models, which override those of the study.
        pairs: ``all`` tests every pair of models, with their differences in ``pairs.csv``; by default models are tested
            against the baseline and the best of a column only, which detects smaller differences.
        items: those that a click on a number of the page shows: ``some``, 200 of each benchmark and the first seeds of
            12 models, or ``all``, which may make a large page.
    """

    inputs: tuple[str, ...]
    output: str | None = None
    baseline: str | None = None
    reference_results: tuple[str, ...] | str = ()
    models: tuple[str, ...] | str = ()
    benchmarks: tuple[str, ...] | str = ()
    formats: tuple[str, ...] | str = ()
    latex: LatexStyle = field(default_factory=LatexStyle)
    display: Display = field(default_factory=Display)
    pairs: Literal["baseline", "all"] = "baseline"
    items: Literal["some", "all"] = "some"

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("inputs: expected a directory or a table of items")


def run_report(config: ReportConfig) -> None:
    """Write the report's files, and print the table and the path.

    Raises: as `write_report`.
    """
    write_report(config)


def write_report(config: ReportConfig, *, brief: bool = False) -> None:
    """Write the report's files, and print the table, or if ``brief`` the answer only, and the path.

    Raises:
        UserError: no results, an unreadable result, an unknown baseline, model, column or format, or an output that is
            not writable.
    """
    from rich.console import Console

    from benchmarks.report.formats import ON_REQUEST, REPORT_FORMATS
    from benchmarks.report.load_results import MissingValue, read_source
    from benchmarks.report.report import Selection, build_report
    from benchmarks.report.text_table import print_report

    formats = _names(config.formats)
    for name in formats:
        if name not in REPORT_FORMATS:
            raise unknown_name_error(name, REPORT_FORMATS, "format")
    selection = Selection(models=_names(config.models), benchmarks=_names(config.benchmarks))
    references = _names(config.reference_results)
    report = build_report(
        read_source(*config.inputs),
        baseline=config.baseline,
        reference_results=references,
        selection=selection,
        latex=config.latex,
        display=config.display,
        pairs=config.pairs,
        every_item=config.items == "all",
    )
    versus = "" if config.baseline is None else "-vs-" + re.sub(r"[^\w.-]+", "_", config.baseline)
    name = "report" + versus + ("-subset" if config.models or config.benchmarks else "")
    first = Path(config.inputs[0])
    output = writable_directory(config.output or (first if first.is_dir() else first.parent) / name)
    size = f"{len(report.table.rows)} models on {len(report.source.benchmarks)} benchmarks"
    with log_if_slow(f"writing the report of {size}"):
        contents = {
            output / name: content
            for chosen in formats or [name for name in REPORT_FORMATS if name not in ON_REQUEST]
            for name, content in REPORT_FORMATS[chosen](report).items()
            if content
        }
    for path, content in contents.items():
        atomic_write(path, content)
    print_report(report, Console(highlight=False), brief=brief)
    for (row, benchmark), outcome in report.source.outcomes.items():
        if isinstance(outcome, MissingValue) and outcome.kind == "invalid":
            log_info(f"warning: {row} on {benchmark}: {outcome.reason}")
    written = [*contents]
    log_info(f"report: {', '.join(map(str, written if formats else written[:1]))}")


def _names(value: tuple[str, ...] | str) -> tuple[str, ...]:
    """The names of a list or of a string with commas."""
    names = value.split(",") if isinstance(value, str) else value
    return tuple(name.strip() for name in names if name.strip())
