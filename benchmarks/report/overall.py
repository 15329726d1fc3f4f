"""Each model's average and mean rank over the benchmarks, with intervals, and the pairs of averages that differ.

Both use the first metric of each benchmark on which all models have a number under the main protocol. The average takes
those in per cent, so that points (MME) and CIDEr, which may exceed 100, do not outweigh the others.

The images of different benchmarks are independent: the variance of an average is the sum of the benchmarks' variances,
divided by their number squared, with Satterthwaite's degrees of freedom; errors of one training are correlated.

If every pair of models is tested, the interval of a rank counts the models that differ significantly: the true rank is
at least one more than the number of significantly better models, and likewise at most (Mogstad, Romano, Shaikh and
Wilhelm, Review of Economic Studies 91, 2024). A bootstrap of ranks has no such guarantee if models are
close. ``scripts/check_averages.py`` simulates both.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from benchmarks.report.cell_text import UNCREDITED
from benchmarks.report.figure import FigureSet
from benchmarks.report.significance import Evidence
from benchmarks.report.table import ALPHA, Cell, Column, Table
from benchmarks.results.formatting import format_number, join_or_count, join_with_and
from benchmarks.results.item_scores import comparable
from benchmarks.results.noise import Estimate, difference_estimate, metric_estimate
from benchmarks.results.statistics import holm_correction

_MIN_BENCHMARKS = 2
_PER_CENT = 100.0
_ROUNDING = 1e-9
_UNBOUNDED = {"CIDEr"}  # labels of metrics that are displayed times 100, and no ratios
HEADERS = ("model", "average", "95 % interval", "mean rank", "95 % interval")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % interval; NaN without one."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Overall:
    """Averages and mean ranks.

    Args:
        averages: model → average, without intervals if a score has none; empty with fewer than two benchmarks in per
            cent.
        ranks: model → mean rank, 1 is best; empty with fewer than two benchmarks.
        averaged: the benchmarks of the averages.
        ranked: the benchmarks of the ranks.
        p_values: pair of models → Holm-corrected p-value of "their averages are equal", of the tested pairs.
        without_interval: the averaged benchmarks whose scores have no interval.
        uncredited: model → the ranked benchmarks on which its score is not credited to the images; only if there are.
    """

    averages: dict[str, Interval]
    ranks: dict[str, Interval]
    averaged: tuple[str, ...]
    ranked: tuple[str, ...]
    p_values: dict[frozenset[str], float]
    without_interval: tuple[str, ...] = ()
    uncredited: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The model with the best average, and the models that it is significantly above; empty without averages.

        Models that were not tested against it are named, too. An average with a score that is not credited to the
        images is never called best, nor is one of several equal ones.
        """
        if not self.averages:
            return ""
        best, *others = sorted(self.averages, key=lambda row: -self.averages[row].value)
        average = self.averages[best]
        equal = [row for row in others if math.isclose(self.averages[row].value, average.value, abs_tol=_ROUNDING)]
        if equal:
            shared = f"{join_or_count([best, *equal], 'models')} have the same average"
            lower = " and no model a higher one" if len(equal) < len(others) else ""
            return f"{shared} over {len(self.averaged)} benchmarks, {format_number(average.value, 1)}{lower}."
        number = f"over {len(self.averaged)} benchmarks, {format_number(average.value, 1)}"
        blind = self._uncredited(best, self.averaged)
        if blind:
            verb = "its score on {} is" if len(blind) == 1 else "its scores on {} are"
            reason = verb.format(join_with_and(blind))
            return f"{best} has the highest average {number}, but {reason} not credited to the images."
        if self.without_interval:
            reason = f"because there is none on {join_or_count(self.without_interval, 'benchmarks')}"
            return f"{best} has the highest average {number}, without an interval, {reason}."
        tested = {row: p for row in others if (p := self.p_values.get(frozenset({best, row}))) is not None}
        beaten = [row for row, p_value in tested.items() if p_value < ALPHA]
        close = [row for row in tested if row not in beaten]
        untested = [row for row in others if row not in tested]
        interval = f"[{format_number(average.low, 1)}, {format_number(average.high, 1)}]"
        text = f"{best} has the best average {number} {interval}"
        above = "all others" if len(beaten) == len(others) else join_or_count(beaten, "models") if beaten else ""
        parts = [
            *([f"significantly above {above}"] if above else []),
            *([f"not significantly above {join_or_count(close, 'others')}"] if close else []),
            *([f"not tested against {join_or_count(untested, 'others')}"] if untested else []),
        ]
        return f"{', '.join([text, *parts])}."

    def sign(self, row: str, benchmarks: Sequence[str]) -> str:
        """‡ if a model's score on one of some benchmarks is not credited to the images, else empty."""
        return UNCREDITED if self._uncredited(row, benchmarks) else ""

    def _uncredited(self, row: str, benchmarks: Sequence[str]) -> list[str]:
        return [benchmark for benchmark in self.uncredited.get(row, ()) if benchmark in benchmarks]


