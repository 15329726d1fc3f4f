"""A report: the selected results and everything that is computed from them once, for all formats.

Models are omitted *before* the tests, so that the marks refer to the shown models. Columns are omitted *after* the
tests, so that selecting favorable columns does not lower their p-values. All text of a report comes from its source, so
display names replace the names there, once; files and columns for programs use `ReportSource.model_id`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.report.answer import headline, row_sentences, verdict
from benchmarks.report.averages import Overall, overall_scores
from benchmarks.report.differences import compare_models
from benchmarks.report.latex_style import LatexStyle
from benchmarks.report.load_results import ReportSource, read_source, with_baseline
from benchmarks.report.notes import MarkStyle, Note, brief_notes, mark_legend, table_notes
from benchmarks.report.published import ReferenceTable, build_reference_table, is_reference_row
from benchmarks.report.scores import mean_tables, seed_tables
from benchmarks.report.table import Cell, Table
from benchmarks.results.formatting import join_or_count
from benchmarks.results.item_scores import ItemScores
from benchmarks.study.study_record import Display
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
        names = dict[str, None]()
        for pattern in self.models:  # a name without its seed matches all seeds
            chosen = [
                row.name
                for row in source.rows
                if pattern in (row.name, row.model) or fnmatch.fnmatchcase(row.name, pattern)
            ]
            if not chosen:
                raise unknown_name_error(pattern, [row.name for row in source.rows], "name in 'models'")
            names |= dict.fromkeys(chosen)
        by_name = {row.name: row for row in source.rows}
        rows = [by_name[name] for name in names]
        rows = [row if row.baseline in names else dataclasses.replace(row, baseline=None) for row in rows]
        return dataclasses.replace(source, rows=tuple(rows))

    def column_keys(self, source: ReportSource) -> tuple[_ColumnKey, ...]:
        """The selected columns in order; empty for all.

        Raises:
            UserError: an unknown benchmark or metric.
        """
        keys = dict[_ColumnKey, None]()
        for name in self.benchmarks:
            benchmark, colon, metric = name.partition(":")
            if benchmark not in source.benchmarks:
                raise unknown_name_error(benchmark, source.benchmarks, "name in 'benchmarks'")
            results = source.results(benchmark).values()
            labels = {key: entry.label for result in results for key, entry in result.metrics.items()}
            if not colon:
                primary = [key for result in results for key in result.primary if key in result.metrics]
                keys |= dict.fromkeys((benchmark, key) for key in primary or [""])
                continue
            chosen = [key for key, label in labels.items() if metric.casefold() == label.casefold()]
            chosen = [metric] if metric in labels else sorted(chosen, key=lambda key: labels[key] != metric)
            if not labels:
                raise UserError(f"benchmarks: {benchmark} has no number for any model, so no metric '{metric}'")
            if not chosen:
                known = dict.fromkeys([*labels, *labels.values()])
                raise unknown_name_error(metric, [*known], f"metric of {benchmark} in 'benchmarks'")
            keys[benchmark, chosen[0]] = None
        return tuple(keys)


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
        verdict: how often one model won, tied and lost; empty without tests.
        answer: the headline.
        sentences: one for each model with a baseline.
        notes: below the table, after the legend of its marks.
        reference_results: published numbers, in a table of their own.
        latex: the style of the LaTeX table.
        every_item: whether the page has every item of every model, not 200 of each benchmark and 12 models.
    """

    source: ReportSource
    table: Table
    details: Table
    items: ItemScores
    overall: tuple[Overall, ...]
    verdict: str
    answer: str
    sentences: tuple[str, ...]
    notes: tuple[Note, ...]
    reference_results: ReferenceTable | None = None
    latex: LatexStyle = field(default_factory=LatexStyle)
    every_item: bool = False

    @property
    def other_sentences(self) -> list[str]:
        """The sentences that are not part of the answer."""
        return [sentence for sentence in self.sentences if not self.answer.startswith(sentence)]

    def has_all_of(self, numbers: Collection[str], benchmarks: Collection[str]) -> bool:
        """Whether the table shows the models and the benchmarks of an average, so that it may stand next to them."""
        shown = {column.benchmark for column in self.table.columns}
        return {*numbers} == {row.name for row in self.table.rows} and shown.issuperset(benchmarks)

    @property
    def texts(self) -> list[str]:
        """The texts of the notes."""
        return [note.text for note in self.notes]

    def all_notes(self, style: MarkStyle) -> list[str]:
        """The lines below the table: the legend of its marks in a format's ``style``, then the notes."""
        return [*mark_legend(self.table, style), *self.texts]

    def first_notes(self, style: MarkStyle) -> list[str]:
        """The legend, and at most three short sentences on what changes how the table is to be read."""
        return [*mark_legend(self.table, style), *brief_notes(self.notes)]


