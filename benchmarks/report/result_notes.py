"""The notes below the table on the results: what is missing, measured otherwise or elsewhere, or confounded."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from benchmarks.report.load_results import MissingValue, ReportSource
from benchmarks.report.table import ELSEWHERE, Cell, Table
from benchmarks.report.training_settings import CONFOUNDED_WARNING, TrainingSettings, diff_training, training_of_result
from benchmarks.results.formatting import (
    MAX_TEXT_CHARS,
    join_or_count,
    join_row_names,
    join_with_and,
    strip_control_chars,
)
from benchmarks.results.protocol import INPUT_PREFIX
from benchmarks.results.results import Result
from benchmarks.study.rows import EXCLUDED_FROM_BENCHMARK
from benchmarks.tasks.encoders.linear_probe import IN_TRAIN, UNSEEN_ACCURACY
from benchmarks.tasks.listing import parts


class Note(str):
    """The text of a note, with its kind and cells.

    Attributes:
        kind: ``missing``, ``protocol`` or ``uncredited``, to which a cell's sign links; otherwise empty.
        places: row of the seed table, benchmark and metric of its cells.
    """

    kind: str = ""
    places: frozenset[tuple[str, str, str]] = frozenset()

    @staticmethod
    def of(kind: str, text: str, cells: Iterable[Cell]) -> Note:
        """A note on some cells."""
        note = Note(text)
        note.kind = kind
        note.places = frozenset(place for cell in cells for place in _places(cell))
        return note

    def is_about(self, cell: Cell, kind: str) -> bool:
        """Whether a cell's sign, or why it is missing, is explained here."""
        return self.kind == kind and not self.places.isdisjoint(_places(cell))


def _places(cell: Cell) -> list[tuple[str, str, str]]:
    return [(row, cell.column.benchmark, cell.column.metric) for row in cell.rows]


def result_notes(source: ReportSource, seed_table: Table) -> Iterator[str]:
    """All that apply; ``seed_table`` is the table before the aggregation of seeds."""
    yield from _about_trivial_baselines(source)
    yield from _about_learned_images(source)
    yield from _about_training(source)
    yield from _about_missing_values(source, seed_table)
    yield from _about_missing_items(source)
    results = ((name, row, each) for name in source.benchmarks for row, each in source.results(name).items())
    if part_sizes := parts(results):
        yield f"Measured on a part of the benchmark: {'; '.join(part_sizes)}."
    yield from _about_protocols(seed_table)
    yield from _about_imports(source)
    yield from _about_inputs(source)


def _about_trivial_baselines(source: ReportSource) -> Iterator[str]:
    for name in source.benchmarks:
        for note in sorted({result.trivial_baseline_note for result in source.results(name).values()} - {""}):
            yield f"{name}: {strip_control_chars(note, MAX_TEXT_CHARS)}"


def _about_learned_images(source: ReportSource) -> Iterator[str]:
    """Linear probes that are tested on some of the images that they learn."""
    for name in source.benchmarks:
        found = {row: each for row, each in source.results(name).items() if IN_TRAIN in each.metrics}
        without: dict[str, list[str]] = {}
        for row, result in found.items():
            unseen = result.metrics.get(UNSEEN_ACCURACY)
            score = "undefined" if unseen is None else f"{unseen.value * unseen.scale:.1f}"
            without.setdefault(score, []).append(row)
        for metric in [result.metrics[IN_TRAIN] for result in found.values()][:1]:  # the data are the same for all
            scores = "; ".join(f"{score} ({join_row_names(rows)})" for score, rows in without.items())
            yield (
                f"{name}: {round(metric.value * metric.n)} of {metric.n} test images are byte by byte in the training "
                f"split of the probe. Without them acc@1 is: {scores}."
            )


def _about_training(source: ReportSource) -> Iterator[str]:
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
        for row, other in source.pairs(benchmark):
            for difference in diff_training(training(results[row]), training(results[other])).uneven:
                rows, others = by_difference.setdefault(difference, ({}, {}))
                rows[row], others[other] = None, None
    by_models: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for difference, (rows, others) in by_difference.items():
        by_models.setdefault((tuple(rows), tuple(others)), []).append(difference)
    for (models, baselines), differences in by_models.items():
        yield (
            f"{join_row_names(models)} and {join_row_names(baselines)} were trained with different settings: "
            f"{'; '.join(each for each in differences if f'encoder.{each}' not in differences)}. {CONFOUNDED_WARNING}"
        )


def _about_missing_values(source: ReportSource, seed_table: Table) -> Iterator[Note]:
    by_reason: dict[tuple[str, str], dict[str, list[Cell]]] = {}  # model, reason → benchmarks or metrics
    for column in seed_table.columns:
        for cell in column.cells:
            if cell.missing and cell.missing.reason != EXCLUDED_FROM_BENCHMARK:
                no_result = isinstance(source.outcomes[cell.row, column.benchmark], MissingValue)
                name = column.benchmark if no_result else column.title
                reason = f"{cell.missing.kind}: {cell.missing.reason}"
                by_reason.setdefault((cell.row, reason), {}).setdefault(name, []).append(cell)
    models: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for (row, reason), names in by_reason.items():
        cells = [cell for own in names.values() for cell in own]
        models.setdefault((join_with_and([*names]), reason), {})[row] = cells
    for (on, reason), rows in models.items():
        text = f"{join_row_names(rows)} on {on}: {reason.rstrip('.')}."
        yield Note.of("missing", text, [cell for cells in rows.values() for cell in cells])


def _about_missing_items(source: ReportSource) -> Iterator[str]:
    """The results without items: reading a result checks its numbers against its items."""
    by_models: dict[str, list[str]] = {}
    for benchmark in source.benchmarks:
        models = [row for row, result in source.results(benchmark).items() if result.items is None]
        if models:
            by_models.setdefault(join_row_names(models), []).append(benchmark)
    where = "; ".join(f"{models} on {join_or_count(names, 'benchmarks')}" for models, names in by_models.items())
    if where:
        yield f"Not checked, because their items are missing: {where}."


def _about_protocols(seed_table: Table) -> Iterator[Note]:
    for cell in itertools.chain.from_iterable(column.cells for column in seed_table.columns):
        if cell.protocol_differences:
            text = (
                f"{cell.dagger} {cell.row} on {cell.column.title} was measured under different settings and is not "
                f"ranked with the rest of its column ({'; '.join(cell.protocol_differences)})."
            )
            yield Note.of("protocol", text, [cell])


def _about_imports(source: ReportSource) -> Iterator[str]:
    """The results that other tools measured, by tool, and what their intervals are from."""
    by_tool: dict[str, list[str]] = {}
    for benchmark in source.benchmarks:
        for row, result in source.results(benchmark).items():
            if origin := result.measured_elsewhere:
                tool = strip_control_chars(f"{origin.get('tool')}, version {origin.get('version')}", MAX_TEXT_CHARS)
                text = f"by {tool} (intervals: {origin.get('intervals')})"
                by_tool.setdefault(text, []).append(f"{row} on {benchmark}")
    found = [f"{join_or_count(names, 'numbers')} {tool}" for tool, names in by_tool.items()]
    if found:
        sentence = "They are tested only against results of the same protocol with exactly the same items."
        yield f"{ELSEWHERE} Measured elsewhere: {'; '.join(found)}. {sentence}"


def _about_inputs(source: ReportSource) -> Iterable[str]:
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
    return lines
