"""The table that every format renders: models × primary metrics, with intervals, differences and marks.

Rules of the marks:
- cells are compared only within a *group* of equal protocol; input settings may differ, since they are part of a model;
- differences are paired by item, so that only models with a score for the same items are tested, and only they are
  marked together;
- ``best``: the top cell of such models, significantly better than every other one;
- ``tied``: the top cell and those that were tested against it without a significant difference, if another one is
  significantly worse;
- no mark if no difference from the top cell is significant;
- no mark for a cell that is not credited to the images (`Cell.credited`).
All tests of a table (the differences from the baselines and from the top cells, on request of all pairs) are one
family: their p-values are Holm-corrected together, so that marks and differences never contradict each other. Those
from a top cell account for its choice by its score, see ``significance.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.report.load_results import MissingValue
from benchmarks.results.blind import is_credited
from benchmarks.study.rows import RowRecord

ALPHA = 0.05
RankMark = Literal["best", "tied", ""]
SeedVariance = Literal["included", "none", "unknown", ""]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric of one benchmark.

    Args:
        benchmark: name of the benchmark.
        metric: name of the metric; empty if no model has a number.
        label: for the header, ``"T→I R@1"``.
        scale: factor from stored to displayed values.
        higher_is_better: None if neither is better; such a column is not ranked.
        largest: the largest absolute value, scaled.
        chance_levels: trivial baseline → its score (see `results.Metric`), scaled.
        benchmark_id: the benchmark's name in files, if another name is displayed.
        of_llava: whether LLaVAs are scored, not encoders alone.
    """

    benchmark: str
    metric: str
    label: str
    scale: float
    higher_is_better: bool | None
    largest: float = 0.0
    chance_levels: Mapping[str, float] = field(default_factory=dict, hash=False)
    benchmark_id: str = ""
    of_llava: bool = False

    @property
    def ranked(self) -> bool:
        """Whether its best models are marked, and count in averages, ranks and sentences."""
        return self.higher_is_better is not None

    @property
    def key(self) -> str:
        """The benchmark's name in files."""
        return self.benchmark_id or self.benchmark


@dataclass(frozen=True, kw_only=True)
class BaselineDifference:
    """Difference from the baseline model, scaled.

    Args:
        baseline: the baseline model.
        value: model minus baseline.
        ci_low: lower end of the 95 % interval; both ends are NaN if the interval is unknown.
        ci_high: upper end.
        p_value: of this test alone.
        p_adjusted: Holm-corrected for all tests of the table.
        min_detectable_difference: the true difference that a single such test detects with power 0.8; NaN if no item
            differs, since the variance is then unknown.
        credited: whether the better one of the two scores is credited to the images; None without blind runs.
    """

    baseline: str
    value: float
    ci_low: float
    ci_high: float
    p_value: float
    p_adjusted: float
    min_detectable_difference: float
    credited: bool | None = None

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below `ALPHA`."""
        return self.p_adjusted < ALPHA


@dataclass(frozen=True, kw_only=True)
class BlindGain:
    """A score minus that without the image, on the items that were asked both ways, scaled.

    Args:
        sighted: the score on these items.
        blind: the score without the image.
        ci_low: lower end of the 95 % interval of the difference; both ends are NaN if the interval is unknown.
        ci_high: upper end.
        p_value: of this test alone.
        n: number of these items.
        min_detectable: the gain that this test detects with power 0.8; NaN if unknown.
    """

    sighted: float
    blind: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    min_detectable: float

    @property
    def value(self) -> float:
        """The gain."""
        return self.sighted - self.blind

    def credits(self, higher_is_better: bool | None) -> bool:
        """Whether this gain is significant in the better direction."""
        return is_credited([(self.value, self.p_value)], higher_is_better=higher_is_better is not False)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, or why it is missing.

    Args:
        row: name of the model.
        column: its column.
        value: scaled; None if missing.
        ci_low: lower end of the 95 % interval; over images and seeds if the value is a mean over seeds.
        ci_high: upper end.
        n: number of items.
        delta: difference from the baseline model, if both have the same protocol.
        mark: see the module's docstring.
        group: 0 for the column's main protocol, 1, 2, … for others, which are not ranked with it.
        protocol_differences: as text, differences from the main protocol.
        missing: why there is no number.
        seed: of the model.
        by_seed: seed → value, if the value is a mean over seeds.
        members: names of the single seeds' rows, if the value is a mean over seeds.
        image_ci_half_width: average half width of a single seed's interval over images.
        seed_variance: of a mean over seeds, whether its interval and tests include the seed variance; ``none`` for a
            pretrained model, ``unknown`` if no trained model of its column and protocol has several seeds that differ.
        no_interval: why the number has no interval.
        gains: kind of blind run → the gain of the image; empty without such runs.
        withheld: the mark that it would have if it were credited.
        measured_elsewhere: whether it was imported.
    """

    row: str
    column: Column
    value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    delta: BaselineDifference | None = None
    mark: RankMark = ""
    group: int = 0
    protocol_differences: tuple[str, ...] = ()
    missing: MissingValue | None = None
    seed: int | None = None
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    image_ci_half_width: float | None = None
    seed_variance: SeedVariance = ""
    no_interval: str = ""
    gains: Mapping[str, BlindGain] = field(default_factory=dict)
    withheld: RankMark = ""
    measured_elsewhere: bool = False

    @property
    def credited(self) -> bool | None:
        """Whether the score is credited to the images; None without blind runs, or in a column that is not ranked."""
        if not self.gains or not self.column.ranked:
            return None
        return all(gain.credits(self.column.higher_is_better) for gain in self.gains.values())


