"""The notes below the table: the legend of its marks, reasons of missing values, differences of protocols."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.report.blind_gain import gain_notes
from benchmarks.report.cell_text import ELSEWHERE, column_title, decimals, group_sign, unread_differences
from benchmarks.report.chance_level import chance_notes
from benchmarks.report.load_results import MissingValue, ReportSource
from benchmarks.report.table import ALPHA, Table
from benchmarks.report.training_settings import CONFOUNDED_WARNING, TrainingSettings, diff_training, training_of_result
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
from benchmarks.results.results import MAX_UNREAD, UNREAD, UNREAD_WRONG, Result
from benchmarks.study.rows import EXCLUDED_FROM_BENCHMARK
from benchmarks.tasks.encoders.linear_probe import IN_TRAIN, UNSEEN_ACCURACY
from benchmarks.tasks.sizes import parts


@dataclass(frozen=True, kw_only=True)
class MarkStyle:
    """How a format shows the marks.

    Args:
        best: the look of a cell with the mark ``best``; empty if the format does not show it.
        tied: the same for ``tied``.
        differences: whether differences from a baseline have the signs ▲, ▼ and ≈.
    """

    best: str
    tied: str
    differences: bool = False


PAGE = MarkStyle(best="bold, filled mark", tied="open mark", differences=True)
MARKDOWN = MarkStyle(best="bold", tied="italics")
LATEX = MarkStyle(best="bold", tied="underlined")
TERMINAL = MarkStyle(best="bold, green", tied="green")
PLAIN = MarkStyle(best="", tied="")


def table_notes(source: ReportSource, table: Table, seed_table: Table) -> list[str]:
    """All notes that apply, the study's own first; ``seed_table`` is the table before the aggregation of seeds."""
    results = ((name, row, each) for name in source.benchmarks for row, each in source.results(name).items())
    part_sizes = parts(results)
    return [
        *source.notes,
        *_about_intervals(table),
        *_about_power(table),
        *chance_notes(table),
        *gain_notes(table, source),
        *_about_unread(table, source),
        *_about_trivial_baselines(source),
        *_about_learned_images(source),
        *_about_training(source),
        *_about_missing_values(source, seed_table),
        *_about_missing_items(source),
        *([f"Measured on a part of the benchmark: {'; '.join(part_sizes)}."] if part_sizes else []),
        *_about_protocols(seed_table),
        *_about_imports(source),
        *_about_inputs(source),
    ]


def mark_legend(table: Table, style: MarkStyle) -> list[str]:
    """The legend of the marks of ``table``, as a format shows them."""
    lines = []
    marks = {cell.mark for cell in table.cells.values()}
    if "best" in marks and style.best:
        lines.append(f"Best ({style.best}): significantly better than every other model{_of_column(table)}.")
    if "tied" in marks and style.tied:
        lines.append(
            f"Tied ({style.tied}): the top model{_of_column(table)}, and those tested against it without a significant "
            "difference."
        )
    if not table.p_values:
        return lines
    deltas = [cell.delta for cell in table.cells.values() if cell.delta is not None]
    subjects = [*(["marks"] if lines else []), *(["differences from the baseline"] if deltas else [])]
    if subjects:
        shown = {delta.significant for delta in deltas} if style.differences else set()
        meanings = ((True, f"▲ and ▼ are significant (p < {ALPHA})"), (False, "≈ is not significant"))
        signs = ", ".join(text for significant, text in meanings if significant in shown)
        with_baseline = {frozenset({row.name, row.baseline}) for row in table.rows}
        planned = {models in with_baseline for _, _, models in table.p_values}
        against = [name for name, found in (("the baseline", True), ("the top model", False)) if found in planned]
        pairs = "every pair of models" if table.all_pairs else f"pairs with {join_with_and(against)}"
        lines.append(
            f"{' and '.join(subjects).capitalize()} use paired tests over {variance_sources(table)}, the p-values of "
            f"all {table.comparisons} tests ({pairs}) Holm-corrected together{f'; {signs}' if signs else ''}."
        )
    return lines


