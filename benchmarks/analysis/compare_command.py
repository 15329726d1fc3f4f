"""``clips-bench compare A B``: a report of two models, or of the models of two studies, with their differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.analysis.comparison import (
    Comparison,
    Row,
    abbreviate_names,
    comparison_lines,
    missing_reason,
    read_side,
)
from benchmarks.report.measures import csv_text
from benchmarks.report.page import render_comparison
from benchmarks.report.text_table import markdown_frame, markdown_list, print_frame
from benchmarks.results.formatting import join_with_and, strip_control_chars
from clips.core.artifact import atomic_write, log_info
from clips.errors import UserError, unknown_name_error
from clips.safe_text import escape_markdown


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
    from rich.console import Console
    from rich.text import Text

    found = build_comparison(config)
    console = Console(highlight=False)
    for letter, side in zip("AB", found.sides, strict=True):
        console.print(Text(strip_control_chars(f"{letter}: {side.name}")))
    for title, frame in found.texts().items():
        print_frame(frame, console, title=title)
    for line in (found.answer, *found.notes()):
        console.print(Text(strip_control_chars(line)))
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
    chosen = {*config.benchmarks} or known
    pairs = [
        ({name: one[name] for name in one if name in chosen}, {name: other[name] for name in other if name in chosen})
        for one, other in pairs
    ]
    table, lines = comparison_lines(pairs, all_metrics=config.include_all_metrics)
    left_out = []
    for pair in pairs:
        name = next((f"{each.model_name}: " for row in pair for each in row.values()), "") if pairs[1:] else ""
        left_out += [f"{name}{reason}" for reason in _without_numbers(*pair)]
    if not lines:
        reasons = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{config.second}: has no metric in common with {config.first}{reasons}")
    if not len(first.rows) == len(second.rows) == 1:
        for letter, side, other in (("A", first, second), ("B", second, first)):
            if names := [name for name in side.rows if name not in other.rows]:
                left_out.append(f"only {letter} has the model{'s' if len(names) > 1 else ''} {join_with_and(names)}")
    left_out += [f"{letter}: {gap}" for letter, side in (("A", first), ("B", second)) for gap in side.gaps]
    return Comparison(sides=(first, second), table=table, lines=tuple(lines), left_out=tuple(dict.fromkeys(left_out)))


def _paired(first: Mapping[str, Row], second: Mapping[str, Row]) -> list[tuple[Row, Row]]:
    """Pairs of models with equal names; if each side has a single model, these two."""
    if len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    common = [name for name in first if name in second]
    if not common:
        raise UserError(f"second: expected a model of {abbreviate_names(first)}; it has {abbreviate_names(second)}")
    return [(first[name], second[name]) for name in common]


def _without_numbers(first: Row, second: Row) -> Iterator[str]:
    """As text, the benchmarks that are not compared, with the reasons."""
    for letter, row, other in (("A", first, second), ("B", second, first)):
        if names := [name for name in row if name not in other]:
            yield f"only {letter} has {join_with_and(names)}"
    for name in first:
        pair = {"A": first[name], "B": second[name]} if name in second else {}
        reasons = [f"{letter}: {missing_reason(result)}" for letter, result in pair.items() if not result.metrics]
        if reasons:
            yield f"{name} ({'; '.join(reasons)})"


def _markdown(found: Comparison) -> str:
    parts = [f"# {escape_markdown(found.title)}", f"**{escape_markdown(found.answer)}**"]
    for title, frame in found.texts().items():
        parts += [f"## {escape_markdown(title)}", markdown_frame(frame)]
    return "\n\n".join([*parts, markdown_list(found.notes())]) + "\n"


WRITERS: dict[str, Callable[[Comparison], str]] = {
    ".json": lambda found: found.frame().to_json(orient="records", indent=1, force_ascii=False) + "\n",
    ".csv": lambda found: csv_text(found.frame()),
    ".md": _markdown,
    ".html": lambda found: render_comparison(
        title=found.title, answer=found.answer, tables=found.texts(), notes=found.notes()
    ),
}
