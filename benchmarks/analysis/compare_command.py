"""``clips-bench compare A B``: a report of two models, or of the models of two studies, with their differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.comparison import (
    Comparison,
    ComparisonLine,
    ComparisonSide,
    abbreviate_names,
    describe_run_differences,
    read_side,
)
from benchmarks.report.csv_tables import csv_text
from benchmarks.report.differences import compare_models
from benchmarks.report.load_results import MissingValue, ReportSource
from benchmarks.report.notes import unread_differences
from benchmarks.report.page import render_comparison
from benchmarks.report.scores import seed_tables, set_gains, set_intervals
from benchmarks.report.table import Cell, Table
from benchmarks.report.text_table import markdown_frame, markdown_list, print_frame
from benchmarks.report.training_settings import TrainingDiff, diff_training, training_of_result
from benchmarks.results.formatting import join_with_and, strip_control_chars
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.protocol import INPUT_PREFIX, describe_differences, ranking_key
from benchmarks.results.results import Result
from benchmarks.study.rows import RowRecord
from clips.core.artifact import atomic_write, log_info
from clips.errors import UserError, unknown_name_error
from clips.safe_text import escape_markdown

Row = Mapping[str, Result]
_A, _B = "A", "B"  # both results may have the same model name


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two models, or two studies, benchmark by benchmark, with confidence intervals and corrected tests.

    Args:
        first: a model's directory (``results/MODEL``); or a directory of results or a study's output: then models with
            equal names are compared, new and removed models are listed, and so are the differences of the two runs.
        second: likewise.
        benchmarks: only these; all if empty.
        include_all_metrics: include the metrics that the main table omits; each adds a test to the correction.
        output: also write the comparison to this file: .json or .csv for programs, .md or .html to read.
    """

    first: str
    second: str
    benchmarks: tuple[str, ...] = ()
    include_all_metrics: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix not in WRITERS:
            raise UserError(f"output: expected a name that ends in {', '.join(WRITERS)}, got '{self.output}'")


def compare(config: CompareConfig) -> None:
    """Print the comparison; write it to ``output`` if given.

    Raises:
        UserError: no results there, no common model, benchmark or metric, or an unreadable file.
    """
    found = build_comparison(config)
    print_comparison(found)
    if config.output:
        atomic_write(config.output, WRITERS[Path(config.output).suffix](found))
        log_info(f"comparison: {config.output}")


def build_comparison(config: CompareConfig) -> Comparison:
    """Read both sides and compare their common models and benchmarks; see `compare`."""
    first, second = read_side(config.first, "first"), read_side(config.second, "second")
    pairs = _paired(first.rows, second.rows)
    known = {name for pair in pairs for results in pair for name in results}
    for name in config.benchmarks:
        if name not in known:
            raise unknown_name_error(name, known, "benchmark ('benchmarks')")
    pairs = [_select(pair, config.benchmarks) for pair in pairs]
    table, lines = comparison_lines(pairs, all_metrics=config.include_all_metrics)
    left_out = [reason for pair in pairs for reason in _without_numbers(*pair)]
    if not lines:
        reasons = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{config.second}: has no metric in common with {config.first}{reasons}")
    if not len(first.rows) == len(second.rows) == 1:
        left_out += _new_and_removed(first, second)
    left_out += [f"{letter}: {gap}" for letter, side in ((_A, first), (_B, second)) for gap in side.gaps]
    return Comparison(
        sides=(first, second),
        table=table,
        lines=tuple(lines),
        left_out=tuple(dict.fromkeys(left_out)),
        context=tuple(describe_run_differences(first, second)),
    )


def _select(pair: tuple[Row, Row], benchmarks: Sequence[str]) -> tuple[Row, Row]:
    first, second = ({name: row[name] for name in row if not benchmarks or name in benchmarks} for row in pair)
    return first, second


def _new_and_removed(first: ComparisonSide, second: ComparisonSide) -> Iterator[str]:
    for letter, side, other in ((_A, first, second), (_B, second, first)):
        if names := [name for name in side.rows if name not in other.rows]:
            yield f"only {letter} has the model{'s' if len(names) > 1 else ''} {join_with_and(names)}"


