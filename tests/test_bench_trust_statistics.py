"""Simulations: intervals hold the truth, tests raise few false alarms, the smallest difference is one that shows."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks.statistics import holm, interval, paired_difference, wilson


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "scripts/check_statistics.py"
    spec = importlib.util.spec_from_file_location("check_statistics", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_statistics"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("pictures", "share", "formula"),
    [(10, 0.5, "share"), (30, 0.9, "share"), (100, 0.97, "share"), (100, 0.5, "mean"), (60, 0.5, "median")],
)
def test_intervals_hold_the_truth(simulation, pictures, share, formula):
    found = simulation.coverage(simulation.World(pictures, 3, share), 200, formula=formula)
    assert 0.91 <= found <= 1.0


def test_a_family_of_tests_on_equal_rows_raises_few_alarms(simulation):
    assert simulation.false_alarms(simulation.World(60, 2, 0.6), 40, tests=5, apart=0.3) <= 0.15


def test_many_tests_on_few_answers_that_differ_raise_no_alarm():
    """Eight answers differ, each by a toss: the sign test has at least 2 / 2⁸, of which thirty tests see nothing.

    A bootstrap has 2 / e⁸ where all fall to one side, and one family in five with a false alarm.
    """
    generator, alarms = np.random.default_rng(0), 0
    for _family in range(30):
        p_values = []
        for _test in range(30):
            first = np.zeros(40)
            first[:8] = generator.integers(0, 2, 8)
            second = np.where(np.arange(40) < 8, 1 - first, 0.0)
            found = paired_difference("mean", {"x": first}, {"x": second}, ("x",), np.arange(40), draws=3000)
            p_values.append(found.p_value)
        alarms += min(holm(p_values)) < 0.05
    assert alarms == 0


def test_the_smallest_difference_is_shown_four_times_in_five(simulation):
    found, stated = simulation.power(simulation.World(100, 2, 0.6), 100)
    assert 0.68 <= found <= 0.92
    assert 0.03 < stated < 0.15


def test_few_answers_that_differ_get_the_sign_tests_p_value():
    """Of 200 answers 8 differ, all to one side: 2 / 2⁸ by the sign test, whatever a bootstrap says."""
    first, second = np.zeros(200), np.zeros(200)
    first[:8] = 1.0
    found = paired_difference("mean", {"x": first}, {"x": second}, ("x",), np.arange(200), draws=20_000)
    assert found.p_value == pytest.approx(2 / 2**8, rel=0.25)
    first[4:] = 0.0
    few = paired_difference("mean", {"x": first}, {"x": second}, ("x",), np.arange(200))
    assert few.p_value == pytest.approx(2 / 2**4, rel=0.25)
    assert (few.low, few.significant) == (0.0, False)


def test_rows_are_exchanged_picture_by_picture():
    """Forty answers that differ, but about two pictures alone: nothing is shown by two of them."""
    first, second, owner = np.ones(40), np.zeros(40), np.repeat([0, 1], 20)
    together = paired_difference("mean", {"x": first}, {"x": second}, ("x",), owner)
    assert together.p_value == pytest.approx(0.5, abs=0.05)
    assert paired_difference("mean", {"x": first}, {"x": second}, ("x",), np.arange(40)).p_value < 0.001


def test_means_are_exchanged_by_their_sums_with_the_same_result(monkeypatch):
    generator = np.random.default_rng(3)
    first, second = ({name: generator.normal(size=90) for name in "xy"} for _ in range(2))
    for columns in (first, second):
        columns["y"][::4] = np.nan
        columns["x"] += 0.3 * (columns is first)
    quick = paired_difference("mean", first, second, ("x", "y"), np.arange(90) // 3)
    monkeypatch.setattr("benchmarks.statistics._gains", lambda *_: None)
    slow = paired_difference("mean", first, second, ("x", "y"), np.arange(90) // 3)
    assert 0.001 < slow.p_value < 0.5
    assert quick == slow
    monkeypatch.undo()
    second["y"][1] = np.nan  # means over other items: the slow way
    assert 0 < paired_difference("mean", first, second, ("x", "y"), np.arange(90) // 3).p_value < 0.5


@pytest.mark.parametrize("formula", ["f1", "sum_of_group_means", "bleu"])
def test_any_formula_is_tested_by_exchange(formula):
    generator = np.random.default_rng(0)
    names = {"f1": ("a", "b"), "sum_of_group_means": ("a", "g"), "bleu": ("a", "b", "n", "n")}[formula]
    shared = {"b": generator.integers(1, 2, 80).astype(float), "g": np.array(["u", "v"] * 40), "n": np.full(80, 2.0)}
    weak = shared | {"a": (generator.random(80) < 0.3).astype(float)}
    strong = shared | {"a": np.maximum(weak["a"], generator.random(80) < 0.4)}
    assert paired_difference(formula, strong, weak, names, np.arange(80)).p_value < 0.01
    assert paired_difference(formula, weak, weak, names, np.arange(80)).p_value == 1.0


def test_the_smallest_difference_by_hand():
    """2.8 standard errors for many items; with as many items again it is smaller by the square root of two."""
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=1000), generator.normal(size=1000)
    found = paired_difference("mean", {"x": first}, {"x": second}, ("x",), np.arange(1000))
    assert found.smallest == pytest.approx(2.8 * (first - second).std() / math.sqrt(1000), rel=0.05)
    twice = [{"x": np.tile(each, 2)} for each in (first, second)]
    more = paired_difference("mean", *twice, ("x",), np.arange(2000))
    assert more.smallest == pytest.approx(found.smallest / math.sqrt(2), rel=0.05)
    same = paired_difference("mean", {"x": first}, {"x": first}, ("x",), np.arange(1000))
    assert math.isnan(same.smallest)  # no item differs: nothing is known of how much they would


def test_a_share_in_clusters_counts_as_many_items_as_it_is_worth():
    """Ten questions about each picture, all right or all wrong, are worth one."""
    values = np.repeat((np.arange(400) % 4 == 0).astype(float), 10)
    found = interval("mean", {"x": values}, ("x",), np.repeat(np.arange(400), 10))
    assert (found.low, found.high) == pytest.approx(wilson(100, 400), abs=0.002)
    assert found.method == "wilson"