def overall_scores(table: Table, evidence: Evidence) -> Overall:
    """Averages and mean ranks of a tested table."""
    columns = [column for column in _first_columns(table) if _is_complete(table, column)]
    rows = [row.name for row in table.rows]
    ranked = columns if len(columns) >= _MIN_BENCHMARKS and len(rows) > 1 else []
    averaged = [column for column in ranked if is_ratio(column) and column.higher_is_better]
    if len(averaged) < _MIN_BENCHMARKS:
        averaged = []
    averages, p_values = _averages(table, averaged, evidence) if averaged else ({}, {})
    return Overall(
        averages=averages,
        ranks={row: _mean_rank(table, ranked, row) for row in rows} if ranked else {},
        averaged=tuple(column.benchmark for column in averaged),
        ranked=tuple(column.benchmark for column in ranked),
        p_values=p_values,
        without_interval=tuple(
            column.benchmark
            for column in averaged
            if any(evidence.scores(cell) is None for cell in table.column_cells(column))
        ),
        uncredited={row: found for row in rows if (found := _uncredited(table, ranked, row))},
    )


def is_ratio(column: Column) -> bool:
    """Whether an average over benchmarks may include a metric: a ratio in per cent, as MMBench's is also stored."""
    stored = (column.metric, column.label, column.scale) == ("gpt_eval_score", "accuracy", 1)
    return stored or (column.scale == _PER_CENT and column.label not in _UNBOUNDED)


def _first_columns(table: Table) -> list[Column]:
    first: dict[str, Column] = {}
    for column in table.columns:
        if column.ranked:
            first.setdefault(column.benchmark, column)
    return [*first.values()]


def _is_complete(table: Table, column: Column) -> bool:
    return all(cell.value is not None and cell.group == 0 for cell in table.column_cells(column))


def _uncredited(table: Table, columns: Sequence[Column], row: str) -> tuple[str, ...]:
    cells = [table.cells[row, column.benchmark, column.metric] for column in columns]
    return tuple(cell.column.benchmark for cell in cells if cell.credited is False)


def _averages(
    table: Table, columns: Sequence[Column], evidence: Evidence
) -> tuple[dict[str, Interval], dict[frozenset[str], float]]:
    def cells(row: str) -> list[Cell]:
        return [table.cells[row, column.benchmark, column.metric] for column in columns]

    def estimate(row: str, other: str | None = None) -> tuple[float, float, float]:
        found = []
        for place, cell in enumerate(cells(row)):
            scores, noise = evidence.scores(cell), evidence.training_noise(cell)
            others = evidence.scores(cells(other)[place]) if other else None
            assert scores is not None
            own = difference_estimate(scores, others, noise) if others else metric_estimate(scores, noise)
            found.append(own.scaled(cell.column.scale))
        return mean_estimate(found)

    def testable(pair: tuple[str, str]) -> bool:
        return all(comparable(*map(evidence.scores, both)) for both in zip(*map(cells, pair), strict=True))

    rows = [row.name for row in table.rows]
    if any(evidence.scores(cell) is None for row in rows for cell in cells(row)):
        return {row: Interval(value=fmean(cell.value or 0.0 for cell in cells(row))) for row in rows}, {}
    averages = {row: _interval(*estimate(row)) for row in rows}
    pairs = [*itertools.combinations(rows, 2)]
    tested = [pair for pair in pairs if testable(pair)]
    corrected = dict(zip(tested, holm_correction([_p_value(*estimate(*pair)) for pair in tested]), strict=True))
    return averages, {frozenset(pair): p_value for pair, p_value in corrected.items()}


