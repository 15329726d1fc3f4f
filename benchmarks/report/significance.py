"""Which cells differ: the tests behind a table's marks and its differences to the baselines.

Every pair of models that a column may rank is tested, since the model at the top was chosen by its score; all tests of
a table, or of the tables of one section, are corrected together. Marks and differences only read them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from benchmarks.report.load_results import ReportSource
from benchmarks.report.table import ALPHA, BaselineDifference, Cell, RankMark, Table
from benchmarks.results.item_scores import ItemScores, comparable
from benchmarks.results.noise import Estimate, Scores, TrainingNoise, difference_estimate, p_values, training_noise
from benchmarks.results.results import Result
from benchmarks.results.statistics import compare, holm_correction

Group = list[Cell]
_Key = tuple[str, str, frozenset[str]]


class Evidence:
    """What the cells of a source rest on: their items, and the training noise of each column.

    Args:
        source: what was read.
        place: of a cell → its benchmark, metric and the category of its items (None for all).
        items: tables that were read already.
    """

    def __init__(
        self,
        source: ReportSource,
        place: Callable[[Cell], tuple[str, str, str | None]] | None = None,
        items: ItemScores | None = None,
    ) -> None:
        self._source = source
        self._place = place or (lambda cell: (cell.column.benchmark, cell.column.metric, None))
        self._items = items or ItemScores()
        self._rows = {row.name: row for row in source.rows}
        self._scores: dict[tuple[object, ...], Scores | None] = {}
        self._noise: dict[tuple[object, ...], TrainingNoise] = {}

    def scores(self, cell: Cell) -> Scores | None:
        """The metric of a cell's model with each image's influence; None where it cannot be computed from items."""
        if cell.value is None:
            return None
        benchmark, metric, category = self._place(cell)
        names = cell.members or (cell.row,)
        key = (benchmark, metric, category, names)
        if key not in self._scores:
            results = [self._source.outcomes[name, benchmark] for name in names]
            found = [result for result in results if isinstance(result, Result)]
            single = bool(cell.members) and any(self._is_trained(name, found[0]) for name in names)
            self._scores[key] = self._items.of_model(found, metric, single_training=single, category=category)
        return self._scores[key]

    def _is_trained(self, name: str, result: Result) -> bool:
        """Whether a result is of a model that the study trained for a row."""
        path = str(result.model.get("path", ""))
        return any(path.endswith(made) for made in self._rows[name].artifacts.values())

    def learn_noise(self, cells: Sequence[Cell]) -> None:
        """Pool the training noise of the cells of one column that were measured alike."""
        scores = [found for cell in cells if cell.members and (found := self.scores(cell)) is not None]
        noise = training_noise(scores)
        for cell in cells:
            self._noise[cell.row, cell.column.benchmark, cell.column.metric] = noise

    def training_noise(self, cell: Cell) -> TrainingNoise:
        """The training noise of a cell's column."""
        return self._noise.get((cell.row, cell.column.benchmark, cell.column.metric), TrainingNoise())


def pool_training_noise(table: Table, evidence: Evidence) -> None:
    """Let ``evidence`` know the training noise of every column of a table over seeds."""
    for column in table.columns:
        numbers = [cell for cell in table.column_cells(column) if cell.value is not None]
        for group in {cell.group for cell in numbers}:
            evidence.learn_noise([cell for cell in numbers if cell.group == group])


def add_significance(
    tables: Sequence[Table],
    evidence: Evidence,
    *,
    ranked: bool = True,
    untested: Callable[[Cell, Cell], bool] = lambda cell, base: False,
) -> list[Table]:
    """Tables with their differences to the baselines, their marks, and the number of tests behind them.

    Args:
        tables: whose tests are corrected together.
        evidence: of their cells.
        ranked: whether each pair of models is tested and the best are marked.
        untested: pairs of a cell and its baseline's that are not tested.
    """
    tests = PairedTests(tables, evidence, ranked=ranked, untested=untested)
    return [_compared(table, tests, ranked=ranked) for table in tables]


def _compared(table: Table, tests: PairedTests, *, ranked: bool) -> Table:
    cells = dict(table.cells)
    for cell, base in _against_baseline(table):
        cells[_place(cell)] = dataclasses.replace(cell, delta=tests.delta(cell, base))
    for group in _ranked_groups(table) if ranked else ():
        for cell, mark in _marks(group, tests):
            cells[_place(cell)] = dataclasses.replace(cells[_place(cell)], mark=mark)
    return dataclasses.replace(table, cells=cells, comparisons=len(tests), refused=tests.refused(table))


