"""The paired tests behind a table's marks and its differences from the baselines.

Tested are the differences from the baseline, and in ranked columns those from the top model. That one was chosen by
its score: any of k models could have been it, so that k (k - 1) / 2 pairs could have been tested instead of k - 1, and
these p-values are multiplied by k / 2. On request every pair is tested. All tests of a table, or of the tables of one
section, are corrected together (Holm); marks and differences use the corrected p-values.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean

from benchmarks.report.load_results import ReportSource
from benchmarks.report.table import ALPHA, BaselineDifference, Cell, Column, PairKey, RankMark, Table, pair_key
from benchmarks.results.blind import BlindPair
from benchmarks.results.item_scores import ItemScores, comparable
from benchmarks.results.noise import Estimate, Scores, TrainingNoise, difference_estimate, p_values, training_noise
from benchmarks.results.results import UNREAD, Result
from benchmarks.results.statistics import ConfidenceInterval, compare, holm_correction, scores_interval

Group = list[Cell]
_CellKey = tuple[str, str, str]  # model, benchmark, metric


class Evidence:
    """The items of a source's cells, and the training noise of each column.

    Args:
        source: the results.
        item_key: cell → its benchmark, metric and the category of its items (None for all).
        items: cache of item tables.
    """

    def __init__(
        self,
        source: ReportSource,
        item_key: Callable[[Cell], tuple[str, str, str | None]] | None = None,
        items: ItemScores | None = None,
    ) -> None:
        self._source = source
        self._item_key = item_key or (lambda cell: (cell.column.benchmark, cell.column.metric, None))
        self.items = items or ItemScores()
        self._rows = {row.name: row for row in source.rows}
        self._scores: dict[tuple[object, ...], Scores | None] = {}
        self._noise: dict[_CellKey, TrainingNoise] = {}
        self._spreads: dict[tuple[str, ...], float] = {}
        self._intervals: dict[tuple[tuple[object, ...], TrainingNoise], ConfidenceInterval] = {}

    def scores(self, cell: Cell) -> Scores | None:
        """A cell's metric with the influence of each image; None if it cannot be computed from items."""
        if cell.value is None:
            return None
        _, metric, category = self._item_key(cell)
        results, single = self._results(cell)
        key = self.results_key(cell)
        if key not in self._scores:
            self._scores[key] = self.items.of_model(results, metric, single_training=single, category=category)
        return self._scores[key]

    def results_key(self, cell: Cell) -> tuple[object, ...]:
        """Equal for cells that show the same results, as the rows of an encoder with several LLMs do."""
        benchmark, metric, category = self._item_key(cell)
        results, single = self._results(cell)
        # a seed on its own and a model of which only this seed is left have the same results, but other noise
        return benchmark, metric, category, tuple(result.path or result.model_name for result in results), single

    def _results(self, cell: Cell) -> tuple[list[Result], bool]:
        """A cell's results, and whether a single one is that of a training run among several models' seeds."""
        benchmark, names = cell.column.benchmark, cell.members or (cell.row,)
        found = {name: self._source.outcomes[name, benchmark] for name in names}
        results = {name: outcome for name, outcome in found.items() if isinstance(outcome, Result)}
        trained = any(self._is_trained(name, result) for name, result in results.items())
        return [*results.values()], bool(cell.members) and trained

    def interval(self, cell: Cell) -> ConfidenceInterval | None:
        """A cell's 95 % interval over images and, if known, seeds; None if it cannot be computed from items."""
        scores, noise = self.scores(cell), self.training_noise(cell)
        if scores is None:
            return None
        key = self.results_key(cell), noise  # tables of one source share cells
        if key not in self._intervals:
            self._intervals[key] = scores_interval(scores, noise)
        return self._intervals[key]

    def why_no_scores(self, cell: Cell) -> str:
        """Why `scores` returns None for a cell with a number."""
        return self.items.why_not(self._results(cell)[0], self._item_key(cell)[1])

    def unread(self, first: Cell, second: Cell) -> dict[str, float]:
        """Model → share of answers not read, in per cent, if those of two cells differ (uncorrected test at 5 %)."""
        one, other = (self._unread(cell) for cell in (first, second))
        if one is None or other is None or one.value == other.value or not comparable(one, other):
            return {}
        p_value = p_values([difference_estimate(one, other, training_noise([one, other]))])[0]
        return {first.row: 100 * one.value, second.row: 100 * other.value} if p_value < ALPHA else {}

    def _unread(self, cell: Cell) -> Scores | None:
        benchmark, _, category = self._item_key(cell)
        results, single = self._results(cell)
        key = (benchmark, UNREAD, category, cell.members or (cell.row,), single)
        if key not in self._scores:
            self._scores[key] = self.items.of_model(results, UNREAD, single_training=single, category=category)
        return self._scores[key]

    def gains(self, cell: Cell) -> dict[str, BlindPair]:
        """Kind of blind run → a cell's metric with and without the image, on the items of the run."""
        results, single = self._results(cell)
        return self.items.gains(results, self._item_key(cell)[1], single_training=single)

    def _is_trained(self, name: str, result: Result) -> bool:
        """Whether the study trained the model of a result."""
        path = str(result.model.get("path", ""))
        return any(path.endswith(artifact) for artifact in self._rows[name].artifacts.values())

    def pool_training_noise(self, table: Table) -> None:
        """Estimate the training noise of each column and protocol of a table over seeds, from distinct results."""
        measured = dict[tuple[object, ...], tuple[Cell, Scores]]()
        for column in table.columns:
            for group in _protocol_groups(table, column):
                found = {
                    self.results_key(cell): (cell, scores)
                    for cell in group
                    if cell.members and (scores := self.scores(cell)) is not None
                }
                noise = training_noise([scores for _, scores in found.values()])
                self._noise |= dict.fromkeys(map(_cell_key, group), noise)
                measured |= found
        spreads: dict[tuple[str, ...], list[float]] = {}
        for cell, scores in measured.values():
            spread = self.training_noise(cell).relative_spread(scores)
            if spread is not None and cell.column.ranked:
                spreads.setdefault(self._models(cell), []).append(spread)
        # those of the first table stay, so that its numbers do
        self._spreads = {model: fmean(found) for model, found in spreads.items()} | self._spreads
        for key, (cell, scores) in measured.items():
            self._scores[key] = dataclasses.replace(scores, spread=self._spreads.get(self._models(cell)))

    def _models(self, cell: Cell) -> tuple[str, ...]:
        return tuple(str(result.model.get("hash") or result.path) for result in self._results(cell)[0])

    def training_noise(self, cell: Cell) -> TrainingNoise:
        """The training noise of a cell's column."""
        return self._noise.get(_cell_key(cell), TrainingNoise())


