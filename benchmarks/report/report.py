"""A report: the source and everything that is computed from it once, for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.report.answer import headline, row_sentences
from benchmarks.report.averages import Overall, overall_scores
from benchmarks.report.differences import compare_models
from benchmarks.report.load_results import ReportSource, read_source
from benchmarks.report.notes import MarkStyle, Note, mark_legend, table_notes
from benchmarks.report.published import ReferenceTable, build_reference_table, is_reference_row
from benchmarks.report.report_command import LatexStyle
from benchmarks.report.scores import mean_tables, seed_tables, set_gains
from benchmarks.report.selection import (
    Selection,
    merge_display,
    omission_notes,
    select_benchmarks,
    select_columns,
    show_names,
)
from benchmarks.report.table import Table
from benchmarks.results.item_scores import ItemScores
from benchmarks.study.display import Display

Pairs = Literal["baseline", "all"]


@dataclass(frozen=True, kw_only=True, eq=False)  # hashed by identity, to cache the sections of a report
class Report:
    """The content of a report, which the formats render.

    Args:
        source: the results.
        table: models × primary metrics, with marks and differences; means over seeds if there are several.
        details: models × all metrics.
        items: of the results.
        overall: averages and mean ranks over the benchmarks of encoders, and over those of LLaVAs.
        answer: the headline, one sentence.
        sentences: one for each model with a baseline.
        notes: below the table, after the legend of its marks.
        reference_results: published numbers, in a table of their own.
        latex: the style of the LaTeX table.
    """

    source: ReportSource
    table: Table
    details: Table
    items: ItemScores
    overall: tuple[Overall, ...]
    answer: str
    sentences: tuple[str, ...]
    notes: tuple[Note, ...]
    reference_results: ReferenceTable | None = None
    latex: LatexStyle = field(default_factory=LatexStyle)

    @property
    def other_sentences(self) -> list[str]:
        """The sentences that are not part of the answer."""
        return [sentence for sentence in self.sentences if not self.answer.startswith(sentence)]

    def all_notes(self, style: MarkStyle) -> list[str]:
        """The lines below the table: the legend of its marks in a format's ``style``, then the notes."""
        return [*mark_legend(self.table, style), *self.notes]


def build_report(
    directory: str | Path,
    *,
    baseline: str | None = None,
    reference_results: Sequence[str] = (),
    selection: Selection = Selection(),  # noqa: B008 - it is frozen
    latex: LatexStyle = LatexStyle(),  # noqa: B008
    display: Display = Display(),  # noqa: B008
    pairs: Pairs = "baseline",
) -> Report:
    """Read a study or a directory of results and compute its report.

    Args:
        directory: of the study or the results.
        baseline: the model that the others are compared with; the name of a published model compares published ones.
        reference_results: published models, see `select_reference_results`; those that the study names if empty.
        selection: the models and columns to show.
        latex: the style of the LaTeX table.
        display: names and groups, which override those of the study.
        pairs: the pairs of models that are tested: those with the baseline and the best, or all.

    Raises:
        UserError: no results, an unreadable file, an unknown baseline, model, column or published model, or a display
            name that is not unique.
    """
    of_reference = baseline is not None and is_reference_row(baseline)
    complete = read_source(directory, baseline=None if of_reference else baseline)
    display = merge_display(complete, display)
    source = selection.select_models(complete)
    names = display.benchmark_names(source.benchmarks)
    keys = tuple((names[benchmark], metric) for benchmark, metric in selection.column_keys(source))
    source = show_names(source, display)
    items = ItemScores()
    of_seeds = seed_tables(source, items, also=keys)
    complete_table, details = mean_tables(of_seeds, source, items)
    set_gains(complete_table, items)
    compare_models([complete_table], items, all_pairs=pairs == "all")
    source = select_benchmarks(source, keys)
    table, seed_table = select_columns(complete_table, keys), select_columns(of_seeds[0], keys)
    references = reference_results or (source.study.reference_results if source.study else ())
    num_models = len({row.but_for_seed if table.seeds else row.name for row in complete.rows})
    overall = overall_scores(complete_table)
    shown = [source.benchmark_id(name) for name in source.benchmarks]
    answer = (" ".join(filter(None, (each.sentence for each in overall))), headline(table))
    if table.baselines:  # of two models, the difference is the answer
        answer = (answer[1], answer[0] if len(table.rows) > 2 else "")
    omissions = omission_notes(complete_table, table, num_models)
    return Report(
        source=source,
        table=table,
        details=details,
        items=items,
        overall=overall,
        answer=" ".join(filter(None, answer)),
        sentences=tuple(row_sentences(table)),
        notes=(*map(Note, omissions), *table_notes(source, table, seed_table)),
        reference_results=build_reference_table(references, shown, baseline if of_reference else None),
        latex=latex,
    )
