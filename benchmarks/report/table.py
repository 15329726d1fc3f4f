"""The one table that every format prints: rows × primary metrics, with intervals, differences and honest marks.

Rules of the marks, in one place:
- cells are compared only within a *group* of equal protocol (how a model takes its input may differ: it is
  part of the model);
- ``best``: alone at the top, and a paired test distinguishes it from every other cell of its group;
- ``tied``: the top of a group and those that no test distinguishes from it, where there is a worse cell;
- no mark where nothing can be distinguished.
The tests of a table, of every pair of cells of a group and of the differences to the baselines, are one family: their
p-values are Holm-corrected together, so that a mark and a difference never contradict each other, and the cell at the
top needs no luck to be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.report.load_results import MissingValue
from benchmarks.study.study_record import RowRecord

ALPHA = 0.05
RankMark = Literal["best", "tied", ""]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric of one benchmark.

    Args:
        benchmark: name of the benchmark.
        metric: name of the metric; empty where no row has a number.
        label: for the head, ``"T→I R@1"``.
        scale: values are shown times this.
        higher_is_better: None where neither is better; such a column is not ranked.
        largest: the largest value shown, without its sign.
        chance_levels: what answers give that are made without looking (`results.Metric`), scaled as shown.
    """

    benchmark: str
    metric: str
    label: str
    scale: float
    higher_is_better: bool | None
    largest: float = 0.0
    chance_levels: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class BaselineDifference:
    """Difference to the baseline row, scaled as shown.

    Args:
        baseline: the row that it is taken from.
        value: row minus baseline.
        ci_low: lower end of the 95 % interval; NaN, like the upper one, where none can be given.
        ci_high: upper end.
        p_value: of this test alone.
        p_adjusted: corrected for the tests of the whole table.
        min_detectable_difference: the smallest true difference that a single such test would show four times in five;
            NaN where nothing differs, and so nothing is known of the spread.
    """

    baseline: str
    value: float
    ci_low: float
    ci_high: float
    p_value: float
    p_adjusted: float
    min_detectable_difference: float

    @property
    def significant(self) -> bool:
        """Whether a difference was shown, given how many were looked at."""
        return self.p_adjusted < ALPHA


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, or why there is none.

    Args:
        row: its row.
        column: its column.
        value: as shown (scaled); None where there is a gap.
        ci_low: lower end of the 95 % interval.
        ci_high: upper end.
        n: items.
        delta: against the baseline row, where both were measured alike.
        mark: see the module's docstring.
        group: 0 for the column's main protocol, 1, 2, … for others, which are not ranked with it.
        protocol_differences: in words, what differs from the main protocol.
        missing: why there is no number.
        seed: of the row.
        by_seed: where the value is a mean over seeds (and the interval one over images and seeds): seed → value.
        members: where the value is a mean over seeds: the rows of the single seeds.
        image_ci_half_width: half the width of the interval over images that a single seed's value has, on average.
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


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows, columns and cells, and how many tests stand behind the marks and differences.

    ``seeds`` is 0 unless the numbers are means over so many seeds. ``refused`` are pairs of cells that cannot be
    tested: all seeds of the trained models of their column have the same answers. ``images_only`` are columns of which
    nothing is known of training: a table over seeds has one evaluation of each model there.
    """

    rows: tuple[RowRecord, ...]
    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    comparisons: int
    seeds: int = 0
    refused: tuple[tuple[Cell, Cell], ...] = ()
    images_only: tuple[Column, ...] = ()

    @property
    def baselines(self) -> frozenset[str | None]:
        """The rows that others are compared with."""
        return frozenset(row.baseline for row in self.rows)

    def cell(self, row: RowRecord, column: Column) -> Cell:
        """The cell of a row in a column."""
        return self.cells[row.name, column.benchmark, column.metric]

    def column_cells(self, column: Column) -> list[Cell]:
        """A column from top to bottom."""
        return [self.cell(row, column) for row in self.rows]
