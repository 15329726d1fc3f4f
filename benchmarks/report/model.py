"""A report: the source and everything that is worked out from it once, for all formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.answer import answer, sentences
from benchmarks.report.build import build_table
from benchmarks.report.published import PublishedTable, is_published, published_table
from benchmarks.report.remarks import Signs, legend, remarks
from benchmarks.report.selection import Selection, of_benchmarks, only
from benchmarks.report.significance import Evidence
from benchmarks.report.source import ReportSource, read_source
from benchmarks.report.table import Column, Table
from benchmarks.sizes import full_size, n_words


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
    published: PublishedTable | None = None

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
        found = [(result.metrics[column.metric].n, n_words(result, result.metrics[column.metric]))
                 for row, result in measured.items() if groups[row] == 0]  # fmt: skip
        least, most = min(found, default=(0, "")), max(found, default=(0, ""))
        return most[1] if least == most else f"{least[1]} to {most[1]}"

    def full_size(self, column: Column, row: str) -> int | None:
        """Items of the whole benchmark where a row, or one of its seeds, was measured on fewer; None otherwise."""
        results = self.source.results(column.benchmark)
        mine = [each.name for each in self.source.rows if each.name in {row, f"{row} (seed {each.seed})"}]
        sizes = [full_size(results[name]) for name in mine if name in results]
        return max((size for size in sizes if size is not None), default=None)

    def below(self, signs: Signs) -> list[str]:
        """What stands below the table where it is shown with ``signs``: the legend of its marks, then the remarks."""
        return [*legend(self.table, signs), *self.remarks]


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
        published: published rows beside it, see `select_rows`; those that the study names where empty.
        selection: the rows and columns to show.

    Raises:
        UserError: nothing to report there, an unreadable file, an unknown baseline, row, column or published row.
    """
    of_others = baseline is not None and is_published(baseline)
    everything = read_source(directory, baseline=None if of_others else baseline)
    source = selection.of_source(everything)
    places = selection.places(source)
    evidence = Evidence(source)
    whole, single = build_table(source, evidence, also=places), build_table(source, evidence, also=places, by_seed=True)
    details = build_table(source, evidence, primary_only=False)
    source, by_row, table = of_benchmarks(source, places), only(single, places), only(whole, places)
    shown = published or (source.study.published if source.study else ())
    rows = {row.but_for_seed if whole.seeds else row.name for row in everything.rows}
    left_out = selection.remark(whole, table, len(rows))
    return Report(
        source=source,
        table=table,
        evidence=evidence,
        details=details,
        answer=answer(table),
        sentences=tuple(sentences(table)),
        remarks=(*left_out, *remarks(source, table, by_row)),
        published=published_table(shown, source.benchmarks, baseline if of_others else None),
    )