def add_significance(
    tables: Sequence[Table],
    evidence: Evidence,
    *,
    ranked: bool = True,
    all_pairs: bool = False,
    untested: Callable[[Cell, Cell], bool] = lambda cell, base: False,
) -> list[Table]:
    """Tables with differences from the baselines, marks, and the number of tests.

    Args:
        tables: one family of tests, corrected together.
        evidence: of their cells.
        ranked: test the models against the best of a column, and mark it.
        all_pairs: test each pair of models of a ranked column.
        untested: (cell, baseline's cell) → whether to omit this test.
    """
    tests = PairedTests(tables, evidence, ranked=ranked, all_pairs=all_pairs, untested=untested)
    return [_compared(table, tests, ranked=ranked) for table in tables]


def _compared(table: Table, tests: PairedTests, *, ranked: bool) -> Table:
    cells = dict(table.cells)
    for cell, base in _baseline_pairs(table):
        cells[_cell_key(cell)] = dataclasses.replace(cell, delta=tests.delta(cell, base))
    groups = [tests.comparable_sets(group) for group in _ranked_groups(table)] if ranked else []
    for group in itertools.chain(*groups):
        for cell, mark in _marks(group, tests):
            shown: RankMark = "" if cell.credited is False else mark
            withheld: RankMark = mark if cell.credited is False else ""
            cells[_cell_key(cell)] = dataclasses.replace(cells[_cell_key(cell)], mark=shown, withheld=withheld)
    return dataclasses.replace(
        table,
        cells=cells,
        comparisons=len(tests),
        all_pairs=tests.all_pairs,
        untestable=tests.untestable(table),
        other_items=tuple(tuple(map(tuple, sets)) for sets in groups if len(sets) > 1),
        p_values=tests.corrected,
        unread=tests.unread(table),
    )