def _paired(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[tuple[Row, Row]]:
    """Pairs of models with equal names; if each side has a single model, these two."""
    if len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    common = [name for name in first if name in second]
    if not common:
        raise UserError(f"second: expected a model of {abbreviate_names(first)}; it has {abbreviate_names(second)}")
    return [(first[name], second[name]) for name in common]


def comparison_lines(
    pairs: Sequence[tuple[Row, Row]], *, all_metrics: bool = False
) -> tuple[Table, list[ComparisonLine]]:
    """A report's table of both models of each pair, A compared with B, and a line for each common metric.

    Equal results of the same model are not tested.
    """
    pairs = [pair for pair in pairs if all(pair)]
    source = _source(pairs)
    items = ItemScores()
    table = seed_tables(source)[all_metrics]
    set_intervals(table.scores, items)
    set_gains(table, items)
    compare_models([table], items, ranked=False, untested=_unchanged(source))
    return table, [line for index in range(len(pairs)) for line in _lines(source, table, index)]


def _source(pairs: Sequence[tuple[Row, Row]]) -> ReportSource:
    """The report input of both models of each pair; B is the baseline of A."""
    rows: list[RowRecord] = []
    outcomes: dict[tuple[str, str], Result | MissingValue] = {}
    benchmarks = tuple(dict.fromkeys(name for pair in pairs for name in pair[0] if name in pair[1]))
    for pair in pairs:
        names = [f"{letter} {next(iter(row.values())).model_name}" for letter, row in zip((_A, _B), pair, strict=True)]
        rows += [RowRecord(name=names[0], encoder="", baseline=names[1]), RowRecord(name=names[1], encoder="")]
        for name, row in zip(names, pair, strict=True):
            for benchmark in benchmarks:
                result = row.get(benchmark)
                has_numbers = result is not None and result.metrics
                missing = MissingValue(kind="missing", reason=_missing_reason(result))
                outcomes[name, benchmark] = result if result and has_numbers else missing
    return ReportSource(
        title="", question="", notes=(), rows=tuple(rows), benchmarks=benchmarks, outcomes=outcomes, steps=(),
        study=None, directory=Path(),
    )  # fmt: skip


def _lines(source: ReportSource, table: Table, index: int) -> Iterator[ComparisonLine]:
    rows = table.rows[2 * index : 2 * index + 2]
    trainings: dict[str, TrainingDiff] = {}
    for column in table.columns:
        cells = column.cells[2 * index : 2 * index + 2]
        if any(cell.value is None for cell in cells):
            continue
        first, second = (source.results(column.benchmark)[row.name] for row in rows)
        models = repr((first.model, second.model))
        if not _same_model(first, second) and models not in trainings:
            trainings[models] = diff_training(training_of_result(first), training_of_result(second))
        yield ComparisonLine(
            rows=(first.model_name, second.model_name),
            first=cells[0],
            second=cells[1],
            protocol_differences=_protocol_differences(first, second),
            same_model=_same_model(first, second),
            training=trainings.get(models),
            unread=unread_differences(table, cells[:1], {cells[1].row}),
        )


def _protocol_differences(first: Result, second: Result) -> tuple[str, ...]:
    if ranking_key(first.protocol) == ranking_key(second.protocol):
        return ()
    one, other = (
        {name: value for name, value in result.protocol.items() if not name.startswith(INPUT_PREFIX)}
        for result in (first, second)
    )
    return tuple(describe_differences(one, other))


def _unchanged(source: ReportSource) -> Callable[[Cell, Cell], bool]:
    def unchanged(first: Cell, second: Cell) -> bool:
        results = source.results(first.column.benchmark)
        return first.value == second.value and _same_model(results[first.row], results[second.row])

    return unchanged


def _same_model(first: Result, second: Result) -> bool:
    return bool(first.model.get("hash")) and first.model.get("hash") == second.model.get("hash")


def _without_numbers(first: Row, second: Row) -> Iterator[str]:
    """As text, the benchmarks that are not compared, with the reasons."""
    for letter, row, other in ((_A, first, second), (_B, second, first)):
        if names := [name for name in row if name not in other]:
            yield f"only {letter} has {join_with_and(names)}"
    for name in first:
        if name in second:
            pair = {_A: first[name], _B: second[name]}
            reasons = [f"{side}: {_missing_reason(result)}" for side, result in pair.items() if not result.metrics]
            if reasons:
                yield f"{name} ({'; '.join(reasons)})"


def _missing_reason(result: Result | None) -> str:
    if result is None:
        return "no result"
    if result.failure_reason:
        return f"failed: {result.failure_reason}"
    return "; ".join(dict.fromkeys(result.missing_metrics.values()))


def print_comparison(found: Comparison) -> None:
    """Print the comparison; names are never markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for letter, side in zip((_A, _B), found.sides, strict=True):
        console.print(Text(strip_control_chars(f"{letter}: {side.name}")))
    for title, frame in found.texts().items():
        print_frame(frame, console, title=title)
    for line in (found.answer, *found.notes()):
        console.print(Text(strip_control_chars(line)))


def _markdown(found: Comparison) -> str:
    parts = [f"# {escape_markdown(found.title)}", f"**{escape_markdown(found.answer)}**"]
    for title, frame in found.texts().items():
        parts += [f"## {escape_markdown(title)}", markdown_frame(frame)]
    return "\n\n".join([*parts, markdown_list(found.notes())]) + "\n"


def _html(found: Comparison) -> str:
    return render_comparison(title=found.title, answer=found.answer, tables=found.texts(), notes=found.notes())


WRITERS: dict[str, Callable[[Comparison], str]] = {
    ".json": lambda found: found.tidy().to_json(orient="records", indent=1, force_ascii=False) + "\n",
    ".csv": lambda found: csv_text(found.tidy()),
    ".md": _markdown,
    ".html": _html,
}
