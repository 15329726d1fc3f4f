"""``clips-bench compare A B``: two rows beside each other, with what can be told of their difference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.protocol import INPUT, differences, fingerprint
from benchmarks.report.pairing import Pairing
from benchmarks.report.wording import column_head, decimals, listed, number, visible
from benchmarks.results import Metric, Result
from benchmarks.statistics import DRAWS, LEVEL, Difference, holm
from benchmarks.trust.diff import column_of
from benchmarks.trust.rows import find_rows
from clips.artifact import say, write_file
from clips.errors import UserError, suggest

_INTERVAL = "95 % interval"
_A, _B = "A", "B"  # results may carry the same row's name


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two rows, benchmark by benchmark, with intervals and corrected tests.

    Args:
        first: a row's directory (``results/ROW``), or a directory of results: then rows of equal name are compared.
        second: likewise.
        benchmarks: only these; all where empty.
        all_metrics: also those that the main table leaves out; each is one more test to correct for.
        output: also write the lines to this file, .json or .csv.
    """

    first: str
    second: str
    benchmarks: tuple[str, ...] = ()
    all_metrics: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix not in {".json", ".csv"}:
            raise UserError(f"output: expected a name that ends in .json or .csv, got '{self.output}'")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric of two rows.

    Args:
        rows: names of A and B.
        benchmark: the benchmark.
        name: of the metric.
        first: A's metric.
        second: B's.
        unlike: in words, what keeps the two from being compared; empty where nothing does.
        difference: A minus B; None where it cannot be tested.
        p_value: corrected for all lines.
    """

    rows: tuple[str, str]
    benchmark: str
    name: str
    first: Metric
    second: Metric
    unlike: tuple[str, ...] = ()
    difference: Difference | None = None
    p_value: float = 1.0

    @property
    def verdict(self) -> str:
        """What can be told."""
        if self.unlike:
            return "not comparable"
        if self.difference is None:
            return "no test: the rows do not share their items, or the metric cannot be computed from them"
        if self.p_value >= LEVEL:
            return "not told apart"
        if self.first.higher_is_better is None:
            return "they differ"
        return "A is better" if (self.difference.value > 0) == self.first.higher_is_better else "B is better"


def compare(config: CompareConfig) -> None:
    """Print the comparison; write it to ``output`` where that is given.

    Raises:
        UserError: no results there, no row, benchmark or metric in common, a file that cannot be read.
    """
    first, second = find_rows(config.first, "first"), find_rows(config.second, "second")
    pairs = _paired(first, second)
    known = {name for pair in pairs for results in pair for name in results}
    for name in config.benchmarks:
        if name not in known:
            raise suggest(name, known, "benchmark ('benchmarks')")
    lines = compared(pairs, config.benchmarks, all_metrics=config.all_metrics)
    left_out = [reason for pair in pairs for reason in without_numbers(*pair, config.benchmarks)]
    if not lines:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{config.second}: has no metric in common with {config.first}{why}")
    print_lines(lines)
    for reason in left_out:
        print(visible(f"Not compared: {reason}."))
    if config.output:
        fields = [as_fields(line) for line in lines]
        write_file(config.output, _json(fields) if config.output.endswith(".json") else _csv(fields))
        say(f"comparison: {config.output}")


def _paired(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[dict[str, Result], dict[str, Result]]]:
    """Rows of equal name; the only row of each, whatever they are called."""
    if len(first) == len(second) == 1:
        return [(*first.values(), *second.values())]
    common = [name for name in first if name in second]
    if not common:
        raise UserError(f"second: expected a row of {', '.join(first)}; it has {', '.join(second)}")
    return [(first[name], second[name]) for name in common]


def compared(
    pairs: Sequence[tuple[Mapping[str, Result], Mapping[str, Result]]],
    benchmarks: Sequence[str] = (),
    *,
    all_metrics: bool = False,
) -> list[Line]:
    """One line a metric that both rows have; the p-values of all lines are Holm-corrected together."""
    found: list[tuple[Line, Result, Result]] = []
    for mine, other in pairs:
        for name in [name for name in mine if name in other and (not benchmarks or name in benchmarks)]:
            one, two = mine[name], other[name]
            for metric in one.metrics if all_metrics else one.primary:
                if metric in one.metrics and metric in two.metrics:
                    found.append((_line(one, two, metric), one, two))
    draws = max(DRAWS, 80 * len(found))  # so that the correction leaves p < 0.05 within reach
    pairings: dict[tuple[str, str], Pairing] = {}
    tested = []
    for line, one, two in found:
        pairing = pairings.setdefault((line.rows[0], line.benchmark), Pairing({_A: one, _B: two}, draws=draws))
        tested.append(line if line.unlike else replace(line, difference=pairing.difference(line.name, _A, _B)))
    places = [place for place, line in enumerate(tested) if line.difference is not None]
    corrected = holm([line.difference.p_value for line in tested if line.difference is not None])
    for place, p_value in zip(places, corrected, strict=True):
        tested[place] = replace(tested[place], p_value=p_value)
    return tested


def without_numbers(
    first: Mapping[str, Result], second: Mapping[str, Result], benchmarks: Sequence[str] = ()
) -> Iterator[str]:
    """In words, which benchmarks are not compared, and why."""
    asked = [name for name in dict.fromkeys([*first, *second]) if not benchmarks or name in benchmarks]
    for letter, mine, other in ((_A, first, second), (_B, second, first)):
        if alone := [name for name in asked if name in mine and name not in other]:
            yield f"only {letter} has {listed(alone)}"
    for name in asked:
        pair = {_A: first.get(name), _B: second.get(name)}
        lacking = [f"{letter}: {_why(result)}" for letter, result in pair.items() if result and not result.metrics]
        if lacking and name in first and name in second:
            yield f"{name} ({'; '.join(lacking)})"


def _why(result: Result) -> str:
    """Why a result has no number."""
    return f"failed: {result.reason}" if result.reason else "; ".join(dict.fromkeys(result.absent.values()))


def _line(first: Result, second: Result, metric: str) -> Line:
    across = (INPUT,)
    alike = fingerprint(first.protocol, across=across) == fingerprint(second.protocol, across=across)
    harness = [
        {name: value for name, value in result.protocol.items() if not name.startswith(INPUT)}
        for result in (first, second)
    ]
    return Line(
        rows=(first.row, second.row),
        benchmark=first.benchmark,
        name=metric,
        first=first.metrics[metric],
        second=second.metrics[metric],
        unlike=() if alike else tuple(differences(*harness)),
    )


def print_lines(lines: Sequence[Line]) -> None:
    """The lines as a table, rows of another pair below each other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for rows in dict.fromkeys(line.rows for line in lines):
        table = Table(title=Text(visible(f"A {rows[0]}, B {rows[1]}")), title_justify="left")
        table.add_column("", overflow="fold")  # never cut: names often differ at their ends
        for head in ("A", "B", "A−B", _INTERVAL, "p", "smallest"):
            table.add_column(head, justify="right", no_wrap=head != _INTERVAL)  # which may break at its "to"
        table.add_column("")
        for line in lines:
            if line.rows == rows:
                table.add_row(*(Text(visible(text)) for text in _cells(line)))
        console.print(table)
        unlike = {line.benchmark: "; ".join(line.unlike) for line in lines if line.rows == rows and line.unlike}
        for benchmark, reason in unlike.items():
            console.print(Text(visible(f"{benchmark} was measured otherwise: {reason}.")))
    tests = sum(line.difference is not None for line in lines)
    if tests:
        console.print(
            Text(
                f"p: paired exchange tests over pictures, Holm-corrected for {tests}; intervals are each for itself. "
                "smallest: the smallest true difference that a single such test would show four times in five, by the "
                "spread that was seen.",
                style="dim",
            )
        )