def build_report(
    directory: str | Path | ReportSource,
    *,
    baseline: str | None = None,
    reference_results: Sequence[str] = (),
    selection: Selection = Selection(),
    latex: LatexStyle = LatexStyle(),  # noqa: B008
    display: Display = Display(),  # noqa: B008
    pairs: Pairs = "baseline",
    ranked: bool = True,
    untested: Callable[[Cell, Cell], bool] = lambda cell, base: False,
    every_item: bool = False,
) -> Report:
    """Read a study or a directory of results and compute its report.

    Args:
        directory: of the study or the results; or these, read.
        baseline: the model that the others are compared with; the name of a published model, unless a measured one has
            it, compares published ones.
        reference_results: published models, see `select_reference_results`; those that the study names if empty.
        selection: the models and columns to show.
        latex: the style of the LaTeX table.
        display: names and groups, which override those of the study.
        pairs: the pairs of models that are tested: those with the baseline and the best, or all.
        ranked: whether the models are tested against the best of a column, which is marked.
        untested: (cell, baseline's cell) → whether to omit this test.
        every_item: see `Report`.

    Raises:
        UserError: no results, an unreadable file, an unknown baseline, model, column or published model, or a display
            name that is not unique.
    """
    complete = directory if isinstance(directory, ReportSource) else read_source(directory)
    measured = {name for row in complete.rows for name in (row.name, row.model)}
    of_reference = baseline is not None and baseline not in measured and is_reference_row(baseline)
    if baseline and not of_reference:
        complete = with_baseline(complete, baseline)
    display = merge_display(complete, display)
    source = selection.select_models(complete)
    names = display.benchmark_names(source.benchmarks)
    keys = tuple((names[benchmark], metric) for benchmark, metric in selection.column_keys(source))
    source = show_names(source, display)
    items = ItemScores()
    of_seeds = seed_tables(source, items, also=keys)
    complete_table, details = mean_tables(of_seeds, source, items)
    (complete_table,) = compare_models(
        [complete_table], items, ranked=ranked, all_pairs=pairs == "all", untested=untested
    )
    if keys:
        source = dataclasses.replace(source, benchmarks=tuple(dict.fromkeys(benchmark for benchmark, _ in keys)))
    table, seed_table = (_with_columns(each, keys) for each in (complete_table, of_seeds[0]))
    references = reference_results or (source.study.reference_results if source.study else ())
    num_models = len({row.but_for_seed if table.seeds else row.name for row in complete.rows})
    totals = (
        (num_models, len(table.rows), "models"),
        (len(complete_table.columns), len(table.columns), "columns"),
    )
    omitted = [f"{total - left} of {total} {name}" for total, left, name in totals if left < total]
    selected = {row.name for row in selection.select_models(complete).rows}
    left_out = {row.model if table.seeds else row.name: None for row in complete.rows if row.name not in selected}
    models = f" Tests do not count {join_or_count([*left_out], 'omitted models')}." if left_out else ""
    fewer_columns = complete_table.comparisons and len(table.columns) < len(complete_table.columns)
    tests = " Tests are corrected for all columns, omitted ones included." if fewer_columns else ""
    text = f"Omitted from this table: {' and '.join(omitted)}.{models}{tests}"
    omissions = [Note(kind="omitted", text=text)] if omitted else []
    overall = overall_scores(complete_table)
    if overall and ranked and source.study is None and not (selection.models or display.groups):
        # nobody chose the order of a directory; that of a study, of `models` and of groups is their author's
        order = overall[-1].order
        rows = sorted(source.rows, key=lambda row: order.index(row.name if row.name in order else row.model))
        source = dataclasses.replace(source, rows=tuple(rows))
        complete_table, table, details = (each.in_order(order) for each in (complete_table, table, details))
    shown = [source.benchmark_id(name) for name in source.benchmarks]
    answer = (" ".join(filter(None, (each.sentence for each in overall))), headline(table))
    if table.baselines:  # of two models, the difference is the answer
        answer = (answer[1], answer[0] if len(table.rows) > 2 else "")
    return Report(
        source=source,
        table=table,
        details=details,
        items=items,
        overall=overall,
        verdict=verdict(table),
        answer=" ".join(filter(None, answer)),
        sentences=tuple(row_sentences(table)),
        notes=(*omissions, *table_notes(source, table, seed_table)),
        reference_results=build_reference_table(references, shown, baseline if of_reference else None),
        latex=latex,
        every_item=every_item,
    )


def _with_columns(table: Table, keys: Sequence[_ColumnKey]) -> Table:
    """The table with some columns; all if ``keys`` is empty."""
    columns = {(column.benchmark, column.metric): column for column in table.columns}
    selected = tuple(columns[key] for key in keys if key in columns) if keys else table.columns
    scores = [cell for cell in table.scores if cell.column in selected]
    return dataclasses.replace(table, columns=selected, scores=scores)
