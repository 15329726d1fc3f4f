"""The steps from lines to lines that make a report, each on five lines of one column."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.report.differences import plan_tests, rank_marks, run_tests
from benchmarks.report.scores import model_spreads, with_gains, with_noise, with_spreads
from benchmarks.report.table import Cell, Column, pair_of
from benchmarks.results.item_scores import ItemScores
from benchmarks.results.noise import Scores, training_noise

COLUMN = Column(benchmark="gqa", metric="m", label="accuracy", scale=100.0, higher_is_better=True)
IMAGES = np.array([f"{place}" for place in range(40)], dtype=object)


class NoItems(ItemScores):
    """The lines have no files."""

    def of_model(self, *_: object, **__: object) -> None:
        return None


def line(name: str, *values: float, shows: str = "") -> Cell:
    """A model with a number for each seed; ``shows`` is the model whose results it has, if they are another's."""
    right = np.stack([np.arange(40) < round(40 * value) for value in values]).astype(float)
    evidence = Scores(
        values=np.array(values), influence=(right - right.mean(axis=1, keepdims=True)) / 40, enters=np.ones(40, bool),
        items=IMAGES, images=IMAGES, trained=len(values) > 1, largest=1.0,
    )  # fmt: skip
    result: Any = SimpleNamespace(
        path=shows or name, model={"hash": shows or name}, metrics={"m_over_blank": SimpleNamespace(condition="blank")}
    )
    seeds = dict[int | None, float](enumerate(100 * evidence.values)) if len(values) > 1 else {}
    value = 100 * evidence.value
    return Cell(
        row=name, column=COLUMN, value=value, ci_low=value - 1, ci_high=value + 1, by_seed=seeds, results=(result,),
        evidence=evidence,
    )  # fmt: skip


@pytest.fixture
def lines() -> list[Cell]:
    """Five models, best first; ``copy`` shows the results of ``top``."""
    top, near = line("top", 0.9, 0.95), line("near", 0.9, 0.925)
    return [top, line("copy", 0.9, 0.95, shows="top"), near, line("low", 0.4, 0.45), line("far", 0.1, 0.2)]


def test_the_noise_of_a_column_is_pooled_over_distinct_results(lines: list[Cell]) -> None:
    found = with_noise(lines)
    distinct = [cell.evidence for cell in lines if cell.row != "copy" and cell.evidence is not None]
    assert {cell.noise for cell in found} == {training_noise(distinct)}
    assert [dataclasses.replace(cell, noise=lines[0].noise).score for cell in found] == [cell.score for cell in lines]


def test_the_spread_of_a_model_is_relative_to_the_pool(lines: list[Cell]) -> None:
    noisy = with_noise(lines)
    spreads = model_spreads([noisy])
    assert spreads.keys() == {("top",), ("near",), ("low",), ("far",)}
    assert spreads["far",] > spreads["near",]
    found = with_spreads(noisy, spreads)
    assert [cell.evidence.spread for cell in found if cell.evidence][:2] == [spreads["top",]] * 2


def test_gains_are_lines_at_the_place_of_their_score(lines: list[Cell]) -> None:
    column = dataclasses.replace(COLUMN, metric="m_over_blank")
    gains = [
        dataclasses.replace(cell, column=column, value=cell.value if cell.row == "low" else None) for cell in lines
    ]
    found = with_gains(lines, [gains])
    assert [[*cell.all_gains] for cell in found] == [[], [], [], ["blank"], []]
    assert found[3].all_gains["blank"] is gains[3]


def test_the_top_is_tested_against_each_other_model(lines: list[Cell]) -> None:
    planned = plan_tests(lines, all_pairs=False)
    assert [(test.cell.row, test.other.row, test.candidates) for test in planned[:4]] == [
        ("top", other, 4) for other in ("copy", "near", "low", "far")
    ]
    assert len(plan_tests(lines, all_pairs=True)) == 10


def test_models_with_equal_results_are_one_model(lines: list[Cell]) -> None:
    tested, untestable = run_tests(plan_tests(with_noise(lines), all_pairs=False), NoItems())
    assert not untestable
    assert pair_of(lines[0], lines[1]) not in tested
    assert len(tested) == 6
    assert tested[pair_of(lines[0], lines[4])].p_adjusted == tested[pair_of(lines[1], lines[4])].p_adjusted


def test_a_line_without_an_interval_is_not_tested(lines: list[Cell]) -> None:
    lines[3] = dataclasses.replace(lines[3], ci_low=None, ci_high=None)
    tested, untestable = run_tests(plan_tests(with_noise(lines), all_pairs=False), NoItems())
    assert [{one.row, two.row} for one, two in untestable] == [{"top", "low"}]
    assert not any("low" in {row for row, _ in pair} for pair in tested)


def test_the_marks_follow_from_the_tests(lines: list[Cell]) -> None:
    noisy = with_noise([lines[0], *lines[2:]])
    tested, _ = run_tests(plan_tests(noisy, all_pairs=False), NoItems())
    close = {cell.row for cell in noisy[1:] if not tested[pair_of(noisy[0], cell)].significant}
    assert "near" in close != {"near", "low", "far"}
    assert rank_marks(noisy, tested) == {cell.place: "tied" for cell in noisy if cell.row in {"top", *close}}
    assert rank_marks([noisy[0], noisy[1]], tested) == {}
