"""The headline and one sentence for each model, generated from the tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from benchmarks.report.notes import marked_apart, title_with_baselines, unread_differences
from benchmarks.report.table import Cell, Difference, Table
from benchmarks.results.formatting import decimals_needed, format_number, join_or_count, join_with_and
from benchmarks.results.measure import comparable

_MAX_SIZES = 2


def verdict(table: Table) -> str:
    """``clips against clip: 3 won, 5 tied, 0 lost.``, of the model that the headline is about; empty without tests.

    Without a baseline, against the best of the other models: the metric is lost to a model that is significantly
    better, and won if the mark is ``best``.
    """
    if compared := [each for row in table.rows if (each := _Tests(table, row.name)).cells]:
        first = _leading([each for each in compared if each.better] or compared)
        who = f"{first.row} against {first.baseline}"
        won, tied, lost, uncredited = map(len, (first.better, first.equal, first.worse, first.uncredited))
    else:
        counts = {row.name: _rank_counts(table, place) for place, row in enumerate(table.rows)}
        tested = [row for row, of_row in counts.items() if of_row]
        if not tested:
            return ""
        row = max(tested, key=lambda row: (counts[row]["won"] - counts[row]["lost"], counts[row]["won"]))
        who = f"{row} against the best of the other models"
        won, tied, lost, uncredited = (counts[row][kind] for kind in ("won", "tied", "lost", "not credited"))
    credits = f", {uncredited} not credited to the images" if uncredited else ""
    return f"{who}: {won} won, {tied} tied, {lost} lost{credits}."


def _leading(compared: Sequence[_Tests]) -> _Tests:
    """The model with the largest balance of gains and losses, then with the most gains."""
    return max(compared, key=lambda each: (len(each.better) - len(each.worse), len(each.better)))


def _rank_counts(table: Table, place: int) -> Counter[str]:
    """What the tests against the top of each ranked metric say of a model that may be the top itself."""
    counts = Counter[str]()
    for column in table.columns:
        cells = table.cells(column)
        cell, better, worse, equal = cells[place], list[Cell](), list[Cell](), list[Cell]()
        for other in cells if column.ranked else ():
            differs = table.differs(cell, other)
            if differs is False:
                equal.append(other)
            elif differs:
                is_better = (cell.value or 0.0) > (other.value or 0.0)
                (better if is_better == column.higher_is_better else worse).append(other)
        if any(other.credited is not False for other in worse):
            counts["lost"] += 1
        elif worse or cell.withheld == "best":
            counts["not credited"] += 1
        elif equal:
            counts["tied"] += 1
        elif cell.mark == "best":
            counts["won"] += 1
    return counts


def headline(table: Table) -> str:
    """The sentence on the model with most gains over its baseline, and on metrics without a model above chance."""
    withheld = [f"{cell.row} on {cell.column.title}" for cell in table.scores if cell.withheld]
    not_credited = (
        "Not credited, because they are not significantly better than those of the same model without the image: "
        f"{join_or_count(withheld, 'scores')}."
        if withheld
        else ""
    )
    return " ".join(filter(None, (_comparison(table), not_credited, _none_above_chance(table), _none_credited(table))))


def _comparison(table: Table) -> str:
    tested = [_Tests(table, row.name) for row in table.rows]
    compared = [each for each in tested if each.cells]
    if compared and (len(compared) == 1 or len(table.rows) == 2):  # two models without a baseline are each other's
        return _leading(compared).sentence()
    if better := [each for each in compared if each.better]:
        return _leading(better).sentence()
    if compared:
        return _none_better(tested)
    if not any(cell.value is not None for cell in table.scores):
        return "There is no number yet; the table states the reasons."
    if len(table.rows) == 1:
        return "One model: there is no other to compare it with."
    if not any(each.cell.column.ranked and each.cell.column in table.columns for each in table.differences):
        return "No two models could be tested against each other."
    best = [cell for cell in table.scores if cell.mark == "best"]
    if not best:
        # the sentence on scores that are not credited names a withheld mark
        if any(cell.withheld == "best" for cell in table.scores):
            return ""
        chance = " and above chance" if any(cell.above_chance is False for cell in table.scores) else ""
        return f"No model is significantly better than all others{chance} on any metric."
    by_row: dict[str, list[str]] = {}
    for cell in best:
        by_row.setdefault(cell.row, []).append(cell.column.title)
    where = join_with_and([f"{row} on {join_with_and(titles)}" for row, titles in by_row.items()])
    apart = marked_apart(table)
    others = "others" + (f" with the same {join_with_and(apart)}" if apart else "")
    unread = unread_differences(table, best, {row.name for row in table.rows})
    shares = f"; different shares of answers were not read: {unread}" if unread else ""
    return f"Significantly better than all {others} by paired tests: {where}{shares}."


def _none_above_chance(table: Table) -> str:
    """A sentence on the metrics on which no model is significantly above chance; empty if there are none.

    It omits columns with a number that is not known to be above chance or not: one without an interval, or of another
    protocol than that of the chance level.
    """
    above = {
        column: {cell.above_chance for cell in table.cells(column) if cell.value is not None}
        for column in table.columns
        if column.chance_levels and column.ranked
    }
    none_above = [title_with_baselines(column) for column, values in above.items() if values == {False}]
    if not none_above:
        return ""
    if len(none_above) == len(above) > 1:
        return "No model is significantly above chance on any metric with a known chance level."
    return f"No model is significantly above chance on {join_or_count(none_above, 'metrics')}."


def _none_credited(table: Table) -> str:
    """A sentence on the metrics on which no score is credited to the images; empty if there are none."""
    credited = {
        column: {cell.credited for cell in table.cells(column) if cell.value is not None} for column in table.columns
    }
    none = [column.title for column, values in credited.items() if values == {False}]
    return f"No score is credited to the images on {join_or_count(none, 'metrics')}." if none else ""


def _none_better(models: Sequence[_Tests]) -> str:
    cells = [cell for each in models for cell in each.cells]
    uncredited = [cell for each in models for cell in each.uncredited]
    untested = [cell for each in models for cell in each.untested]
    worse = [each.row for each in models if each.worse]
    baselines = {each.baseline for each in models if each.cells}
    name = baselines.pop() if len(baselines) == 1 else "its baseline"
    verb = "beats" if worse or uncredited else "differs significantly from"
    parts = [f"No model {verb} {name} in any of {len(cells)} tests"]
    if worse:
        parts.append(f"{join_or_count(worse, 'models')} {'loses' if len(worse) == 1 else 'lose'} to it in some")
    if uncredited:
        parts.append(f"not credited to the images: the difference of {_names(uncredited)}")
    if untested:
        parts.append(f"not tested: {_names(untested)}")
    return "; ".join(parts) + "."


def _names(cells: Sequence[Cell]) -> str:
    return join_or_count([f"{cell.row} on {cell.column.title}" for cell in cells], "numbers")


def row_sentences(table: Table) -> list[str]:
    """One sentence for each model with a baseline and a number of both, in the order of the table."""
    tests = [_Tests(table, row.name) for row in table.rows if row.baseline]
    return [each.sentence() for each in tests if each.cells or each.untested]


class _Tests:
    """The tests of a model against its baseline, or the other one of two, in ranked columns: its cells by outcome."""

    def __init__(self, table: Table, row: str) -> None:
        self.table, self.row = table, row
        names = [each.name for each in table.rows]
        self.baseline = table.rows[names.index(row)].baseline or ""
        if len(names) == 2 and not table.baselines:
            self.baseline = names[1 - names.index(row)]
        self.deltas, self.untested = dict[Cell, Difference](), list[Cell]()  # untested: both have a number
        self.reasons: dict[str, None] = {}  # why these were not tested
        for column in table.columns if self.baseline in names else ():
            cell, base = (table.cells(column)[names.index(name)] for name in (row, self.baseline))
            if difference := table.difference(cell, base) if column.ranked else None:
                self.deltas[cell] = difference
            elif column.ranked and None not in (cell.value, base.value):
                self.untested.append(cell)
                self.reasons[_why_untested(cell, base)] = None
        self.cells = [*self.deltas]
        kinds = ("better", "worse", "not significant", "not credited")
        self.better, self.worse, self.equal, self.uncredited = (
            [cell for cell, delta in self.deltas.items() if delta.verdict == kind] for kind in kinds
        )

    def sentence(self) -> str:
        """``clips beats clip by 6.1 points [4.9, 7.3] on T→I R@1; no significant difference on POPE.``"""
        row, baseline = self.row, self.baseline
        if not self.cells:
            why = join_with_and([*self.reasons])
            return f"{row} was not tested against {baseline} on {_titles(self.untested)}, because {why}."
        not_tested = f"; not tested on {_titles(self.untested)}" if self.untested else ""
        if not self.better and not self.worse and not self.uncredited:
            where = f"any of {len(self.cells)} metrics" if len(self.cells) > 1 else _titles(self.cells)
            cell, first = next(iter(self.deltas.items()))
            on = f" on {cell.column.title}" if len(self.cells) > 1 else ""
            size = f" ({first.number} [{first.interval}]{on})"
            return f"{row} and {baseline} do not differ significantly on {where}{size}{not_tested}."
        parts = []
        if self.better:
            parts.append(f"{row} beats {baseline} {self._sizes(self.better)}")
        if self.worse:
            parts.append(f"{'it loses' if self.better else f'{row} loses to {baseline}'} {self._sizes(self.worse)}")
        if self.equal:
            parts.append(f"no significant difference on {_titles(self.equal)}")
        if self.uncredited:
            parts.append(f"not credited to the images: the difference on {_titles(self.uncredited)}")
        if unread := unread_differences(self.table, [*self.better, *self.worse], {baseline}):
            parts.append(f"different shares of answers were not read: {unread}")
        subject = "" if self.better or self.worse else f"{row} and {baseline}: "
        return f"{subject}{'; '.join(parts)}{not_tested}."

    def _sizes(self, cells: Sequence[Cell]) -> str:
        """The differences on the first metrics, each of another benchmark, and the names of the others."""
        first: dict[str, Cell] = {}
        for cell in cells:
            if len(first) < _MAX_SIZES:
                first.setdefault(cell.column.benchmark, cell)
        others = [cell for cell in cells if cell not in first.values()]
        sizes = join_with_and([_size(self.deltas[cell]) for cell in first.values()])
        return sizes + (f", and also on {_titles(others)}" if others else "")


def _why_untested(cell: Cell, base: Cell) -> str:
    if cell.group != base.group:
        return "the settings differ"
    if cell.ci_low is None or base.ci_low is None:
        return "a number has no interval"
    if not comparable(cell.evidence, base.evidence):
        return "the items differ"
    return "the model and its numbers are the same"


def _size(delta: Difference) -> str:
    column, sign = delta.cell.column, 1 if delta.value > 0 else -1
    low, high = sorted((sign * delta.ci_low, sign * delta.ci_high))
    places = max(decimals_needed(number, column.places) for number in (delta.value, low, high))  # no end is shown as 0
    ends = [format_number(end, places) for end in (low, high)]
    span = f" [{', '.join(ends)}]" if math.isfinite(low) else ""
    return f"by {column.small_text(abs(delta.value))} points{span} on {column.title}"


def _titles(cells: Sequence[Cell]) -> str:
    benchmarks = join_or_count([*dict.fromkeys(cell.column.benchmark for cell in cells)], "benchmarks")
    return join_or_count([cell.column.title for cell in cells], f"metrics of {benchmarks}")