class PairedTests:
    """The tests behind the marks and differences of some tables, Holm-corrected as one family.

    Cells with the same results are one model: they are not tested against each other, and share their other tests.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        evidence: Evidence,
        *,
        ranked: bool,
        all_pairs: bool,
        untested: Callable[[Cell, Cell], bool],
    ) -> None:
        self.all_pairs = ranked and all_pairs
        self._evidence = evidence
        self._first: dict[tuple[object, ...], Cell] = {}  # of the cells with the same results
        self._estimates: dict[PairKey, Estimate] = {}
        self._untestable: dict[PairKey, tuple[Cell, Cell]] = {}
        factors: dict[PairKey, float] = {}
        pairs: dict[PairKey, PairKey] = {}  # of the cells → of the first ones
        baselines = [pair for table in tables for pair in _baseline_pairs(table) if not untested(*pair)]
        groups = (own for table in tables for group in _ranked_groups(table) for own in self.comparable_sets(group))
        for candidates, tested in [
            (2, baselines),
            *(self._ranked_pairs(group, all_pairs) for group in groups if ranked),
        ]:
            for cell, other in tested:
                first, second = sorted(map(self._representative, (cell, other)), key=lambda each: each.row)
                key = pairs[pair_key(cell, other)] = pair_key(first, second)
                if first is not second and key not in self._untestable:
                    self._add(key, first, second)
                    factors[key] = min(candidates / 2, factors.get(key, math.inf))
        raw = p_values([*self._estimates.values()])
        corrected = holm_correction(
            [min(1.0, factors[key] * p_value) for key, p_value in zip(self._estimates, raw.tolist(), strict=True)]
        )
        by_key = dict(zip(self._estimates, corrected, strict=True))
        self.corrected = {pair: by_key[key] for pair, key in pairs.items() if key in by_key}

    def _representative(self, cell: Cell) -> Cell:
        return self._first.setdefault(self._evidence.results_key(cell), cell)

    def _ranked_pairs(self, group: Group, all_pairs: bool) -> tuple[int, list[tuple[Cell, Cell]]]:
        """The number of models of which the top one was chosen, and the pairs to test."""
        if all_pairs:
            return 2, [*itertools.combinations(group, 2)]
        models = {id(self._representative(cell)) for cell in group}
        return len(models), [
            (top, other) for top in self.equals(group[0], group) for other in group if other is not top
        ]

    def equals(self, cell: Cell, group: Group) -> Group:
        """The cells of a group with the results of ``cell``, itself included."""
        return [other for other in group if self._representative(other) is self._representative(cell)]

    def _add(self, key: PairKey, first: Cell, second: Cell) -> None:
        scores, others = self._evidence.scores(first), self._evidence.scores(second)
        if key in self._estimates or scores is None or others is None or not comparable(scores, others):
            return
        noise = self._evidence.training_noise(first)
        if noise.without_spread and (scores.trained or others.trained):
            self._untestable[key] = first, second
        else:
            self._estimates[key] = difference_estimate(scores, others, noise)

    def __len__(self) -> int:
        return len(self._estimates)

    def comparable_sets(self, group: Group) -> list[Group]:
        """A column's cells of one protocol, in sets with scores for the same items; their order stays."""
        sets: list[Group] = []
        for cell in group:
            scores = self._evidence.scores(cell)
            own = next((each for each in sets if comparable(scores, self._evidence.scores(each[0]))), None)
            sets.append([cell]) if own is None else own.append(cell)
        return sets

    def differs(self, first: Cell, second: Cell) -> bool | None:
        """Whether two cells differ significantly; None without a test."""
        p_adjusted = self.corrected.get(pair_key(first, second))
        return None if p_adjusted is None else p_adjusted < ALPHA

    def unread(self, table: Table) -> dict[PairKey, dict[str, float]]:
        """The pairs of a table that differ significantly, also in their shares of answers not read."""
        found: dict[PairKey, dict[str, float]] = {}
        for key, p_adjusted in self.corrected.items():
            cells = [cell for row in sorted(key[2]) if (cell := table.cells.get((row, *key[:2])))]
            if p_adjusted < ALPHA and len(cells) == 2 and (shares := self._evidence.unread(*cells)):
                found[key] = shares
        return found

    def delta(self, cell: Cell, base: Cell) -> BaselineDifference | None:
        """``cell`` minus ``base``, scaled; None without a test."""
        return paired_difference(cell, base, self._evidence, self.corrected)

    def untestable(self, table: Table) -> tuple[tuple[Cell, Cell], ...]:
        """Pairs of a table without a test, since the seeds of every trained model have equal scores."""
        metrics = {(column.benchmark, column.metric) for column in table.columns}
        return tuple(pair for key, pair in self._untestable.items() if key[:2] in metrics)


