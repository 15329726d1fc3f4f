"""The differences of a report: paired tests of models, corrected together, and the marks that follow from them.

Tested are the differences from the baseline, and in ranked columns those from the top model. That one was chosen by
its score: any of k models could have been it, so that k (k - 1) / 2 pairs could have been tested instead of k - 1, and
these p-values are multiplied by k / 2. On request every pair is tested. All tests of a table, or of the tables of one
section, are corrected together (Holm); marks and differences use the corrected p-values.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.report.table import ALPHA, Cell, Difference, Pair, Place, RankMark, Table, pair_of
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.measure import comparable
from benchmarks.results.noise import Estimate, Scores, difference_estimate, p_values, training_noise
from benchmarks.results.results import UNREAD
from benchmarks.results.statistics import holm_correction

Group = list[Cell]


@dataclass(frozen=True, kw_only=True)
class PlannedTest:
    """A pair of cells to test; ``candidates`` is the number of models of which the first one was chosen."""

    cell: Cell
    other: Cell
    candidates: int = 2

    @property
    def key(self) -> frozenset[tuple[object, ...]]:
        """The same for pairs of rows with the same results, which share a test."""
        return frozenset({self.cell.key, self.other.key})


def compare_models(
    tables: Sequence[Table],
    items: ItemScores,
    *,
    ranked: bool = True,
    all_pairs: bool = False,
    untested: Callable[[Cell, Cell], bool] = lambda cell, base: False,
) -> list[Table]:
    """The tables with their differences from the baselines, marks, and tests.

    Args:
        tables: one family of tests, corrected together.
        items: of their results.
        ranked: test the models against the best of a column, and mark it.
        all_pairs: test each pair of models of a ranked column.
        untested: (cell, baseline's cell) → whether to omit this test.
    """
    sets = {table: [*_ranked_sets(table)] if ranked else [] for table in tables}
    planned = [PlannedTest(cell=cell, other=base) for table in tables for cell, base in _baseline_pairs(table)]
    planned = [test for test in planned if not untested(test.cell, test.other)]
    for group in itertools.chain.from_iterable(itertools.chain.from_iterable(sets.values())):
        planned += plan_tests(group, all_pairs=all_pairs)
    tested, untestable = run_tests(planned, items)
    comparisons = len({frozenset({each.cell.key, each.other.key}) for each in tested.values()})
    differences = []
    for table in tables:
        marks: dict[Place, RankMark] = {}
        for group in itertools.chain.from_iterable(sets[table]):
            marks |= rank_marks(group, tested)
        pairs = [(cell, tested.get(pair_of(cell, base))) for cell, base in _baseline_pairs(table)]
        deltas = {cell.place: difference.of(cell) for cell, difference in pairs if difference is not None}
        differences.append(
            dataclasses.replace(
                table,
                scores=[
                    dataclasses.replace(cell, rank_mark=marks.get(cell.place, ""), delta=deltas.get(cell.place))
                    for cell in table.scores
                ],
                comparisons=comparisons,
                all_pairs=ranked and all_pairs,
                tested=tested,
                untestable=tuple(pair for pair in untestable if pair[0].column in table.columns),
                other_items=tuple(groups for groups in sets[table] if len(groups) > 1),
            )
        )
    return differences


def plan_tests(group: Group, *, all_pairs: bool) -> list[PlannedTest]:
    """The tests of models with scores for the same items, best first: of all pairs, or of those with the top."""
    if all_pairs:
        return [PlannedTest(cell=cell, other=other) for cell, other in itertools.combinations(group, 2)]
    candidates = len({cell.key for cell in group})
    tops = [cell for cell in group if cell.key == group[0].key]
    return [
        PlannedTest(cell=top, other=other, candidates=candidates) for top in tops for other in group if other is not top
    ]


def run_tests(
    planned: Sequence[PlannedTest], items: ItemScores
) -> tuple[dict[Pair, Difference], list[tuple[Cell, Cell]]]:
    """The differences of planned tests, Holm-corrected together; and the pairs of which one has no interval.

    Cells with equal results are one model: they are not tested against each other, and share their other tests.
    """
    estimates: dict[object, Estimate] = {}
    factors: dict[object, float] = {}
    untestable: dict[object, tuple[Cell, Cell]] = {}
    for test in planned:
        cell, other = test.cell, test.other
        if len(test.key) < 2 or not comparable(cell.evidence, other.evidence):
            continue
        if cell.ci_low is None or other.ci_low is None:
            one, two = sorted((cell, other), key=lambda each: each.row)
            untestable.setdefault(test.key, (one, two))
        elif test.key not in estimates and cell.evidence and other.evidence:
            estimates[test.key] = difference_estimate(cell.evidence, other.evidence, cell.noise)
        factors[test.key] = min(test.candidates / 2, factors.get(test.key, math.inf))
    raw = p_values([*estimates.values()]).tolist()
    weighted = [min(1.0, factors[key] * p_value) for key, p_value in zip(estimates, raw, strict=True)]
    corrected = dict(zip(estimates, holm_correction(weighted), strict=True))
    tested: dict[Pair, Difference] = {}
    shares: dict[tuple[object, ...], Scores | None] = {}
    for test in planned:
        pair = pair_of(test.cell, test.other)
        if test.key in corrected and pair not in tested:
            p_value = corrected[test.key]
            unread = _unread(test.cell, test.other, items, shares) if p_value < ALPHA else {}
            tested[pair] = Difference(cell=test.cell, other=test.other, p_adjusted=p_value, unread=unread)
    return tested, [*untestable.values()]


def rank_marks(group: Group, tested: Mapping[Pair, Difference]) -> dict[Place, RankMark]:
    """The marks of models with scores for the same items, best first."""
    top = group[0]
    equal = [cell for cell in group if cell.key == top.key]
    differences = {cell: tested.get(pair_of(top, cell)) for cell in group if cell.key != top.key}
    if top.above_chance is False or not any(
        difference and difference.significant for difference in differences.values()
    ):
        return {}
    tied = [cell for cell, difference in differences.items() if difference and not difference.significant]
    mark: RankMark = "tied" if tied else "best" if all(differences.values()) else ""
    return {cell.place: mark for cell in [*equal, *tied]}


def _baseline_pairs(table: Table) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with its baseline's, if both have the same protocol."""
    places = {row.name: place for place, row in enumerate(table.rows)}
    for place, row in enumerate(table.rows):
        for column in table.columns if row.baseline in places else ():
            cell, base = table.cells(column)[place], table.cells(column)[places[row.baseline or ""]]
            if cell.value is not None and base.value is not None and cell.group == base.group:
                yield cell, base


def _ranked_sets(table: Table) -> Iterator[list[Group]]:
    """For each ranked column and protocol the sets of cells with scores for the same items, best first."""
    for column in table.columns:
        sign = -1 if column.higher_is_better else 1
        for group in _protocols(table.cells(column)) if column.ranked else ():
            sets: list[Group] = []
            for cell in sorted(group, key=lambda cell: sign * cell.compared_value):
                own = next((each for each in sets if comparable(cell.evidence, each[0].evidence)), None)
                sets.append([cell]) if own is None else own.append(cell)
            yield sets


def _protocols(cells: Iterable[Cell]) -> list[Group]:
    """The cells with a number, by protocol."""
    numbers = [cell for cell in cells if cell.value is not None]
    return [[cell for cell in numbers if cell.group == group] for group in sorted({cell.group for cell in numbers})]


def _unread(
    cell: Cell, other: Cell, items: ItemScores, known: dict[tuple[object, ...], Scores | None]
) -> dict[str, float]:
    """Model → share of answers not read, in per cent, if those of two models differ (uncorrected test at 5 %)."""
    cells = sorted((cell, other), key=lambda each: each.row)
    for cell in cells:
        if cell.key not in known:
            known[cell.key] = items.of_model(cell.results, UNREAD, single_training=cell.trained, category=cell.category)
    one, two = (known[cell.key] for cell in cells)
    if one is None or two is None or one.value == two.value or not comparable(one, two):
        return {}
    p_value = p_values([difference_estimate(one, two, training_noise([one, two]))])[0]
    return {cells[0].row: 100 * one.value, cells[1].row: 100 * two.value} if p_value < ALPHA else {}
