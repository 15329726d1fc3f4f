"""The tables behind a report: scores, a line (`Cell`) per model and metric, and differences, one per tested pair.

All lines are frozen. `scores.py` makes them from results, `differences.py` tests them and adds what follows, and
`measures.py` lists what formats show of them.

Rules of the marks:
- cells are compared only within a *group* of equal protocol; input settings may differ, since they are part of a model;
- differences are paired by item, so that only models with a score for the same items are tested, and only they are
  marked together;
- ``best``: the top cell of such models, significantly better than every other one;
- ``tied``: the top cell and those that were tested against it without a significant difference, if another one is
  significantly worse;
- no mark if no difference from the top cell is significant, or if the top cell is not significantly above chance;
- no mark for a cell that is not credited to the images (`Cell.credited`).
All tests of a table are one family: their p-values are Holm-corrected together, so that marks and differences never
contradict each other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from benchmarks.report.load_results import MissingValue
from benchmarks.results.baselines import baseline_name
from benchmarks.results.formatting import decimals_needed, difference_ci_text, format_number
from benchmarks.results.noise import Scores, TrainingNoise
from benchmarks.results.results import CHANCE, Result
from benchmarks.results.statistics import PairedDifference, compare, compare_with_zero
from benchmarks.study.study_record import RowRecord

ALPHA = 0.05
RankMark = Literal["best", "tied", ""]
UNCREDITED = "‡"
ELSEWHERE = "§"
NOT_RUN = "not run"
IF_SEEDS_VARY_MORE = {1: 60, 2: 80, 3: 90}
"""Seeds of a model whose standard deviation over trainings is three times that of five others → % of its intervals that
cover the truth, where images add nothing (``scripts/check_statistics.py --part limits``)."""
Place = tuple[str, "Column"]
"""The row and the column of a cell."""
Pair = frozenset[Place]
Sampled = Literal["images", "items", "clusters of items"]
_MAX_ASYMMETRY = 0.25  # difference of the two sides of an interval that is still shown as ±, relative to its width


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """The facts of one metric of one benchmark; the tables of single seeds and of their means share it.

    Args:
        benchmark: name of the benchmark, as displayed.
        metric: name of the metric, or of the category; empty if no model has a number.
        label: for the header, ``"T→I R@1"``.
        scale: factor from stored to displayed values.
        higher_is_better: None if neither is better; such a column is not ranked.
        largest: the largest absolute value, scaled.
        chance_levels: trivial baseline → its score (see `results.Metric`), scaled.
        key: the benchmark's name in files.
        of_llava: whether LLaVAs are scored, not encoders alone.
        items: number of items as text, ``"30 of 9,000"``; ``"90 to 120"`` if it varies within the main protocol.
        is_category: whether it is about the items of one category, in the first primary metric.
        sampled: what its intervals and tests are over.
        has_foreign: whether some of the report's results are by other tools than the rest, and are marked.
    """

    benchmark: str
    metric: str
    label: str
    scale: float
    higher_is_better: bool | None
    largest: float = 0.0
    chance_levels: Mapping[str, float] = field(default_factory=dict)
    key: str = ""
    of_llava: bool = False
    items: str = ""
    is_category: bool = False
    sampled: Sampled = "images"
    has_foreign: bool = False

    @property
    def ranked(self) -> bool:
        """Whether its best models are marked, and count in averages, ranks and sentences."""
        return self.higher_is_better is not None

    @property
    def places(self) -> int:
        """Decimal places: 2 in a column of values below 1 per cent, or below 10 on another scale, else 1."""
        return 1 if self.largest >= (1 if self.scale == 100 else 10) else 2

    @property
    def title(self) -> str:
        """Its name in a sentence: ``"pope F1"``, with the benchmark once if the label begins with it."""
        has_benchmark = f"{self.label} ".casefold().startswith(f"{self.benchmark} ".casefold())
        return self.label if has_benchmark else f"{self.benchmark} {self.label}"

    @property
    def arrow(self) -> str:
        """`` ↓`` if lower is better, else empty."""
        return " ↓" if self.higher_is_better is False else ""

    def text(self, value: float | None, *, sign: bool = False) -> str:
        """A number of this column."""
        return format_number(value, self.places, sign=sign)

    def small_text(self, value: float) -> str:
        """A number with the decimals that it needs not to be shown as 0."""
        return format_number(value, decimals_needed(value, self.places))

    def trivial_baselines(self) -> dict[str, str]:
        """Trivial baseline → its score as text: chance, and the baselines that score higher."""
        chance = self.chance_levels.get(CHANCE)
        return {
            name: self.small_text(value)
            for name, value in self.chance_levels.items()
            # of C equally frequent classes, the majority class scores as chance does, except for rounding
            if name == CHANCE or chance is None or (value > chance and not math.isclose(value, chance))
        }

    @property
    def chance_lines(self) -> list[str]:
        """``["50.0", "always yes 66.7"]``; empty if no trivial baseline is known."""
        return [text if name == CHANCE else f"{name} {text}" for name, text in self.trivial_baselines().items()]

    @property
    def chance_text(self) -> str:
        """``"50.0"``, or ``"50.0 (always yes 66.7)"``; empty if no trivial baseline is known."""
        first, *others = self.chance_lines or [""]
        return first + (f" ({', '.join(others)})" if others else "")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A line of the scores: one number, or why it is missing.

    Args:
        row: name of the model.
        column: its metric.
        value: scaled; None if missing.
        ci_low: lower end of the 95 % interval; over images and seeds if the value is a mean over seeds.
        ci_high: upper end.
        n: number of items.
        group: 0 for the column's main protocol, 1, 2, … for others, which are not ranked with it.
        protocol_differences: as text, differences from the main protocol.
        missing: why there is no number.
        rows: names of the rows that it is about, a model's seeds.
        by_seed: seed → value, if the value is a mean over seeds; a single one of a pretrained model.
        image_ci_half_width: average half width of a single seed's interval over images.
        no_interval: why the number has no interval.
        all_results: of these rows on this benchmark.
        results: those behind the value.
        trained: whether a single result is one of a training run, among several models' seeds.
        evidence: the metric with the influence of each image; None if it cannot be computed from items.
        noise: the training noise of its column and protocol, where models have several seeds.
        all_gains: condition (`baselines.WITHOUT_IMAGE`) → the gain over the score in it, as a cell of its own column.
        delta: the difference from the baseline model; None without a test.
        rank_mark: what the tests say of its rank; see `mark`.
    """

    row: str
    column: Column
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    group: int = 0
    protocol_differences: tuple[str, ...] = ()
    missing: MissingValue | None = None
    rows: tuple[str, ...] = ()
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    image_ci_half_width: float | None = None
    no_interval: str = ""
    all_results: tuple[Result, ...] = ()
    results: tuple[Result, ...] = ()
    trained: bool = False
    evidence: Scores | None = None
    noise: TrainingNoise = field(default_factory=TrainingNoise)
    all_gains: Mapping[str, Cell] = field(default_factory=dict)
    delta: Difference | None = None
    rank_mark: RankMark = ""

    @property
    def place(self) -> Place:
        """The same for all stages of a line."""
        return self.row, self.column

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """Equal for cells that show the same results, as the rows of an encoder with several LLMs do."""
        paths = tuple(result.path or result.model_name for result in self.results)
        # a seed on its own and a model of which only this seed is left have the same results, but other noise
        return self.column.benchmark, self.column.metric, paths, self.trained

    @property
    def metric(self) -> str:
        """Its name in the results: of a category that of the first metric, of which it is a part."""
        return self.results[0].primary[0] if self.column.is_category else self.column.metric

    @property
    def category(self) -> str | None:
        """The items that it is about; None for all."""
        return self.column.metric if self.column.is_category else None

    @property
    def seed_variance(self) -> Literal["included", "none", "unknown", ""]:
        """Of a mean over seeds, whether its interval and tests include the seed variance.

        ``none`` for a pretrained model, ``unknown`` if no trained model of its column and protocol has several seeds
        that differ.
        """
        if not self.by_seed or self.evidence is None:
            return ""
        return "none" if not self.evidence.trained else "included" if self.noise.degrees > 0 else "unknown"

    @property
    def caution(self) -> str:
        """How the interval fails if the model's trainings vary more than those of others; empty if it has own noise."""
        if self.seed_variance != "included" or self.evidence is None or not self.noise.borrows(self.evidence):
            return ""
        seeds = self.evidence.num_seeds
        many = f"{seeds} seeds" if seeds > 1 else "1 seed"
        return (
            f"{many}: most of the seed variance is that of other models; if its standard deviation is three times "
            f"theirs, such intervals may cover the truth in only {IF_SEEDS_VARY_MORE[seeds]} % of cases"
        )

    @property
    def measured_elsewhere(self) -> bool:
        """Whether another tool measured it."""
        return bool(self.results and self.results[0].measured_elsewhere)

    @property
    def is_foreign(self) -> bool:
        """Whether another tool measured it, but not the whole report."""
        return self.measured_elsewhere and self.column.has_foreign

    @property
    def gains(self) -> Mapping[str, Cell]:
        """The gains that are known: those with an interval, and those of 0, which may lack one.

        They need an interval of the score, but for trainings, whose gains have a variance of their own.
        """
        is_known = self.ci_low is not None or (self.evidence is not None and self.evidence.trained)
        return {
            name: gain
            for name, gain in self.all_gains.items()
            if is_known and (gain.ci_low is not None or not gain.value)
        }

    @functools.cached_property
    def against_zero(self) -> PairedDifference | None:
        """Of a gain, the test that it is 0; None without items."""
        return None if self.evidence is None else compare_with_zero(self.evidence, self.noise)

    @property
    def mark(self) -> RankMark:
        """See the module's docstring."""
        return "" if self.credited is False else self.rank_mark

    @property
    def withheld(self) -> RankMark:
        """The mark that it would have if it were credited."""
        return self.rank_mark if self.credited is False else ""

    @property
    def baseline(self) -> float | None:
        """Of a gain, the score over which it is."""
        first = self.results[0].metrics[self.metric]
        name = baseline_name(first.gain_of, first.condition)
        known = [each.metrics[name].value * self.column.scale for each in self.results if name in each.metrics]
        return fmean(known) if known else None

    @property
    def credits(self) -> bool:
        """Whether this gain is significantly above 0, or below it where lower is better."""
        if self.ci_low is None or self.ci_high is None:
            return False
        return self.ci_high < 0 if self.column.higher_is_better is False else self.ci_low > 0

    @property
    def credited(self) -> bool | None:
        """Whether the score is credited to the images: each gain over a score without them is significant.

        None if no gain is known, or in a column that is not ranked.
        """
        if not self.gains or not self.column.ranked:
            return None
        return all(gain.credits for gain in self.gains.values())

    @property
    def compared_value(self) -> float:
        """The value in units of the column's largest one, rounded: a mean over equal seeds has a rounding error."""
        return round((self.value or 0.0) / (self.column.largest or 1.0), 11)

    @property
    def above_chance(self) -> bool | None:
        """Whether its interval is above all trivial baselines; None without an interval or known chance level."""
        levels, better = self.column.chance_levels.values(), self.column.higher_is_better
        if not levels or self.group or self.ci_low is None or self.ci_high is None or better is None:
            return None
        return self.ci_low > max(levels) if better else self.ci_high < min(levels)

    @property
    def number(self) -> str:
        """The value as text."""
        return self.column.text(self.value)

    @property
    def margin(self) -> str:
        """The 95 % interval relative to its value: ``±1.2``, or ``+8.0/−0.0`` if asymmetric; empty without one."""
        if self.ci_low is None or self.ci_high is None or self.value is None:
            return ""
        above, below = self.ci_high - self.value, self.value - self.ci_low
        if abs(above - below) <= _MAX_ASYMMETRY * (above + below):
            return f"±{self.column.small_text((above + below) / 2)}"
        return f"+{self.column.small_text(above)}/\N{MINUS SIGN}{self.column.small_text(below)}"

    @property
    def score(self) -> str:
        """The value with its interval."""
        return f"{self.number} {self.margin}".rstrip()

    @property
    def interval(self) -> str:
        """The ends of the 95 % interval, ``51.0 – 57.6``; empty without one."""
        if self.ci_low is None or self.ci_high is None:
            return ""
        places = decimals_needed(self.ci_high - self.ci_low, self.column.places)
        return f"{format_number(self.ci_low, places)} – {format_number(self.ci_high, places)}"

    @property
    def signed_interval(self) -> str:
        """Of a gain: ``−1.2 to +3.4``."""
        low, high = (math.nan if end is None else end for end in (self.ci_low, self.ci_high))
        return difference_ci_text(low, high, self.column.places)

    @property
    def dagger(self) -> str:
        """One dagger for group 1, two for group 2, …; empty for the main protocol."""
        return "†" * self.group

    @property
    def signs(self) -> str:
        """`dagger`, ‡ for a score that is not credited to the images, and § for one that `is_foreign`."""
        return self.dagger + UNCREDITED * (self.credited is False) + ELSEWHERE * self.is_foreign

    @property
    def missing_label(self) -> str:
        """The short text of a missing value; empty for a number, and where there cannot be one."""
        if self.missing is None:
            return ""
        return {"missing": NOT_RUN, "not applicable": ""}.get(self.missing.kind, self.missing.kind)


