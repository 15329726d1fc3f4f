"""A report: the source and everything that is worked out from it once, for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.build_table import build_results_table
from benchmarks.report.load_results import ReportSource, read_source
from benchmarks.report.notes import MarkLegend, mark_legend, table_notes
from benchmarks.report.reference_table import ReferenceTable, build_reference_table, is_reference_row
from benchmarks.report.row_selection import Selection, select_benchmarks, select_columns
from benchmarks.report.significance import Evidence
from benchmarks.report.summary import headline, row_summaries
from benchmarks.report.table import Column, Table
from benchmarks.tasks.sizes import full_size, item_count_text


@dataclass(frozen=True, kw_only=True, eq=False)  # one is as good as another only if it is the same
class Report:
    """What the formats print.

    Args:
        source: what was read.
        table: rows × primary metrics, with marks and differences; means over seeds where there are several.
        evidence: what the table's cells rest on.
        details: rows × all metrics.
        answer: one sentence.
        sentences: one for every row that has a baseline.
        remarks: below the table, behind what `below` says of its marks.
        published: numbers of others that stand apart.
    """

    source: ReportSource
    table: Table
    evidence: Evidence
    details: Table
    answer: str
    sentences: tuple[str, ...]
    remarks: tuple[str, ...]
    published: ReferenceTable | None = None

    @property
    def other_sentences(self) -> list[str]:
        """Those on the rows of which the answer does not speak."""
        return [sentence for sentence in self.sentences if not self.answer.startswith(sentence)]

    def n_words(self, column: Column) -> str:
        """The items of a column's numbers, ``"30 of 9,000"``; ``"90 to 120"`` where the rows of the main protocol have
        unlike many."""
        results = self.source.results(column.benchmark)
        measured = {row: result for row, result in results.items() if column.metric in result.metrics}
        groups = self.source.protocol_groups(measured)
        found = [(result.metrics[column.metric].n, item_count_text(result, result.metrics[column.metric]))
                 for row, result in measured.items() if groups[row] == 0]  # fmt: skip
        least, most = min(found, default=(0, "")), max(found, default=(0, ""))
        return most[1] if least == most else f"{least[1]} to {most[1]}"

    def full_size(self, column: Column, row: str) -> int | None:
        """Items of the whole benchmark where a row, or one of its seeds, was measured on fewer; None otherwise."""
        results = self.source.results(column.benchmark)
        mine = [each.name for each in self.source.rows if each.name in {row, f"{row} (seed {each.seed})"}]
        sizes = [full_size(results[name]) for name in mine if name in results]
        return max((size for size in sizes if size is not None), default=None)

    def below(self, signs: MarkLegend) -> list[str]:
        """What is below the table where it is shown with ``signs``: the legend of its marks, then the remarks."""
        return [*mark_legend(self.table, signs), *self.remarks]


def build_report(
    directory: str | Path,
    *,
    baseline: str | None = None,
    published: Sequence[str] = (),
    selection: Selection = Selection(),  # noqa: B008 - it is frozen
) -> Report:
    """Read a study or a directory of results and work out its report.

    Args:
        directory: of the study or the results.
        baseline: a row that the others are compared with; the name of a published one goes for published rows.
        published: published rows next to it, see `select_rows`; those that the study names where empty.
        selection: the rows and columns to show.

    Raises:
        UserError: nothing to report there, an unreadable file, an unknown baseline, row, column or published row.
    """
    of_others = baseline is not None and is_reference_row(baseline)
    everything = read_source(directory, baseline=None if of_others else baseline)
    source = selection.of_source(everything)
    places = selection.places(source)
    evidence = Evidence(source)
    whole, single = (
        build_results_table(source, evidence, also=places),
        build_results_table(source, evidence, also=places, by_seed=True),
    )
    details = build_results_table(source, evidence, primary_only=False)
    source, by_row, table = (
        select_benchmarks(source, places),
        select_columns(single, places),
        select_columns(whole, places),
    )
    shown = published or (source.study.reference_results if source.study else ())
    rows = {row.but_for_seed if whole.seeds else row.name for row in everything.rows}
    left_out = selection.remark(whole, table, len(rows))
    return Report(
        source=source,
        table=table,
        evidence=evidence,
        details=details,
        answer=headline(table),
        sentences=tuple(row_summaries(table)),
        remarks=(*left_out, *table_notes(source, table, by_row)),
        published=build_reference_table(shown, source.benchmarks, baseline if of_others else None),
    )