def _of_column(table: Table) -> str:
    """The models that a mark compares with."""
    parts = marked_apart(table)
    return f" of its column{f' with the same {join_with_and(parts)}' if parts else ''}"


def marked_apart(table: Table) -> list[str]:
    """What the models of a column with marks do not share, so that not all of them were tested against each other."""
    marked = {cell.column for cell in table.cells.values() if cell.mark or cell.withheld}
    apart = {cells[0][0].column for cells in table.other_items}
    mixed = {cell.column for cell in table.cells.values() if cell.group}
    return [name for name, columns in (("settings", mixed), ("items", apart)) if marked & columns]


def variance_sources(table: Table) -> str:
    """What the intervals and tests of a table are over."""
    return "images and seeds" if any(cell.seed_variance == "included" for cell in table.cells.values()) else "images"


def _about_intervals(table: Table) -> list[str]:
    with_interval = [cell for cell in table.cells.values() if cell.ci_low is not None]
    kinds = {cell.seed_variance for cell in with_interval}
    lines = []
    if table.seeds > 1:
        lines.append(f"Numbers are means over up to {table.seeds} seeds.")
    if "included" in kinds:
        lines.append(
            "The 95 % intervals of trained models include the variance over the benchmark's images and the seed "
            "variance, half a model's own and half that of all trained models of a column."
        )
        if "none" in kinds:
            lines.append("A pretrained model is evaluated once, and its interval is over images only.")
    elif with_interval:
        lines.append("Intervals are 95 % intervals over the benchmark's images and do not include seed variance.")
    return [
        *([" ".join(lines)] if lines else []),
        *(_about_unknown_seed_variance(table) if "included" in kinds else []),
        *_about_untestable_pairs(table),
        *_about_other_items(table),
        *_about_missing_intervals(table),
    ]


def _about_unknown_seed_variance(table: Table) -> list[str]:
    names = []
    for column in table.columns:
        numbers = [cell for cell in table.column_cells(column) if cell.ci_low is not None]
        unknown = [cell.row for cell in numbers if cell.seed_variance == "unknown"]
        all_of_column = unknown and not any(cell.seed_variance == "included" for cell in numbers)
        names += [column_title(column)] if all_of_column else [f"{row} on {column_title(column)}" for row in unknown]
    if not names:
        return []
    return [f"No seed variance is known on {join_with_and(names)}: intervals and tests are over images only."]


def _about_missing_intervals(table: Table) -> list[str]:
    by_reason: dict[str, dict[str, None]] = {}
    for cell in table.cells.values():
        if cell.value is not None and cell.ci_low is None:
            by_reason.setdefault(cell.no_interval, {})[f"{cell.row} on {column_title(cell.column)}"] = None
    return [
        f"No interval: {join_or_count([*names], 'numbers')}. Reason: {reason}." for reason, names in by_reason.items()
    ]


def _about_other_items(table: Table) -> list[str]:
    """The columns whose models have scores for different items: pairs are tested only on equal ones."""
    lines = []
    for sets in table.other_items:
        names = "; ".join(join_row_names(cell.row for cell in cells) for cells in sets)
        lines.append(
            f"{column_title(sets[0][0].column)}: the models have scores for different items, and only those with the "
            f"same ones are tested against each other: {names}."
        )
    return lines


def _about_untestable_pairs(table: Table) -> list[str]:
    by_column: dict[str, list[str]] = {}
    for first, second in table.untestable:
        by_column.setdefault(column_title(first.column), []).append(f"{first.row} and {second.row}")
    return [
        f"No test on {column}: the seeds of every model with several seeds have equal scores, so the seed variance is "
        f"unknown ({join_or_count(pairs, 'pairs')})."
        for column, pairs in by_column.items()
    ]