@dataclass(frozen=True, kw_only=True, eq=False)
class Difference:
    """A line of the differences: one model minus another on one metric, scaled.

    Args:
        cell: of the model.
        other: of the other model, in the same column.
        p_adjusted: Holm-corrected for all tests of the table.
        unread: model → its share of answers not read, in per cent, if the models differ significantly, in this too.
    """

    cell: Cell
    other: Cell
    p_adjusted: float
    unread: Mapping[str, float] = field(default_factory=dict)

    def of(self, cell: Cell) -> Difference:
        """The same as that of ``cell``, one of the two, minus the other one."""
        return self if self.cell.place == cell.place else dataclasses.replace(self, cell=self.other, other=self.cell)

    @functools.cached_property
    def tested(self) -> PairedDifference:
        """The paired test, not scaled; computed when it is asked for, as marks need corrected p-values only."""
        assert self.cell.evidence is not None
        assert self.other.evidence is not None
        return compare(self.cell.evidence, self.other.evidence, self.cell.noise)

    @property
    def baseline(self) -> str:
        """The other model."""
        return self.other.row

    @property
    def value(self) -> float:
        """Model minus other."""
        return self.tested.value * self.cell.column.scale

    @property
    def ci_low(self) -> float:
        """Lower end of the 95 % interval; both ends are NaN if the interval is unknown."""
        return self.tested.low * self.cell.column.scale

    @property
    def ci_high(self) -> float:
        """Upper end."""
        return self.tested.high * self.cell.column.scale

    @property
    def p_value(self) -> float:
        """Of this test alone."""
        return self.tested.p_value

    @property
    def min_detectable(self) -> float:
        """The true difference that a single such test detects with power 0.8.

        NaN if no item differs, since the variance is then unknown.
        """
        return self.tested.min_detectable * self.cell.column.scale

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below `ALPHA`."""
        return self.p_adjusted < ALPHA

    @property
    def credited(self) -> bool | None:
        """Whether the better one of the two scores is credited to the images; None as of `Cell.credited`."""
        return (self.cell if self._is_better else self.other).credited

    @property
    def verdict(self) -> Literal["better", "worse", "different", "not significant", "not credited"]:
        """What the test says of the model; ``different`` in a column that is not ranked.

        ``not credited``: the better score is not credited to the images.
        """
        if not self.significant:
            return "not significant"
        if not self.cell.column.ranked:
            return "different"
        if self.credited is False:
            return "not credited"
        return "better" if self._is_better else "worse"

    @property
    def _is_better(self) -> bool:
        """Whether the model has the better score; without a meaning in a column that is not ranked."""
        return (self.tested.value > 0) == self.cell.column.higher_is_better

    @property
    def number(self) -> str:
        """The difference with its sign, and with the decimals that it needs not to be shown as 0."""
        return format_number(self.value, decimals_needed(self.value, self.cell.column.places), sign=True)

    @property
    def interval(self) -> str:
        """``−1.2 to +3.4``."""
        return difference_ci_text(self.ci_low, self.ci_high, self.cell.column.places)

    @property
    def detectable(self) -> str:
        """The minimum detectable difference."""
        return self.cell.column.small_text(self.min_detectable)


def pair_of(cell: Cell, other: Cell) -> Pair:
    """The key of their test in `Table.tested`."""
    return frozenset({cell.place, other.place})


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Models × metrics.

    Args:
        rows: the models.
        columns: the metrics.
        scores: the cells, column by column in the order of the models.
        comparisons: number of tests behind the marks and differences.
        all_pairs: whether every pair of models of a ranked column was tested.
        seeds: number of seeds that the values are means over; 0 without several seeds.
        untestable: pairs of cells with the same items and without a test, since one of them has no interval.
        other_items: for each ranked column and protocol whose models do not have scores for the same items, the sets of
            cells that do; only cells of one set are tested against each other.
        tested: pair of places → their difference, of all tests.
    """

    rows: tuple[RowRecord, ...]
    columns: tuple[Column, ...]
    scores: Sequence[Cell] = ()
    comparisons: int = 0
    all_pairs: bool = False
    seeds: int = 0
    untestable: tuple[tuple[Cell, Cell], ...] = ()
    other_items: tuple[Sequence[Sequence[Cell]], ...] = ()
    tested: Mapping[Pair, Difference] = field(default_factory=dict)

    def cells(self, column: Column) -> Sequence[Cell]:
        """The cells of a column, in the order of the models."""
        return self._by_column[column]

    @functools.cached_property
    def _by_column(self) -> dict[Column, list[Cell]]:
        cells: dict[Column, list[Cell]] = {column: [] for column in self.columns}
        for cell in self.scores:
            cells[cell.column].append(cell)
        return cells

    @property
    def differences(self) -> list[Difference]:
        """All tested pairs, those of omitted columns included."""
        return [*self.tested.values()]

    def in_order(self, names: Sequence[str]) -> Table:
        """The same with its models in another order."""
        places = [[row.name for row in self.rows].index(name) for name in names]
        return dataclasses.replace(
            self,
            rows=tuple(self.rows[place] for place in places),
            scores=[self.cells(column)[place] for column in self.columns for place in places],
        )

    def cell(self, row: str, benchmark: str, metric: str) -> Cell:
        """The cell of a model and a metric."""
        place = [each.name for each in self.rows].index(row)
        column = next(each for each in self.columns if (each.benchmark, each.metric) == (benchmark, metric))
        return self.cells(column)[place]

    def difference(self, cell: Cell, other: Cell) -> Difference | None:
        """The first cell minus the second of its column; None if they were not tested against each other."""
        tested = self.tested.get(pair_of(cell, other))
        return None if tested is None else tested.of(cell)

    def differs(self, first: Cell, second: Cell) -> bool | None:
        """Whether two cells of a column differ significantly; None if they were not tested against each other."""
        tested = self.tested.get(pair_of(first, second))
        return None if tested is None else tested.significant

    def detectable(self, column: Column) -> str:
        """The range of the minimum detectable differences from the baselines; empty if none is known."""
        values = [cell.delta.min_detectable for cell in self.cells(column) if cell.delta and column.ranked]
        known = sorted(filter(math.isfinite, values))
        return " to ".join(dict.fromkeys(map(column.small_text, (known[0], known[-1])))) if known else ""

    @property
    def baselines(self) -> frozenset[str]:
        """The models that others are compared with."""
        return frozenset(row.baseline for row in self.rows if row.baseline is not None)

    @property
    def has_chance_level(self) -> bool:
        """Whether the chance level of any column is known."""
        return any(column.chance_levels for column in self.columns)

    @property
    def benchmarks(self) -> list[tuple[str, list[Column]]]:
        """Adjacent columns by benchmark, for a header of two lines."""
        groups = itertools.groupby(self.columns, key=lambda column: column.benchmark)
        return [(benchmark, [*columns]) for benchmark, columns in groups]

    @property
    def headings(self) -> dict[int, str]:
        """Index of a row → the heading above it."""
        groups = [row.group for row in self.rows]
        return {
            index: group for index, group in enumerate(groups) if group and (index == 0 or group != groups[index - 1])
        }