def mean_estimate(estimates: Sequence[Estimate]) -> tuple[float, float, float]:
    """Mean of estimates on independent images: its value, standard error and degrees of freedom.

    One training serves all benchmarks, so that its errors add up: they count as perfectly correlated.
    """
    parts = [(each.image_variance, each.image_degrees) for each in estimates]
    trained = [each for each in estimates if each.training_variance]
    if trained:
        training = sum(math.sqrt(each.training_variance) for each in trained) ** 2
        parts.append((training, min(each.training_degrees for each in trained)))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / degrees for part, degrees in parts)
    degrees = variance**2 / spread if spread else math.inf
    return fmean(each.value for each in estimates), math.sqrt(variance) / len(estimates), degrees


def _interval(value: float, error: float, degrees: float) -> Interval:
    from scipy import stats

    half = float(stats.t.isf(ALPHA / 2, degrees)) * error
    return Interval(value=value, low=value - half, high=value + half)


def _p_value(value: float, error: float, degrees: float) -> float:
    from scipy import stats

    return float(2 * stats.t.sf(abs(value) / error, degrees)) if error else float(value == 0)


def _mean_rank(table: Table, columns: Sequence[Column], row: str) -> Interval:
    """Mean over benchmarks of a model's rank; models of equal score share the mean of their ranks.

    Without a test of every pair it has no interval.
    """
    values, lows, highs = [], [], []
    for column in columns:
        own = table.cells[row, column.benchmark, column.metric]
        sign = 1 if column.higher_is_better else -1
        gaps = [
            (sign * ((other.value or 0.0) - (own.value or 0.0)), table.differs(own, other) is True)
            for other in table.column_cells(column)
            if other.row != row
        ]
        values.append(1 + sum(gap > 0 for gap, _ in gaps) + sum(gap == 0 for gap, _ in gaps) / 2)
        lows.append(1 + sum(gap > 0 and differs for gap, differs in gaps))
        highs.append(1 + len(gaps) - sum(gap < 0 and differs for gap, differs in gaps))
    if not table.all_pairs:
        return Interval(value=fmean(values))
    return Interval(value=fmean(values), low=fmean(lows), high=fmean(highs))


def overall_section(overall: Overall) -> FigureSet | None:
    """The table of averages and mean ranks, best first; None without ranks."""
    if not overall.ranks:
        return None
    sentences = [f"The mean rank (1 is best) is over {join_with_and(overall.ranked)}, the first metric of each."]
    if overall.averages:
        missing = join_or_count(overall.without_interval, "benchmarks") if overall.without_interval else ""
        reason = f" It has no interval, because the score on {missing} has none." if missing else ""
        sentences.insert(0, f"The average is over {join_with_and(overall.averaged)}, all in per cent.{reason}")
    rows = sorted(overall.ranks, key=lambda row: (overall.ranks[row].value, row))
    uncredited = f"{UNCREDITED} Includes a score that is not credited to the images."
    return FigureSet(
        lead=" ".join(sentences),
        figures=(),
        notes=(
            "Only benchmarks on which every model has a number under the main protocol count. The interval of a mean "
            "rank follows from the tests of all pairs of models, which `--pairs all` makes: a rank is certain only as "
            "far as models differ significantly.",
            *([uncredited] if overall.uncredited else []),
        ),
        headers=HEADERS if overall.averages else (HEADERS[0], *HEADERS[3:]),
        rows=tuple((row, *overall_texts(overall, row)) for row in rows),
    )


def overall_texts(overall: Overall, row: str) -> list[str]:
    """Average and mean rank of a model, each with its interval, as text."""
    both = (overall.averages, overall.averaged), (overall.ranks, overall.ranked)
    found = [(numbers[row], overall.sign(row, benchmarks)) for numbers, benchmarks in both if numbers]
    return [
        text
        for each, sign in found
        for text in (
            format_number(each.value, 1) + sign,
            "—" if math.isnan(each.low) else f"{format_number(each.low, 1)} – {format_number(each.high, 1)}",
        )
    ]