def _about_power(table: Table) -> list[str]:
    """The minimum detectable differences: a difference that is not significant may still exist."""
    differences: list[str] = []
    for column in table.columns:
        values = [cell.delta.min_detectable_difference for cell in table.column_cells(column) if cell.delta]
        largest = max(filter(math.isfinite, values), default=None)
        if largest is not None and column.ranked:
            number = format_number(largest, decimals_needed(largest, decimals(column)))
            differences.append(f"{number} on {column_title(column)}")
    if not differences:
        return []
    return [
        f"Minimum detectable difference from the baseline: {join_with_and(differences)} (a single test at the 5 % "
        f"level with power 0.8 and the observed variance over {variance_sources(table)}; larger for models that "
        "differ on more items, and after the correction for many tests)."
    ]


def _about_unread(table: Table, source: ReportSource) -> list[str]:
    """The models of whose answers more than `MAX_UNREAD` were not read, and their scores with these as wrong ones."""
    found = []
    for column in table.columns:
        for cell in table.column_cells(column):
            outcomes = [source.outcomes.get((name, column.benchmark)) for name in cell.members or (cell.row,)]
            metrics = [each.metrics for each in outcomes if isinstance(each, Result) and UNREAD in each.metrics]
            if cell.value is None or not metrics:
                continue
            share = sum(each[UNREAD].value for each in metrics) / len(metrics)
            # a seed whose answers were all read has no such metric
            seeds = [each.get(f"{column.metric}{UNREAD_WRONG}", each.get(column.metric)) for each in metrics]
            if share <= MAX_UNREAD:
                continue
            text = f"{100 * share:.1f} % of {cell.row} on {column_title(column)}"
            if any(f"{column.metric}{UNREAD_WRONG}" in each for each in metrics):
                wrong = sum(each.value * column.scale for each in seeds if each) / len(seeds)
                places = decimals(column)
                text += (
                    f" ({format_number(wrong, places)} instead of {format_number(cell.value, places)} as wrong ones)"
                )
            found.append(text)
    lines = []
    if found:
        what = "empty, declined, without an option, yes or no, or in a form that the scorer does not compare"
        lines.append(f"Answers not read ({what}): {'; '.join(found)}.")
    if pairs := unread_differences(table, table.cells.values(), {row.name for row in table.rows}):
        lines.append(f"Models with different scores of whose answers different shares were not read: {pairs}.")
    return lines


def _about_trivial_baselines(source: ReportSource) -> list[str]:
    return [
        f"{name}: {strip_control_chars(note, MAX_TEXT_CHARS)}"
        for name in source.benchmarks
        for note in sorted({result.trivial_baseline_note for result in source.results(name).values()} - {""})
    ]


def _about_learned_images(source: ReportSource) -> list[str]:
    """Linear probes that are tested on some of the images that they learn."""
    lines = []
    for name in source.benchmarks:
        found = {row: each for row, each in source.results(name).items() if IN_TRAIN in each.metrics}
        without: dict[str, list[str]] = {}
        for row, result in found.items():
            unseen = result.metrics.get(UNSEEN_ACCURACY)
            score = "undefined" if unseen is None else f"{unseen.value * unseen.scale:.1f}"
            without.setdefault(score, []).append(row)
        for metric in [result.metrics[IN_TRAIN] for result in found.values()][:1]:  # the data are the same for all
            scores = "; ".join(f"{score} ({join_row_names(rows)})" for score, rows in without.items())
            lines.append(
                f"{name}: {round(metric.value * metric.n)} of {metric.n} test images are byte by byte in the training "
                f"split of the probe. Without them acc@1 is: {scores}."
            )
    return lines


def _about_training(source: ReportSource) -> list[str]:
    """The models with other data, steps, batch sizes, learning rates, … than their baseline; seeds may differ."""
    by_difference: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # sentence → models, their baselines

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
                for difference in diff_training(training(results[row.name]), training(results[other])).uneven:
                    rows, others = by_difference.setdefault(difference, ({}, {}))
                    rows[row.name], others[other] = None, None
    by_models: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for difference, (rows, others) in by_difference.items():
        by_models.setdefault((tuple(rows), tuple(others)), []).append(difference)
    return [
        f"{join_row_names(rows)} and {join_row_names(others)} were trained with different settings: "
        f"{'; '.join(each for each in differences if f'encoder.{each}' not in differences)}. " + CONFOUNDED_WARNING
        for (rows, others), differences in by_models.items()
    ]


