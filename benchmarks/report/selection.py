"""What a report shows: selected models and columns, in the given order, under their display names and in groups.

Models are omitted *before* the tests, so that the marks refer to the shown models. Columns are omitted *after* the
tests, so that selecting favorable columns does not lower their p-values.

All text of a report comes from its source, so display names replace the names there, once; different names stay
different, so they identify models and benchmarks as before. Files and columns for programs use `ReportSource.model_id`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.load_results import ReportSource
from benchmarks.report.table import Table
from benchmarks.study.display import Display
from clips.errors import UserError, unknown_name_error

_ColumnKey = tuple[str, str]  # benchmark, metric


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The shown models and columns of a report.

    Args:
        models: names or patterns; all if empty.
        benchmarks: ``BENCHMARK`` (its primary metrics) or ``BENCHMARK:METRIC``, by the metric's name or label; all
            primary metrics if empty.
    """

    models: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()

    def select_models(self, source: ReportSource) -> ReportSource:
        """The source with the selected models; a model whose baseline is omitted has no baseline.

        Raises:
            UserError: an unknown model.
        """
        if not self.models:
            return source
        names = list(dict.fromkeys(name for pattern in self.models for name in _matching(pattern, source)))
        by_name = {row.name: row for row in source.rows}
        rows = [by_name[name] for name in names]
        rows = [row if row.baseline in names else dataclasses.replace(row, baseline=None) for row in rows]
        return dataclasses.replace(source, rows=tuple(rows))

    def column_keys(self, source: ReportSource) -> tuple[_ColumnKey, ...]:
        """The selected columns in order; empty for all.

        Raises:
            UserError: an unknown benchmark or metric.
        """
        return tuple(dict.fromkeys(key for name in self.benchmarks for key in _column_keys(name, source)))


def omission_notes(full: Table, shown: Table, num_models: int) -> list[str]:
    """A line with the numbers of omitted models and columns, if any.

    Args:
        full: the table with all columns.
        shown: the table with the selected ones.
        num_models: number of models before the selection.
    """
    totals = {"models": (num_models, len(shown.rows)), "columns": (len(full.columns), len(shown.columns))}
    omitted = [f"{total - left} of {total} {name}" for name, (total, left) in totals.items() if left < total]
    if not omitted:
        return []
    tests = " Tests are corrected for all columns, omitted ones included." if full.comparisons else ""
    return [f"Omitted from this table: {' and '.join(omitted)}.{tests}"]


def select_columns(table: Table, keys: Sequence[_ColumnKey]) -> Table:
    """The table with some columns; all if ``keys`` is empty."""
    if not keys:
        return table
    columns = {(column.benchmark, column.metric): column for column in table.columns}
    selected = tuple(columns[key] for key in keys if key in columns)
    scores = [cell for cell in table.scores if cell.column in selected]
    return dataclasses.replace(table, columns=selected, scores=scores)


def select_benchmarks(source: ReportSource, keys: Sequence[_ColumnKey]) -> ReportSource:
    """The source with the benchmarks of some columns; all if ``keys`` is empty."""
    names = tuple(dict.fromkeys(benchmark for benchmark, _ in keys))
    return dataclasses.replace(source, benchmarks=names) if names else source


def _matching(pattern: str, source: ReportSource) -> list[str]:
    """The models that match a name or pattern; a name without its seed matches all seeds."""
    names = [
        row.name
        for row in source.rows
        if row.name == pattern or row.model == pattern or fnmatch.fnmatchcase(row.name, pattern)
    ]
    if not names:
        raise unknown_name_error(pattern, [row.name for row in source.rows], "name in 'models'")
    return names


def _column_keys(name: str, source: ReportSource) -> list[_ColumnKey]:
    benchmark, colon, metric = name.partition(":")
    if benchmark not in source.benchmarks:
        raise unknown_name_error(benchmark, source.benchmarks, "name in 'benchmarks'")
    results = source.results(benchmark).values()
    if not colon:
        keys = [(benchmark, primary) for result in results for primary in result.primary if primary in result.metrics]
        return list(dict.fromkeys(keys)) or [(benchmark, "")]
    labels = {key: entry.label for result in results for key, entry in result.metrics.items()}
    for key, label in labels.items():
        if metric == key or metric.casefold() == label.casefold():
            return [(benchmark, key)]
    if not labels:
        raise UserError(f"benchmarks: {benchmark} has no number for any model, so no metric '{metric}'")
    known = dict.fromkeys([*labels, *labels.values()])
    raise unknown_name_error(metric, [*known], f"metric of {benchmark} in 'benchmarks'")


def merge_display(source: ReportSource, display: Display) -> Display:
    """The study's names and groups, overridden by ``display``.

    Raises:
        UserError: ``display`` has an unknown name, or two models or benchmarks would have one name.
    """
    display.check(source.rows, source.benchmarks)
    if source.study is None:
        return display
    of_study = source.study.display
    merged = Display(
        models={**of_study.models, **display.models},
        benchmarks={**of_study.benchmarks, **display.benchmarks},
        groups=display.groups or of_study.groups,
    )
    merged.row_names(source.rows)
    merged.benchmark_names(source.benchmarks)
    return merged


def show_names(source: ReportSource, display: Display) -> ReportSource:
    """The source with display names in place of names, and in groups."""
    models, benchmarks = display.row_names(source.rows), display.benchmark_names(source.benchmarks)
    order = ["", *display.groups]  # models of no group come first
    grouped = [dataclasses.replace(row, group=display.heading(row)) for row in source.rows]
    rows = [
        dataclasses.replace(
            row, name=models[row.name], baseline=row.baseline and models.get(row.baseline, row.baseline)
        )
        for row in sorted(grouped, key=lambda row: order.index(row.group))
    ]
    ids = {shown: name for name, shown in models.items()}
    ids |= {row.model: dataclasses.replace(row, name=ids[row.name]).model for row in rows}
    return dataclasses.replace(
        source,
        rows=tuple(rows),
        benchmarks=tuple(benchmarks[name] for name in source.benchmarks),
        outcomes={
            (models[row], benchmarks[benchmark]): outcome
            for (row, benchmark), outcome in source.outcomes.items()
            if row in models
        },
        model_ids=ids,
        benchmark_ids={shown: name for name, shown in benchmarks.items()},
    )