PairKey = tuple[str, str, frozenset[str]]  # benchmark, metric, both models


def pair_key(first: Cell, second: Cell) -> PairKey:
    """The key of the test of two models on one metric."""
    return first.column.benchmark, first.column.metric, frozenset({first.row, second.row})


@dataclass(frozen=True, kw_only=True)
class Table:
    """Models × metrics.

    Args:
        rows: the models.
        columns: the metrics.
        cells: (model, benchmark, metric) → cell.
        comparisons: number of tests behind the marks and differences.
        all_pairs: whether every pair of models of a ranked column was tested.
        seeds: number of seeds that the values are means over; 0 without several seeds.
        untestable: pairs of cells without a test, since the seeds of every trained model have equal scores.
        other_items: for each ranked column and protocol whose models do not have scores for the same items, the sets of
            cells that do; only cells of one set are tested against each other.
        p_values: benchmark, metric and pair of models → Holm-corrected p-value of "no difference", of all tests.
        unread: benchmark, metric and pair of significantly different models whose shares of answers not read differ
            significantly, too → model → its share, in per cent.
    """

    rows: tuple[RowRecord, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    comparisons: int
    all_pairs: bool = False
    seeds: int = 0
    untestable: tuple[tuple[Cell, Cell], ...] = ()
    other_items: tuple[tuple[tuple[Cell, ...], ...], ...] = ()
    p_values: Mapping[PairKey, float] = field(default_factory=dict)
    unread: Mapping[PairKey, Mapping[str, float]] = field(default_factory=dict)

    def differs(self, first: Cell, second: Cell) -> bool | None:
        """Whether two cells of a column differ significantly; None if they were not tested against each other."""
        p_adjusted = self.p_values.get(pair_key(first, second))
        return None if p_adjusted is None else p_adjusted < ALPHA

    @property
    def baselines(self) -> frozenset[str | None]:
        """The models that others are compared with."""
        return frozenset(row.baseline for row in self.rows)

    def cell(self, row: RowRecord, column: Column) -> Cell:
        """The cell of a model and a metric."""
        return self.cells[row.name, column.benchmark, column.metric]

    def column_cells(self, column: Column) -> list[Cell]:
        """A column from top to bottom."""
        return [self.cell(row, column) for row in self.rows]
