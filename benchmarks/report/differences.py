"""The differences of a report: paired tests of models, corrected together, and the marks that follow from them.

Tested are the differences from the baseline, and in ranked columns those from the top model. That one was chosen by
its score: any of k models could have been it, so that k (k - 1) / 2 pairs could have been tested instead of k - 1, and
these p-values are multiplied by k / 2. On request every pair is tested. All tests of a table, or of the tables of one
section, are corrected together (Holm); marks and differences use the corrected p-values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from benchmarks.report.table import ALPHA, Cell, Difference, RankMark, Table
from benchmarks.results.item_scores import ItemScores, comparable
from benchmarks.results.noise import Estimate, Scores, difference_estimate, p_values, training_noise
from benchmarks.results.results import UNREAD
from benchmarks.results.statistics import holm_correction

Group = list[Cell]
Pair = frozenset[Cell]


def compare_models(
    tables: Sequence[Table],
    items: ItemScores,
    *,
    ranked: bool = True,
    all_pairs: bool = False,
    untested: Callable[[Cell, Cell], bool] = lambda cell, base: False,
) -> None:
    """Add to tables their differences from the baselines, marks, and tests. Cells with equal results are one model:
    they are not tested against each other, and share their other tests.

    Args:
        tables: one family of tests, corrected together.
        items: of their results.
        ranked: test the models against the best of a column, and mark it.
        all_pairs: test each pair of models of a ranked column.
        untested: (cell, baseline's cell) → whether to omit this test.
    """
    first: dict[tuple[object, ...], Cell] = {}  # of the cells with the same results
    for table in tables:
        for cell in itertools.chain.from_iterable(column.cells for column in table.columns):
            first.setdefault(cell.key, cell)
    planned = [pair for table in tables for pair in _baseline_pairs(table)]
    groups = {table: [*_ranked_sets(table)] if ranked else [] for table in tables}
    families = [(2, [pair for pair in planned if not untested(*pair)])]
    for group in itertools.chain.from_iterable(itertools.chain.from_iterable(groups.values())):
        if all_pairs:
            families.append((2, [*itertools.combinations(group, 2)]))
        else:
            tops = [cell for cell in group if cell.key == group[0].key]
            pairs = [(top, other) for top in tops for other in group if other is not top]
            families.append((len({cell.key for cell in group}), pairs))
    estimates: dict[Pair, Estimate] = {}
    factors: dict[Pair, float] = {}
    untestable: dict[Pair, tuple[Cell, Cell]] = {}
    tests: dict[Pair, tuple[Pair, Cell, Cell]] = {}  # of the cells → of the first ones
    for num_candidates, pairs in families:
        for cell, other in pairs:
            one, two = sorted((first[cell.key], first[other.key]), key=lambda each: each.row)
            test = frozenset({one, two})
            tests.setdefault(frozenset({cell, other}), (test, cell, other))
            if one is two or test in untestable:
                continue
            if test not in estimates and one.evidence and two.evidence and comparable(one.evidence, two.evidence):
                if one.ci_low is None or two.ci_low is None:
                    untestable[test] = one, two
                else:
                    estimates[test] = difference_estimate(one.evidence, two.evidence, one.noise)
            factors[test] = min(num_candidates / 2, factors.get(test, math.inf))
    raw = p_values([*estimates.values()]).tolist()
    corrected = holm_correction(
        [min(1.0, factors[test] * p_value) for test, p_value in zip(estimates, raw, strict=True)]
    )
    by_test = dict(zip(estimates, corrected, strict=True))
    tested: dict[Pair, Difference] = {}
    shares: dict[tuple[object, ...], Scores | None] = {}
    for pair, (test, cell, other) in tests.items():
        if test in by_test:
            unread = _unread(cell, other, items, shares) if by_test[test] < ALPHA else {}
            tested[pair] = Difference(cell=cell, other=other, p_adjusted=by_test[test], unread=unread)
    for table in tables:
        for group in itertools.chain.from_iterable(groups[table]):
            _mark(group, tested)
        table.comparisons = len(estimates)
        table.all_pairs = ranked and all_pairs
        table.tested = tested
        for cell, base in _baseline_pairs(table):
            if found := table.difference(cell, base):
                cell.column.deltas[cell] = found
        table.untestable = tuple(pair for pair in untestable.values() if pair[0].column in table.columns)
        table.other_items = tuple(sets for sets in groups[table] if len(sets) > 1)


def _baseline_pairs(table: Table) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with its baseline's, if both have the same protocol."""
    places = {row.name: place for place, row in enumerate(table.rows)}
    for place, row in enumerate(table.rows):
        for column in table.columns if row.baseline in places else ():
            cell, base = column.cells[place], column.cells[places[row.baseline or ""]]
            if cell.value is not None and base.value is not None and cell.group == base.group:
                yield cell, base


def _ranked_sets(table: Table) -> Iterator[list[Group]]:
    """For each ranked column and protocol the sets of cells with scores for the same items, best first."""
    for column in table.columns:
        sign = -1 if column.higher_is_better else 1
        for group in column.groups() if column.ranked else ():
            sets: list[Group] = []
            # a mean over equal seeds has a rounding error, which must not decide between equal models
            for cell in sorted(group, key=lambda cell: sign * round(cell.value or 0.0, 9)):
                own = next((each for each in sets if comparable(cell.evidence, each[0].evidence)), None)
                sets.append([cell]) if own is None else own.append(cell)
            yield sets


def _mark(group: Group, tested: dict[Pair, Difference]) -> None:
    top = group[0]
    equal = [cell for cell in group if cell.key == top.key]
    found = {cell: tested.get(frozenset({top, cell})) for cell in group if cell.key != top.key}
    if top.above_chance is False or not any(difference and difference.significant for difference in found.values()):
        return
    tied = [cell for cell, difference in found.items() if difference and not difference.significant]
    mark: RankMark = "tied" if tied else "best" if all(found.values()) else ""
    top.column.marks.update(dict.fromkeys([*equal, *tied], mark))


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
