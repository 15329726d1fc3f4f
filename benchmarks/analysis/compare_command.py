"""``clips-bench compare A B``: a report of two rows, or of the rows of two studies, with words on how they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.comparison import Comparison, ComparisonLine, abbreviate_names
from benchmarks.analysis.comparison_side import ComparisonSide, describe_run_differences, read_side
from benchmarks.report.build_table import build_results_table
from benchmarks.report.formats.csv_tables import csv_text
from benchmarks.report.formats.markdown import markdown_frame, markdown_list
from benchmarks.report.html_page import render_comparison
from benchmarks.report.load_results import MissingValue, ReportSource
from benchmarks.report.significance import Evidence, add_significance
from benchmarks.report.table import Cell, Table
from benchmarks.report.terminal_table import print_frame
from benchmarks.results.formatting import join_with_and, strip_control_chars
from benchmarks.results.protocol import INPUT_PREFIX, describe_differences, ranking_key
from benchmarks.results.results import Result
from benchmarks.study.study_record import RowRecord
from benchmarks.study.training_settings import TrainingDiff, diff_training, training_of_result
from clips.core.artifact import atomic_write, log_info
from clips.errors import UserError, unknown_name_error
from clips.sanitize import escape_markdown

Row = Mapping[str, Result]
_A, _B = "A", "B"  # results may carry the same row's name


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two rows, or two studies, benchmark by benchmark, with intervals and corrected tests.

    Args:
        first: a row's directory (``results/ROW``); or a directory of results or a study's output: then rows of equal
            name are compared, and it is said which rows are new or gone and what the two were run with.
        second: likewise.
        benchmarks: only these; all where empty.
        include_all_metrics: also those that the main table leaves out; each is one more test to correct for.
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
    """Print the comparison; write it to ``output`` where that is given.

    Raises:
        UserError: no results there, no row, benchmark or metric in common, a file that cannot be read.
    """
    found = build_comparison(config)
    print_comparison(found)
    if config.output:
        atomic_write(config.output, WRITERS[Path(config.output).suffix](found))
        log_info(f"comparison: {config.output}")


def build_comparison(config: CompareConfig) -> Comparison:
    """Read both sides and compare what they have in common; see `compare`."""
    first, second = read_side(config.first, "first"), read_side(config.second, "second")
    pairs = _paired(first.rows, second.rows)
    known = {name for pair in pairs for results in pair for name in results}
    for name in config.benchmarks:
        if name not in known:
            raise unknown_name_error(name, known, "benchmark ('benchmarks')")
    pairs = [_chosen(pair, config.benchmarks) for pair in pairs]
    table, lines = comparison_lines(pairs, all_metrics=config.include_all_metrics)
    left_out = [reason for pair in pairs for reason in _without_numbers(*pair)]
    if not lines:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{config.second}: has no metric in common with {config.first}{why}")
    single = len(first.rows) == len(second.rows) == 1
    left_out += [] if single else [*_new_and_gone(first, second)]
    left_out += [f"{letter}: {gap}" for letter, side in ((_A, first), (_B, second)) for gap in side.gaps]
    return Comparison(
        sides=(first, second),
        table=table,
        lines=tuple(lines),
        left_out=tuple(dict.fromkeys(left_out)),
        context=tuple(describe_run_differences(first, second)),
    )


def _chosen(pair: tuple[Row, Row], benchmarks: Sequence[str]) -> tuple[Row, Row]:
    mine, other = ({name: row[name] for name in row if not benchmarks or name in benchmarks} for row in pair)
    return mine, other


def _new_and_gone(first: ComparisonSide, second: ComparisonSide) -> Iterator[str]:
    for letter, mine, other in ((_A, first, second), (_B, second, first)):
        if alone := [name for name in mine.rows if name not in other.rows]:
            yield f"only {letter} has the row{'s' if len(alone) > 1 else ''} {join_with_and(alone)}"


def _paired(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[tuple[Row, Row]]:
    """Rows of equal name; the only row of each, whatever they are called."""
    if len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    common = [name for name in first if name in second]
    if not common:
        raise UserError(f"second: expected a row of {abbreviate_names(first)}; it has {abbreviate_names(second)}")
    return [(first[name], second[name]) for name in common]


def comparison_lines(
    pairs: Sequence[tuple[Row, Row]], *, all_metrics: bool = False
) -> tuple[Table, list[ComparisonLine]]:
    """A report's table of both rows of each pair, A's compared with B's, and a line a metric that both have.

    What the same model has reached twice is not tested: there is nothing to test.
    """
    pairs = [pair for pair in pairs if all(pair)]
    source = _source(pairs)
    evidence = Evidence(source)
    table = build_results_table(source, evidence, primary_only=not all_metrics, by_seed=True)
    (table,) = add_significance([table], evidence, ranked=False, untested=_unchanged(source))
    return table, [line for number, pair in enumerate(pairs) for line in _lines(source, table, number, pair)]


def _source(pairs: Sequence[tuple[Row, Row]]) -> ReportSource:
    """What a report reads, of both rows of each pair; A's has B's as its baseline."""
    rows: list[RowRecord] = []
    outcomes: dict[tuple[str, str], Result | MissingValue] = {}
    benchmarks = tuple(dict.fromkeys(name for pair in pairs for name in pair[0] if name in pair[1]))
    for pair in pairs:
        names = [f"{letter} {_name(row)}" for letter, row in zip((_A, _B), pair, strict=True)]
        rows += [RowRecord(name=names[0], encoder="", baseline=names[1]), RowRecord(name=names[1], encoder="")]
        for name, row in zip(names, pair, strict=True):
            for benchmark in benchmarks:
                result = row.get(benchmark)
                numbers = result is not None and bool(result.metrics)
                outcomes[name, benchmark] = (
                    result if numbers and result else MissingValue(kind="missing", reason=_why(result))
                )
    return ReportSource(
        title="", question="", notes=(), rows=tuple(rows), benchmarks=benchmarks, outcomes=outcomes, steps=(),
        study=None, directory=Path(),
    )  # fmt: skip


def _name(row: Row) -> str:
    return next((result.model_name for result in row.values()), "")


def _lines(source: ReportSource, table: Table, number: int, pair: tuple[Row, Row]) -> Iterator[ComparisonLine]:
    first, second = table.rows[2 * number : 2 * number + 2]
    trainings: dict[str, TrainingDiff] = {}
    for column in table.columns:
        cells = table.cell(first, column), table.cell(second, column)
        if any(cell.value is None for cell in cells):
            continue
        mine, other = (source.results(column.benchmark)[row.name] for row in (first, second))
        models = repr((mine.model, other.model))
        if not _same_model(mine, other) and models not in trainings:
            trainings[models] = diff_training(training_of_result(mine), training_of_result(other))
        yield ComparisonLine(
            rows=(mine.model_name, other.model_name),
            first=cells[0],
            second=cells[1],
            protocol_differences=_unlike(mine, other),
            same_model=_same_model(mine, other),
            training=trainings.get(models),
        )


def _unlike(first: Result, second: Result) -> tuple[str, ...]:
    if ranking_key(first.protocol) == ranking_key(second.protocol):
        return ()
    own = [
        {name: value for name, value in result.protocol.items() if not name.startswith(INPUT_PREFIX)}
        for result in (first, second)
    ]
    return tuple(describe_differences(*own))


def _unchanged(source: ReportSource) -> Callable[[Cell, Cell], bool]:
    def unchanged(first: Cell, second: Cell) -> bool:
        results = source.results(first.column.benchmark)
        return first.value == second.value and _same_model(results[first.row], results[second.row])

    return unchanged


def _same_model(first: Result, second: Result) -> bool:
    return bool(first.model.get("hash")) and first.model.get("hash") == second.model.get("hash")


def _without_numbers(first: Row, second: Row) -> Iterator[str]:
    """In words, which benchmarks are not compared, and why."""
    for letter, mine, other in ((_A, first, second), (_B, second, first)):
        if alone := [name for name in mine if name not in other]:
            yield f"only {letter} has {join_with_and(alone)}"
    for name in first:
        pair = {_A: first[name], _B: second.get(name)}
        lacking = [f"{letter}: {_why(result)}" for letter, result in pair.items() if result and not result.metrics]
        if lacking and name in second:
            yield f"{name} ({'; '.join(lacking)})"


def _why(result: Result | None) -> str:
    """Why a row has no number."""
    if result is None:
        return "no result"
    return (
        f"failed: {result.failure_reason}"
        if result.failure_reason
        else "; ".join(dict.fromkeys(result.missing_metrics.values()))
    )


def print_comparison(found: Comparison) -> None:
    """All of it in the terminal; names are text, never markup."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for title, frame in found.texts().items():
        print_frame(frame, console, title=title)
    for line in (found.answer, *found.said()):
        console.print(Text(strip_control_chars(line)))


def _markdown(found: Comparison) -> str:
    parts = [f"# {escape_markdown(found.title)}", f"**{escape_markdown(found.answer)}**"]
    for title, frame in found.texts().items():
        parts += [f"## {escape_markdown(title)}", markdown_frame(frame)]
    return "\n\n".join([*parts, markdown_list(found.said())]) + "\n"


def _html(found: Comparison) -> str:
    return render_comparison(title=found.title, answer=found.answer, tables=found.texts(), notes=found.said())


WRITERS: dict[str, Callable[[Comparison], str]] = {
    ".json": lambda found: found.tidy().to_json(orient="records", indent=1, force_ascii=False) + "\n",
    ".csv": lambda found: csv_text(found.tidy()),
    ".md": _markdown,
    ".html": _html,
}