def paired_difference(
    cell: Cell, base: Cell, evidence: Evidence, corrected: Mapping[PairKey, float]
) -> BaselineDifference | None:
    """``cell`` minus ``base``, scaled; None without a test.

    Args:
        cell: of a model.
        base: of another model, in the same column.
        evidence: of the cells.
        corrected: pair → Holm-corrected p-value, of all tests.
    """
    key = pair_key(cell, base)
    scores, others = evidence.scores(cell), evidence.scores(base)
    if key not in corrected or scores is None or others is None:
        return None
    found, scale = compare(scores, others, evidence.training_noise(cell)), cell.column.scale
    better = cell if (found.value > 0) == bool(cell.column.higher_is_better) else base
    return BaselineDifference(
        baseline=base.row,
        value=found.value * scale,
        ci_low=found.low * scale,
        ci_high=found.high * scale,
        p_value=found.p_value,
        p_adjusted=corrected[key],
        min_detectable_difference=found.min_detectable * scale,
        credited=better.credited,
    )


def _cell_key(cell: Cell) -> _CellKey:
    return cell.row, cell.column.benchmark, cell.column.metric


def _baseline_pairs(table: Table) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with its baseline's, if both have the same protocol."""
    for row in table.rows:
        for column in table.columns if row.baseline else ():
            cell = table.cell(row, column)
            base = table.cells.get((row.baseline or "", column.benchmark, column.metric))
            if base and cell.value is not None and base.value is not None and cell.group == base.group:
                yield cell, base


def _protocol_groups(table: Table, column: Column) -> list[Group]:
    numbers = [cell for cell in table.column_cells(column) if cell.value is not None]
    return [[cell for cell in numbers if cell.group == group] for group in sorted({cell.group for cell in numbers})]


def _ranked_groups(table: Table) -> Iterator[Group]:
    """The cells of each ranked column and protocol, best first."""
    for column in table.columns:
        if column.ranked:
            sign = -1 if column.higher_is_better else 1
            for group in _protocol_groups(table, column):
                # a mean over equal seeds has a rounding error, which must not decide between equal models
                yield sorted(group, key=lambda cell: sign * round(cell.value or 0.0, 9))


def _marks(group: Group, tests: PairedTests) -> list[tuple[Cell, RankMark]]:
    top = group[0]
    equal = tests.equals(top, group)
    differs = {other.row: tests.differs(top, other) for other in group if other not in equal}
    if True not in differs.values():
        return []
    tied = [other for other in group if differs.get(other.row) is False]
    if tied:
        return [(cell, "tied") for cell in (*equal, *tied)]
    return [(cell, "best") for cell in equal] if None not in differs.values() else []
