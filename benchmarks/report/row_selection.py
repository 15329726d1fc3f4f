"""A part of a report: some of its rows, some of its columns, in the order asked for.

Rows are omitted *before* the tests, so that a mark speaks of the rows that are shown. Columns are omitted *after* them:
choosing the columns that came out well must not make their p-values smaller.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.load_results import ReportSource
from benchmarks.report.table import Table
from clips.errors import UserError, unknown_name_error

_Place = tuple[str, str]  # a benchmark and its metric


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What of a report is shown.

    Args:
        rows: names or patterns; all where empty.
        columns: ``BENCHMARK`` (its main metrics) or ``BENCHMARK:METRIC``, by the metric's name or label; all main
            metrics where empty.
    """

    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def of_source(self, source: ReportSource) -> ReportSource:
        """The source with the chosen rows. A row whose baseline is omitted is compared with none.

        Raises:
            UserError: a name that no row has.
        """
        if not self.rows:
            return source
        names = list(dict.fromkeys(name for pattern in self.rows for name in _matching(pattern, source)))
        by_name = {row.name: row for row in source.rows}
        rows = [by_name[name] for name in names]
        rows = [row if row.baseline in names else dataclasses.replace(row, baseline=None) for row in rows]
        return dataclasses.replace(source, rows=tuple(rows))

    def places(self, source: ReportSource) -> tuple[_Place, ...]:
        """The chosen columns in order; empty where all are shown.

        Raises:
            UserError: a benchmark or metric that is not there.
        """
        return tuple(dict.fromkeys(place for name in self.columns for place in _places(name, source)))

    def remark(self, whole: Table, shown: Table, rows: int) -> list[str]:
        """A line that says what is omitted; none where nothing is.

        Args:
            whole: the table with all columns.
            shown: the chosen ones.
            rows: how many there were.
        """
        left_out = [
            f"{total - here} of {total} {what}"
            for what, total, here in (
                ("models", rows, len(shown.rows)),
                ("columns", len(whole.columns), len(shown.columns)),
            )
            if here < total
        ]
        if not left_out:
            return []
        tests = " Tests are corrected for all columns, omitted ones included." if whole.comparisons else ""
        return [f"Omitted from this table: {' and '.join(left_out)}.{tests}"]


def select_columns(table: Table, places: Sequence[_Place]) -> Table:
    """The table with some columns; all where ``places`` is empty."""
    if not places:
        return table
    columns = {(column.benchmark, column.metric): column for column in table.columns}
    chosen = [columns[place] for place in places if place in columns]
    cells = {key: cell for key, cell in table.cells.items() if key[1:] in places}
    return dataclasses.replace(table, columns=tuple(chosen), cells=cells)


def select_benchmarks(source: ReportSource, places: Sequence[_Place]) -> ReportSource:
    """The source with the benchmarks of some columns; all where ``places`` is empty."""
    names = tuple(dict.fromkeys(benchmark for benchmark, _ in places))
    return dataclasses.replace(source, benchmarks=names) if names else source


def _matching(pattern: str, source: ReportSource) -> list[str]:
    """Rows of that name or pattern; a name without its seed means all seeds."""
    found = [
        row.name
        for row in source.rows
        if row.name == pattern
        or row.name.removesuffix(f" (seed {row.seed})") == pattern
        or fnmatch.fnmatchcase(row.name, pattern)
    ]
    if not found:
        raise unknown_name_error(pattern, [row.name for row in source.rows], "row in 'rows'")
    return found


def _places(name: str, source: ReportSource) -> list[_Place]:
    benchmark, colon, metric = name.partition(":")
    if benchmark not in source.benchmarks:
        raise unknown_name_error(benchmark, source.benchmarks, "benchmark in 'columns'")
    results = source.results(benchmark).values()
    if not colon:
        places = [(benchmark, found) for result in results for found in result.primary if found in result.metrics]
        return list(dict.fromkeys(places)) or [(benchmark, "")]
    labels = {found: entry.label for result in results for found, entry in result.metrics.items()}
    for known, label in labels.items():
        if metric == known or metric.casefold() == label.casefold():
            return [(benchmark, known)]
    if not labels:
        raise UserError(f"columns: {benchmark} has no number in any row, so no metric '{metric}'")
    raise unknown_name_error(
        metric, list(dict.fromkeys([*labels, *labels.values()])), f"metric of {benchmark} in 'columns'"
    )
