"""Below the table: the legend of the marks that stand in it, why cells are empty, what was not ranked together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.report.cell_text import column_title, decimals
from benchmarks.report.chance_level import chance_notes
from benchmarks.report.load_results import MissingValue, ReportSource
from benchmarks.report.table import ALPHA, BaselineDifference, Table
from benchmarks.results.formatting import (
    MAX_TEXT_CHARS,
    decimals_needed,
    format_number,
    join_or_count,
    join_row_names,
    join_with_and,
    strip_control_chars,
)
from benchmarks.results.protocol import INPUT_PREFIX
from benchmarks.results.results import Result
from benchmarks.study.study_record import EXCLUDED_FROM_BENCHMARK
from benchmarks.study.training_settings import CONFOUNDED_WARNING, TrainingSettings, diff_training, training_of_result
from benchmarks.tasks.sizes import parts

SYNTHETIC_DATA_NOTE = (
    "The pictures are scenes drawn by this suite: a means to run and to test every part of it, never a claim about "
    "real photographs. Claims come from real data."
)


@dataclass(frozen=True, kw_only=True)
class MarkLegend:
    """How a format shows what was tested.

    Args:
        best: how a cell looks that is told from all others of its column; empty where it looks like any.
        tied: the same of cells at the top that are not told from each other.
        differences: whether ▲, ▼ and ≈ stand at differences to a baseline.
    """

    best: str
    tied: str
    differences: bool = False


PAGE = MarkLegend(best="bold, full mark", tied="open mark", differences=True)
MARKDOWN = MarkLegend(best="bold", tied="italics")
LATEX = MarkLegend(best="bold", tied="underlined")
TERMINAL = MarkLegend(best="bold, green", tied="green")
PLAIN = MarkLegend(best="", tied="")


def table_notes(source: ReportSource, table: Table, by_row: Table) -> list[str]:
    """All remarks that apply, the study's own notes first; ``by_row`` is the table before its seeds were made one."""
    found = [*source.notes]
    if any(record.command.startswith("clips scenes") for record in source.steps):
        found.append(SYNTHETIC_DATA_NOTE)
    return [
        *found,
        *_about_intervals(table),
        *_about_power(table),
        *chance_notes(table),
        *_about_skill(source),
        *_about_training(source),
        *_about_gaps(source, by_row),
        *_about_missing_items(source),
        *_about_sizes(source),
        *_about_protocols(source, by_row),
    ]


def mark_legend(table: Table, signs: MarkLegend) -> list[str]:
    """What the marks mean that stand in ``table`` where it is shown with ``signs``."""
    lines = []
    marks = {cell.mark for cell in table.cells.values()}
    if "best" in marks and signs.best:
        lines.append(f"Best ({signs.best}): a test tells the row from every other row of its column.")
    if "tied" in marks and signs.tied:
        lines.append(f"Tied ({signs.tied}): no test tells these rows from the one at the top of the column.")
    if not table.comparisons:
        return lines
    what = [*(["marks"] if lines else []), *(["differences to the baseline"] if _deltas(table) else [])]
    if what:
        test = "paired tests over images and seeds" if table.seeds else "paired tests over images"
        lines.append(
            f"{' and '.join(what).capitalize()} rest on {test}, the p-values of all {table.comparisons} "
            f"Holm-corrected together{_sign_lines(table, signs)}."
        )
    return lines


def _sign_lines(table: Table, signs: MarkLegend) -> str:
    if not signs.differences:
        return ""
    shown = {bool(delta.significant) for delta in _deltas(table)}
    said = {True: f"▲ and ▼ were shown (p < {ALPHA})", False: "≈ was not shown"}
    told = ", ".join(said[kind] for kind in (True, False) if kind in shown)
    return f"; {told}" if told else ""


def _deltas(table: Table) -> list[BaselineDifference]:
    return [cell.delta for cell in table.cells.values() if cell.delta is not None]


def _about_intervals(table: Table) -> list[str]:
    if table.seeds:
        return [
            f"Numbers are means over up to {table.seeds} seeds. Their 95 % intervals hold both kinds of noise, of the "
            "benchmark's images and of training, whose variance is pooled over the trained models of a column. A "
            "pretrained model is evaluated once and has the noise of images alone.",
            *_about_refusals(table),
            *_about_bare_numbers(table),
        ]
    lines = []
    if any(cell.ci_low is not None for cell in table.cells.values()):
        lines.append("Intervals are 95 % intervals over the benchmark's pictures; training noise is not in them.")
    return lines + _about_bare_numbers(table)


def _about_bare_numbers(table: Table) -> list[str]:
    """Which numbers have no interval."""
    bare = [cell for cell in table.cells.values() if cell.value is not None and cell.ci_low is None]
    if bare:
        where = dict.fromkeys(f"{cell.row} on {column_title(cell.column)}" for cell in bare)
        return [
            f"No interval: {join_or_count([*where], 'numbers')}. Where all items came out alike, or only a "
            f"scorer's total is "
            "known, nothing tells how far the number is to be trusted."
        ]
    return []


def _about_refusals(table: Table) -> list[str]:
    """Which differences nothing can be said of, since the seeds have no spread."""
    where: dict[str, list[str]] = {}
    for first, second in table.refused:
        where.setdefault(column_title(first.column), []).append(f"{first.row} and {second.row}")
    return [
        f"No test on {column}: the seeds of every model that has several answer alike, so that nothing is known of the "
        f"noise of training ({join_or_count(pairs, 'pairs')})."
        for column, pairs in where.items()
    ] + [
        f"On {column_title(column)} each model was evaluated once: intervals and tests there are over images alone."
        for column in table.images_only
    ]