def _cells(line: Line) -> list[str]:
    column = column_of(line.benchmark, line.name, max(line.first, line.second, key=lambda metric: abs(metric.value)))
    places, scale = decimals(column), column.scale
    values = [number(metric.value * scale, places) for metric in (line.first, line.second)]
    gain = "" if line.unlike else number((line.first.value - line.second.value) * scale, places, sign=True)
    found = line.difference
    if found is None:
        return [column_head(column), *values, gain, "", "", "", line.verdict]
    interval = [number(end * scale, places, sign=True) for end in (found.low, found.high)]
    smallest = number(found.smallest * scale, places)
    return [column_head(column), *values, gain, " to ".join(interval), f"{line.p_value:.2g}", smallest, line.verdict]


def as_fields(line: Line) -> dict[str, Any]:
    """A line for programs, values scaled as shown."""
    scale, found = line.first.scale, line.difference
    return {
        "a": line.rows[0],
        "b": line.rows[1],
        "benchmark": line.benchmark,
        "metric": line.name,
        "value_a": line.first.value * scale,
        "value_b": line.second.value * scale,
        "difference": None if line.unlike else (line.first.value - line.second.value) * scale,
        "low": found.low * scale if found else None,
        "high": found.high * scale if found else None,
        "p_corrected": line.p_value if found else None,
        "smallest_shown": found.smallest * scale if found and math.isfinite(found.smallest) else None,
        "items": line.first.n,
        "unlike": "; ".join(line.unlike) or None,
        "verdict": line.verdict,
    }


def _json(fields: list[dict[str, Any]]) -> str:
    return json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(fields: list[dict[str, Any]]) -> str:
    import pandas as pd

    return pd.DataFrame(fields).to_csv(index=False, lineterminator="\n")
