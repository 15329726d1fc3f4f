"""A report: the source and everything that is computed from it once, for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.report.another_seed import another_seed_notes
from benchmarks.report.build_table import build_results_table
from benchmarks.report.display_names import merge_display, show_names
from benchmarks.report.latex_style import LatexStyle
from benchmarks.report.load_results import ReportSource, read_source
from benchmarks.report.notes import MarkStyle, mark_legend, table_notes
from benchmarks.report.overall import Overall, overall_scores
from benchmarks.report.reference_table import ReferenceTable, build_reference_table, is_reference_row
from benchmarks.report.row_selection import Selection, omission_notes, select_benchmarks, select_columns
from benchmarks.report.significance import Evidence
from benchmarks.report.summary import headline, row_summaries
from benchmarks.report.table import Column, Table
from benchmarks.results.protocol import INPUT_PREFIX
from benchmarks.results.results import Result
from benchmarks.study.display import Display
from benchmarks.tasks.sizes import full_size, item_count_text

Pairs = Literal["baseline", "all"]


@dataclass(frozen=True, kw_only=True, eq=False)  # hashed by identity, to cache the sections of a report
class Report:
    """The content of a report, which the formats render.

    Args:
        source: the results.
        table: models × primary metrics, with marks and differences; means over seeds if there are several.
        evidence: the items and the training noise of the table's cells.
        overall: averages and mean ranks over the benchmarks of encoders, and over those of LLaVAs.
        details: models × all metrics.
        answer: the headline, one sentence.
        sentences: one for each model with a baseline.
        notes: below the table, after the legend of its marks.
        reference_results: published numbers, in a table of their own.
        latex: the style of the LaTeX table.
    """

    source: ReportSource
    table: Table
    evidence: Evidence
    overall: tuple[Overall, ...]
    details: Table
    answer: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    reference_results: ReferenceTable | None = None
    latex: LatexStyle = field(default_factory=LatexStyle)

    @property
    def other_sentences(self) -> list[str]:
        """The sentences that are not part of the answer."""
        return [sentence for sentence in self.sentences if not self.answer.startswith(sentence)]

    def items_text(self, column: Column) -> str:
        """Number of items of a column, ``"30 of 9,000"``; ``"90 to 120"`` if it varies within the main protocol."""
        measured = self.source.results_with_metric(column.benchmark, column.metric)
        groups = self.source.protocol_groups(measured)
        metrics = {name: result.metrics[column.metric] for name, result in measured.items() if groups[name] == 0}
        counts = [(metric.n, item_count_text(measured[name], metric)) for name, metric in metrics.items()]
        smallest, largest = min(counts, default=(0, "")), max(counts, default=(0, ""))
        return largest[1] if smallest == largest else f"{smallest[1]} to {largest[1]}"

    def full_size(self, column: Column, row: str) -> int | None:
        """Items of the full benchmark if a model, or one of its seeds, was evaluated on a part; None otherwise."""
        sizes = map(full_size, self._results(column, row))
        return max((size for size in sizes if size is not None), default=None)

    def input_size(self, column: Column, row: str, name: str) -> int | None:
        """A size of a model's input, which all of its seeds share, from the protocol; None if it states none."""
        stated = next((each.protocol.get(INPUT_PREFIX + name) for each in self._results(column, row)), None)
        return stated if isinstance(stated, int) else None

    def _results(self, column: Column, row: str) -> list[Result]:
        """The results of a model, or of its seeds, on a column's benchmark."""
        results = self.source.results(column.benchmark)
        seeds = [each.name for each in self.source.rows if each.name in {row, f"{row} (seed {each.seed})"}]
        return [results[name] for name in seeds if name in results]

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
    evidence = Evidence(source)
    full_table = build_results_table(source, evidence, also=keys, all_pairs=pairs == "all")
    full_seed_table = build_results_table(source, evidence, also=keys, by_seed=True)
    details = build_results_table(source, evidence, primary_only=False)
    source = select_benchmarks(source, keys)
    seed_table, table = select_columns(full_seed_table, keys), select_columns(full_table, keys)
    references = reference_results or (source.study.reference_results if source.study else ())
    num_models = len({row.but_for_seed if full_table.seeds else row.name for row in complete.rows})
    overall = overall_scores(full_table, evidence)
    shown = [source.benchmark_id(name) for name in source.benchmarks]
    answer = (" ".join(filter(None, (each.sentence for each in overall))), headline(table))
    if table.baselines - {None}:  # of two models, the difference is the answer
        answer = (answer[1], answer[0] if len(table.rows) > 2 else "")
    return Report(
        source=source,
        table=table,
        evidence=evidence,
        overall=overall,
        details=details,
        answer=" ".join(filter(None, answer)),
        sentences=tuple(row_summaries(table)),
        notes=(
            *omission_notes(full_table, table, num_models),
            *table_notes(source, table, seed_table),
            *another_seed_notes(table, evidence),
        ),
        reference_results=build_reference_table(references, shown, baseline if of_reference else None),
        latex=latex,
    )