def _about_missing_values(source: ReportSource, table: Table) -> list[str]:
    by_reason: dict[tuple[str, str], dict[str, None]] = {}  # model, reason → benchmarks or metrics
    for column in table.columns:
        for cell in table.column_cells(column):
            if cell.missing and cell.missing.reason != EXCLUDED_FROM_BENCHMARK:
                no_result = isinstance(source.outcomes[cell.row, column.benchmark], MissingValue)
                name = column.benchmark if no_result else column_title(column)
                by_reason.setdefault((cell.row, f"{cell.missing.kind}: {cell.missing.reason}"), {})[name] = None
    models: dict[tuple[str, str], list[str]] = {}
    for (row, reason), names in by_reason.items():
        models.setdefault((join_with_and([*names]), reason), []).append(row)
    return [f"{join_row_names(rows)} on {on}: {reason.rstrip('.')}." for (on, reason), rows in models.items()]


def _about_missing_items(source: ReportSource) -> list[str]:
    """The results without items: reading a result checks its numbers against its items."""
    by_models: dict[str, list[str]] = {}
    for benchmark in source.benchmarks:
        models = [row for row, result in source.results(benchmark).items() if result.items is None]
        if models:
            by_models.setdefault(join_row_names(models), []).append(benchmark)
    where = "; ".join(f"{models} on {join_or_count(names, 'benchmarks')}" for models, names in by_models.items())
    return [f"Not checked, because their items are missing: {where}."] if where else []


def _about_protocols(table: Table) -> list[str]:
    return [
        f"{group_sign(cell)} {cell.row} on {column_title(column)} was measured under different settings and is not "
        f"ranked with the rest of its column ({'; '.join(cell.protocol_differences)})."
        for column in table.columns
        for cell in table.column_cells(column)
        if cell.protocol_differences
    ]


def _about_imports(source: ReportSource) -> list[str]:
    """The results that other tools measured, by tool, and what their intervals are from."""
    by_tool: dict[str, dict[str, None]] = {}
    for benchmark in source.benchmarks:
        for row, result in source.results(benchmark).items():
            if origin := result.measured_elsewhere:
                tool = strip_control_chars(f"{origin.get('tool')}, version {origin.get('version')}", MAX_TEXT_CHARS)
                by_tool.setdefault(f"by {tool} (intervals: {origin.get('intervals')})", {})[f"{row} on {benchmark}"] = (
                    None
                )
    parts = [f"{join_or_count([*names], 'numbers')} {tool}" for tool, names in by_tool.items()]
    sentence = "They are tested only against results of the same protocol with exactly the same items."
    return [f"{ELSEWHERE} Measured elsewhere: {'; '.join(parts)}. {sentence}"] if parts else []


def _about_inputs(source: ReportSource) -> list[str]:
    """The input settings that differ between models: they are part of a model, so the models are ranked together."""
    lines: dict[str, None] = {}
    for benchmark in source.benchmarks:
        results = source.results(benchmark)
        names = {name for result in results.values() for name in result.protocol if name.startswith(INPUT_PREFIX)}
        for name in sorted(names):
            rows: dict[str, list[str]] = {}
            for row, result in results.items():
                rows.setdefault(str(result.protocol.get(name, "not stated")), []).append(row)
            if len(rows) > 1:
                setting = name.removeprefix(INPUT_PREFIX).replace("_", " ")
                by_value = "; ".join(f"{value} for {join_row_names(models)}" for value, models in rows.items())
                lines[f"Input settings differ between the models. {setting}: {by_value}."] = None
    return [*lines]