def _about_power(table: Table) -> list[str]:
    """What the comparisons could have shown at all: no difference shown is not the same as no difference."""
    smallest: dict[str, str] = {}
    for column in table.columns:
        found = [cell.delta.min_detectable_difference for cell in table.column_cells(column) if cell.delta]
        known = [value for value in found if math.isfinite(value)]
        if known and column.higher_is_better is not None:
            smallest[column_title(column)] = format_number(max(known), decimals_needed(max(known), decimals(column)))
    if not smallest:
        return []
    over = "images and seeds" if table.seeds else "images"
    said = join_with_and([f"{value} on {name}" for name, value in smallest.items()])
    return [
        f"The smallest difference to the baseline that these benchmarks could have shown: {said} (in a single test at "
        f"5 %, four times in five, by the spread over {over} that was seen; it takes more where rows differ in more "
        "items, and where many tests are corrected for)."
    ]


def _about_skill(source: ReportSource) -> list[str]:
    said = {
        name: {result.trivial_baseline_note for result in source.results(name).values()} - {""}
        for name in source.benchmarks
    }
    return [
        f"{name}: {strip_control_chars(text, MAX_TEXT_CHARS)}" for name, texts in said.items() for text in sorted(texts)
    ]


def _about_training(source: ReportSource) -> list[str]:
    """Which rows were given other data, steps, batches, rates, … than what they are compared with; seeds are fine."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # sentence → rows, what they are compared with
    trainings: dict[str, TrainingSettings] = {}

    def training(result: Result) -> TrainingSettings:
        model = repr(result.model)
        if model not in trainings:
            trainings[model] = training_of_result(result)
        return trainings[model]

    for benchmark in source.benchmarks:
        results = source.results(benchmark)
        first = None if any(row.baseline for row in source.rows) else next(iter(results), None)
        for row in source.rows:
            other = row.baseline or first
            if row.name in results and other in results and row.name != other:
                for what in diff_training(training(results[row.name]), training(results[other])).uneven:
                    rows, others = found.setdefault(what, ({}, {}))
                    rows[row.name], others[other] = None, None
    told: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for what, (rows, others) in found.items():
        told.setdefault((tuple(rows), tuple(others)), []).append(what)
    return [
        f"{join_row_names([*rows])} {'were' if len(rows) > 1 else 'was'} not trained like {join_row_names([*others])}: "
        f"{'; '.join(what for what in whats if f'encoder.{what}' not in whats)}. " + CONFOUNDED_WARNING
        for (rows, others), whats in told.items()
    ]


def _about_gaps(source: ReportSource, table: Table) -> list[str]:
    places: dict[tuple[str, str], dict[str, None]] = {}
    for column in table.columns:
        for cell in table.column_cells(column):
            if cell.missing and cell.missing.reason != EXCLUDED_FROM_BENCHMARK:
                whole = isinstance(source.outcomes[cell.row, column.benchmark], MissingValue)
                where = column.benchmark if whole else column_title(column)
                places.setdefault((cell.row, f"{cell.missing.kind}: {cell.missing.reason}"), {})[where] = None
    rows: dict[tuple[str, str], list[str]] = {}
    for (row, reason), benchmarks in places.items():
        rows.setdefault((join_with_and([*benchmarks]), reason), []).append(row)
    return [f"{join_row_names(names)} on {on}: {reason.rstrip('.')}." for (on, reason), names in rows.items()]


def _about_missing_items(source: ReportSource) -> list[str]:
    """Numbers that had to be believed: a result is checked against its items when it is read."""
    found: dict[str, list[str]] = {}
    for benchmark in source.benchmarks:
        bare = [row for row, result in source.results(benchmark).items() if result.items is None]
        if bare:
            found.setdefault(join_row_names(bare), []).append(benchmark)
    where = "; ".join(f"{rows} on {join_or_count(names, 'benchmarks')}" for rows, names in found.items())
    return [f"Not checked against their items, which are missing: {where}."] if where else []


def _about_sizes(source: ReportSource) -> list[str]:
    found = parts(result for name in source.benchmarks for result in source.results(name).values())
    return [f"Measured on a part of the benchmark: {'; '.join(found)}."] if found else []


def _about_protocols(source: ReportSource, table: Table) -> list[str]:
    lines = []
    for column in table.columns:
        for cell in table.column_cells(column):
            if cell.protocol_differences:
                sign = "†" * cell.group
                lines.append(
                    f"{sign} {cell.row} on {column_title(column)} was measured otherwise and is not ranked with the "
                    f"rest of its column ({'; '.join(cell.protocol_differences)})."
                )
    return lines + _about_inputs(source)


def _about_inputs(source: ReportSource) -> list[str]:
    """How a model takes its input belongs to it; where the rows differ in it, the reader is told."""
    lines = []
    for benchmark in source.benchmarks:
        results = source.results(benchmark)
        names = sorted(
            {name for result in results.values() for name in result.protocol if name.startswith(INPUT_PREFIX)}
        )
        for name in names:
            values = {row: result.protocol.get(name, "not stated") for row, result in results.items()}
            if len(set(map(str, values.values()))) > 1:
                what = name.removeprefix(INPUT_PREFIX).replace("_", " ")
                said = join_with_and([f"{row} {value}" for row, value in values.items()])
                lines.append(f"Rows take their input differently, each as its model says: {what} {said}.")
    return list(dict.fromkeys(lines))
