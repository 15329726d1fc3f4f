"""Random tables of results, of few items, constant scores, missing seeds and uneven spreads: no number is surer than
its parts, and each printed sentence is true of the numbers.
"""

from __future__ import annotations

import math
import re

import pytest
from generators import explore, sizes
from hypothesis import strategies as st
from random_study import World
from report_reader import Reader, build_report_of, check_comparison

from benchmarks.report.report import Report
from benchmarks.results.results import Result


def test_rounding_does_not_decide_whether_a_model_is_near_an_end_of_the_scale() -> None:
    """Its image variance is a quarter of the largest, to 1e-10."""
    world = World(1259544, odd=True)
    Reader(world, build_report_of(world, pairs="baseline")).check(formats=False)


@sizes
def test_no_number_is_surer_than_its_parts(examples: int) -> None:
    def check(data: st.DataObject) -> None:
        world = World(data.draw(st.integers(0, 2**30), label="number of the study"), odd=True)
        what = data.draw(st.sampled_from(("sentences", "all pairs", "compare")), label="what")
        report = build_report_of(world, pairs="all" if what == "all pairs" else "baseline")
        check_intervals(report)
        check_certainty(report)
        if what == "sentences":
            Reader(world, report).check(formats=False)
        if what == "compare":
            check_comparison(world)

    explore(check, examples)


def check_intervals(report: Report) -> None:
    """The interval in a result file is that of the cell that shows this result."""
    for cell in report.table.scores:
        (result, *others) = cell.results or (None,)
        if isinstance(result, Result) and not others and not cell.trained and cell.value is not None:
            metric = result.metrics[cell.metric]
            stored = [end and end * metric.scale for end in (metric.ci_low, metric.ci_high)]
            assert stored == pytest.approx([cell.ci_low, cell.ci_high], nan_ok=True), (cell.row, cell.column.title)
        if cell.ci_low is not None and cell.ci_high is not None and cell.value is not None:
            assert cell.ci_low - 1e-9 <= cell.value <= cell.ci_high + 1e-9
            ends = (
                (0.0, 100.0) if cell.column.label in {"accuracy", "error", "yes", "points"} else (-math.inf, math.inf)
            )
            assert ends[0] - 1e-9 <= cell.ci_low < cell.ci_high <= ends[1] + 1e-9


def check_certainty(report: Report) -> None:
    """Without an interval a score is not tested, has no mark, and is part of nothing that has an interval."""
    table = report.table
    unsure = {cell for cell in table.scores if cell.value is not None and cell.ci_low is None}
    for cell in unsure:
        assert cell.no_interval
        assert (cell.mark, cell.withheld, cell.delta, cell.above_chance, cell.credited) == ("", "", None, None, None)
    for each in table.differences:
        assert not unsure & {each.cell, each.other}
        assert math.isnan(each.ci_low) or each.significant <= (not each.ci_low <= 0 <= each.ci_high)
    for overall in report.overall:
        for row, average in overall.averages.items():
            parts = [cell for cell in table.scores if cell.row == row and cell.column.benchmark in overall.averaged]
            if unsure & {*parts}:
                assert math.isnan(average.low)
                assert average.no_interval or overall.without_interval or overall.no_seed
                assert not any(row in pair for pair in overall.p_values)
            elif not math.isnan(average.low):
                assert average.low - 1e-9 <= average.value <= average.high + 1e-9
                # no surer than a part alone would be, as if all others were known
                count = len(overall.averaged)
                widest = max((c.ci_high or 0.0) - (c.ci_low or 0.0) for c in parts if c.column.label == "accuracy")
                if not table.seeds:
                    assert average.high - average.low > 0.5 * widest / count
        if any(cell.column.benchmark in overall.ranked for cell in unsure):
            assert all(math.isnan(rank.low) for rank in overall.ranks.values())
    check_sentences(report, {(cell.row, cell.column.title) for cell in unsure})


def check_sentences(report: Report, unsure: set[tuple[str, str]]) -> None:
    """No sentence calls a number significant, better or worse that has no interval."""
    for row, title in unsure:
        for sentence in [report.answer, *report.sentences]:
            for part in re.split(r"; |(?<=\.) ", sentence):
                about = re.search(rf"\b{row}\b", part) and title in part
                assert not (about and re.search(r"significant|beats|loses", part)), (sentence, row, title)