class PairedTests:
    """Every test that the marks and differences of some tables need, Holm-corrected as one family."""

    def __init__(
        self, tables: Sequence[Table], evidence: Evidence, *, ranked: bool, untested: Callable[[Cell, Cell], bool]
    ) -> None:
        self._evidence = evidence
        pairs = [pair for table in tables for pair in _against_baseline(table) if not untested(*pair)]
        if ranked:
            groups = (group for table in tables for group in _ranked_groups(table))
            pairs += [pair for group in groups for pair in itertools.combinations(group, 2)]
        self._estimates: dict[_Key, Estimate] = {}
        self._refused: dict[_Key, tuple[Cell, Cell]] = {}
        for first, second in pairs:
            key = _key(first, second)
            if key not in self._estimates and key not in self._refused:
                self._add(key, *sorted((first, second), key=lambda cell: cell.row))
        corrected = holm_correction(p_values([*self._estimates.values()]).tolist())
        self._p_adjusted = dict(zip(self._estimates, corrected, strict=True))

    def _add(self, key: _Key, first: Cell, second: Cell) -> None:
        mine, other = self._evidence.scores(first), self._evidence.scores(second)
        if mine is None or other is None or not comparable(mine, other):
            return
        noise = self._evidence.training_noise(first)
        if noise.without_spread and (mine.trained or other.trained):
            self._refused[key] = first, second
        else:
            self._estimates[key] = difference_estimate(mine, other, noise)

    def __len__(self) -> int:
        return len(self._estimates)

    def p_adjusted(self, first: Cell, second: Cell) -> float:
        """Corrected p-value of "no difference"; 1 where no test is possible."""
        return self._p_adjusted.get(_key(first, second), 1.0)

    def delta(self, cell: Cell, base: Cell) -> BaselineDifference | None:
        """``cell`` minus ``base``, scaled as shown; None where no test is possible."""
        key = _key(cell, base)
        mine, other = self._evidence.scores(cell), self._evidence.scores(base)
        if key not in self._estimates or mine is None or other is None:
            return None
        noise = self._evidence.training_noise(cell)
        found, scale = compare(mine, other, noise), cell.column.scale
        return BaselineDifference(
            baseline=base.row,
            value=found.value * scale,
            ci_low=found.low * scale,
            ci_high=found.high * scale,
            p_value=found.p_value,
            p_adjusted=self._p_adjusted[key],
            min_detectable_difference=found.min_detectable * scale,
        )

    def refused(self, table: Table) -> tuple[tuple[Cell, Cell], ...]:
        """Pairs of a table that no test can tell anything of, since the seeds of no model differ."""
        shown = {(column.benchmark, column.metric) for column in table.columns}
        return tuple(pair for key, pair in self._refused.items() if key[:2] in shown)


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.row, cell.column.benchmark, cell.column.metric


def _key(first: Cell, second: Cell) -> _Key:
    return first.column.benchmark, first.column.metric, frozenset({first.row, second.row})


def _against_baseline(table: Table) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with its baseline's, where both were measured alike."""
    for row in table.rows:
        for column in table.columns if row.baseline else ():
            cell = table.cell(row, column)
            base = table.cells.get((row.baseline or "", column.benchmark, column.metric))
            if base and cell.value is not None and base.value is not None and cell.group == base.group:
                yield cell, base


def _ranked_groups(table: Table) -> Iterator[Group]:
    """Cells that may be ranked together, best first: of one column, measured alike."""
    for column in table.columns:
        if column.higher_is_better is None:
            continue
        sign = 1 if column.higher_is_better else -1
        numbers = [cell for cell in table.column_cells(column) if cell.value is not None]
        for group in sorted({cell.group for cell in numbers}):
            yield sorted(
                (cell for cell in numbers if cell.group == group), key=lambda cell: -sign * (cell.value or 0.0)
            )


def _marks(group: Group, tests: PairedTests) -> list[tuple[Cell, RankMark]]:
    top, *others = group
    near = [other for other in others if tests.p_adjusted(top, other) >= ALPHA]
    if len(near) == len(others):
        return []  # also where the top is alone
    return [(cell, "tied") for cell in (top, *near)] if near else [(top, "best")]
