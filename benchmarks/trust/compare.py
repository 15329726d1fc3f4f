"""``clips-bench compare A B``: two rows, directories of results or studies, and what can be told of how they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import statistics
from benchmarks.item_scores import ItemScores, comparable
from benchmarks.noise import TrainingNoise
from benchmarks.protocol import INPUT, differences, ranked_by
from benchmarks.results import Result
from benchmarks.statistics import Difference, holm
from benchmarks.trained import Apart, apart, training_of
from benchmarks.trust.compare_formats import WRITERS, print_comparison
from benchmarks.trust.comparison import Comparison, Line, few
from benchmarks.trust.sides import Side, read_side, told_apart
from benchmarks.wording import listed
from clips.core.artifact import say, write_file
from clips.errors import UserError, suggest

Rows = Mapping[str, Mapping[str, Result]]
_A, _B = "A", "B"  # results may carry the same row's name


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare two rows, or two studies, benchmark by benchmark, with intervals and corrected tests.

    Args:
        first: a row's directory (``results/ROW``); or a directory of results or a study's output: then rows of equal
            name are compared, and it is said which rows are new or gone and what the two were run with.
        second: likewise.
        benchmarks: only these; all where empty.
        all_metrics: also those that the main table leaves out; each is one more test to correct for.
        output: also write the comparison to this file: .json or .csv for programs, .md or .html to read.
    """

    first: str
    second: str
    benchmarks: tuple[str, ...] = ()
    all_metrics: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).suffix not in WRITERS:
            raise UserError(f"output: expected a name that ends in {', '.join(WRITERS)}, got '{self.output}'")


def compare(config: CompareConfig) -> None:
    """Print the comparison; write it to ``output`` where that is given.

    Raises:
        UserError: no results there, no row, benchmark or metric in common, a file that cannot be read.
    """
    found = comparison(config)
    print_comparison(found)
    if config.output:
        write_file(config.output, WRITERS[Path(config.output).suffix](found))
        say(f"comparison: {config.output}")


def comparison(config: CompareConfig) -> Comparison:
    """Read both sides and compare what they have in common; see `compare`."""
    first, second = read_side(config.first, "first"), read_side(config.second, "second")
    pairs = _paired(first.rows, second.rows)
    known = {name for pair in pairs for results in pair for name in results}
    for name in config.benchmarks:
        if name not in known:
            raise suggest(name, known, "benchmark ('benchmarks')")
    lines = compared(pairs, config.benchmarks, all_metrics=config.all_metrics)
    left_out = [reason for pair in pairs for reason in without_numbers(*pair, config.benchmarks)]
    if not lines:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{config.second}: has no metric in common with {config.first}{why}")
    single = len(first.rows) == len(second.rows) == 1
    left_out += [] if single else [*_new_and_gone(first, second)]
    left_out += [f"{letter}: {gap}" for letter, side in ((_A, first), (_B, second)) for gap in side.gaps]
    return Comparison(
        sides=(first, second),
        lines=tuple(lines),
        left_out=tuple(dict.fromkeys(left_out)),
        context=tuple(told_apart(first, second)),
    )


def _new_and_gone(first: Side, second: Side) -> Iterator[str]:
    for letter, mine, other in ((_A, first, second), (_B, second, first)):
        if alone := [name for name in mine.rows if name not in other.rows]:
            yield f"only {letter} has the row{'s' if len(alone) > 1 else ''} {listed(alone)}"


def _paired(first: Rows, second: Rows) -> list[tuple[Mapping[str, Result], Mapping[str, Result]]]:
    """Rows of equal name; the only row of each, whatever they are called."""
    if len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    common = [name for name in first if name in second]
    if not common:
        raise UserError(f"second: expected a row of {few(first)}; it has {few(second)}")
    return [(first[name], second[name]) for name in common]


def compared(
    pairs: Sequence[tuple[Mapping[str, Result], Mapping[str, Result]]],
    benchmarks: Sequence[str] = (),
    *,
    all_metrics: bool = False,
) -> list[Line]:
    """One line a metric that both rows have; the p-values of all lines are Holm-corrected together."""
    found: list[tuple[Line, Result, Result]] = []
    trainings: dict[str, Apart] = {}
    for mine, other in pairs:
        for name in [name for name in mine if name in other and (not benchmarks or name in benchmarks)]:
            one, two = mine[name], other[name]
            models = repr((one.model, two.model))
            if not _same_model(one, two) and models not in trainings:
                trainings[models] = apart(training_of(one), training_of(two))
            for metric in one.metrics if all_metrics else one.primary:
                if metric in one.metrics and metric in two.metrics:
                    found.append((_line(one, two, metric, trainings.get(models)), one, two))
    items = ItemScores()
    tested = [
        line if line.unlike or line.unchanged else replace(line, difference=_difference(items, one, two, line.name))
        for line, one, two in found
    ]
    places = [place for place, line in enumerate(tested) if line.difference is not None]
    corrected = holm([line.difference.p_value for line in tested if line.difference is not None])
    for place, p_value in zip(places, corrected, strict=True):
        tested[place] = replace(tested[place], p_value=p_value)
    return tested


def _difference(items: ItemScores, first: Result, second: Result, metric: str) -> Difference | None:
    """A's metric minus B's; None where they do not share their items or the metric has no formula."""
    mine, other = (items.of_model([result], metric) for result in (first, second))
    if mine is None or other is None or not comparable(mine, other):
        return None
    return statistics.compare(mine, other, TrainingNoise())


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


def _same_model(first: Result, second: Result) -> bool:
    return bool(first.model.get("hash")) and first.model.get("hash") == second.model.get("hash")


def _line(first: Result, second: Result, metric: str, training: Apart | None) -> Line:
    alike = ranked_by(first.protocol) == ranked_by(second.protocol)
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
        same_model=_same_model(first, second),
        training=training,
    )
