"""Intervals and paired tests against textbook values and naive computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from benchmarks.results.aggregation import AGGREGATIONS
from benchmarks.results.noise import TrainingNoise, metric_estimate
from benchmarks.results.statistics import (
    ConfidenceInterval,
    PairedDifference,
    aggregate,
    compare,
    confidence_interval,
    holm_correction,
    image_scores,
    wilson_interval,
)


def paired_difference(formula, first, second, names, clusters) -> PairedDifference:
    """Of two models that were evaluated once, over images alone."""
    scores = [image_scores(formula, [columns], names, clusters) for columns in (first, second)]
    return compare(*scores, TrainingNoise())


def test_wilson_matches_published_values():
    # Newcombe 1998, table I: 81/263 and 1/29
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.data(), st.floats(1, 1e7), st.floats(0.1, 8))
def test_wilson_matches_statsmodels(data, n, quantile):
    successes = data.draw(st.floats(0, n))
    expected = proportion_confint(successes, n, alpha=2 * stats.norm.sf(quantile), method="wilson")
    assert wilson_interval(successes, n, quantile) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def _random_columns(generator: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    columns = {name: generator.integers(0, 2, n).astype(float) for name in ("said", "is")}
    columns["value"] = generator.normal(size=n)
    columns["value"][::5] = np.nan
    columns["other"] = generator.normal(size=n)
    columns["group"] = np.array(list("abc"))[generator.integers(0, 3, n)]
    for name in ("m1", "m2", "p1", "p2", "length", "reference"):
        columns[name] = generator.integers(3, 9, n).astype(float)
    return columns


FORMULA_ARGUMENTS = {
    "mean": ("value", "other"),
    "ratio": ("said", "p1"),
    "f1": ("said", "is"),
    "sum_of_group_means": ("value", "group"),
    "mean_of_group_means": ("value", "group"),
    "median": ("value",),
    "mean_of_scores": ("value",),
    "bleu": ("m1", "m2", "p1", "p2", "length", "reference"),
}


@pytest.mark.parametrize("formula", sorted({*AGGREGATIONS} - {"median"}))
def test_influence_is_the_derivative_by_an_items_weight(formula):
    """Repeating an item changes the metric as its influence says, the less of it that is repeated the more exactly."""
    generator = np.random.default_rng(3)
    columns, names, copies = _random_columns(generator, 40), FORMULA_ARGUMENTS[formula], 2000
    many = {name: np.repeat(values, copies) for name, values in columns.items()}
    influence = AGGREGATIONS[formula].influence(columns, names)
    for item in range(0, 40, 3):
        more = {name: np.append(many[name], np.repeat(values[item], 20)) for name, values in columns.items()}
        change = aggregate(formula, more, names) - aggregate(formula, many, names)
        assert change == pytest.approx(influence[item] * 20 / copies, rel=0.02, abs=1e-7)
    assert influence.sum() == pytest.approx(0, abs=1e-7)  # the metric is the same if all weights are doubled


def test_influence_of_the_median_gives_its_standard_error():
    """Of 4,000 normal values the median has the standard error 1.2533 / sqrt(4000)."""
    values = {"x": np.random.default_rng(0).normal(size=4000)}
    influence = AGGREGATIONS["median"].influence(values, ("x",))
    assert math.sqrt((influence**2).sum()) == pytest.approx(1.2533 / math.sqrt(4000), rel=0.1)


def test_formulas_by_hand():
    columns = {
        "x": np.array([1.0, 0.0, np.nan, 1.0]),
        "y": np.array([np.nan, 1.0, 1.0, 0.0]),
        "group": np.array(["a", "a", "b", "b"]),
        "said": np.array([1.0, 1.0, 0.0, 0.0]),
        "is": np.array([1.0, 0.0, 1.0, 0.0]),
    }
    assert aggregate("mean", columns, ("x",)) == pytest.approx(2 / 3)
    assert aggregate("mean", columns, ("x", "y")) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert aggregate("sum_of_group_means", columns, ("x", "group")) == pytest.approx(0.5 + 1.0)
    assert aggregate("mean_of_group_means", columns, ("x", "group")) == pytest.approx((0.5 + 1.0) / 2)
    assert np.isnan(aggregate("mean_of_group_means", columns | {"group": np.array([None] * 4)}, ("x", "group")))
    assert aggregate("f1", columns, ("said", "is")) == pytest.approx(0.5)
    assert aggregate("median", {"x": np.array([np.nan, 1.0, 2.0, np.nan])}, ("x",)) == 1.5
    assert aggregate("median", {"x": np.array([4.0, 1.0, 3.0, 2.0])}, ("x",)) == 2.5
    assert aggregate("ratio", {"a": np.zeros(2), "b": np.zeros(2)}, ("a", "b")) == 0.0


def test_an_interval_of_scores_is_students_over_images():
    """Of symmetric scores Hall's correction leaves Student's interval, whose degrees of freedom the kurtosis gives."""
    values = np.tile([-1.0, 1.0], 50)
    found = confidence_interval("mean_of_scores", {"x": values}, ("x",), np.arange(100))
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 99, 0, stats.sem(values)), rel=1e-4)
    assert found.method == "student"
    skewed = confidence_interval(
        "mean_of_scores", {"x": np.where(np.arange(100) < 5, 20.0, 0.0)}, ("x",), np.arange(100)
    )
    assert skewed.high - 1 > 1.5 * (1 - skewed.low)  # more of the same may come, and not less


def test_the_variance_over_images_is_the_jackknifes():
    """Delete-one-image, of images with as few as one question and as many as a third of all."""
    rng = np.random.default_rng(3)
    for questions in (rng.integers(1, 9, 12), np.array([20, 9, 8, 7, 5, 4, 3, 2, 2, 1, 1])):
        owner = np.repeat(np.arange(len(questions)), questions)
        x = np.where(rng.random(len(owner)) < 0.1, np.nan, rng.random(len(owner)))
        without = np.array([np.nanmean(x[owner != image]) for image in range(len(questions))])
        expected = (len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum()
        scores = image_scores("mean_of_scores", [{"x": x}], ("x",), owner)
        assert metric_estimate(scores, TrainingNoise()).image_variance == pytest.approx(expected, rel=1e-6)


def test_clusters_widen_the_interval_and_single_items_get_wilson():
    columns = {"x": np.repeat([0.0, 1.0], 50)}
    clustered = confidence_interval("mean", columns, ("x",), np.repeat(np.arange(10), 10))
    alone = confidence_interval("mean", columns, ("x",), np.arange(100))
    assert alone.method == "wilson"
    assert (alone.low, alone.high) == pytest.approx(
        wilson_interval(50, 100), abs=0.003
    )  # but for 99 degrees of freedom
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)


@pytest.mark.parametrize(("formula", "names"), [("mean", ("x",)), ("f1", ("x", "y")), ("ratio", ("x", "y"))])
def test_all_wrong_is_not_certain(formula, names):
    columns = {"x": np.zeros(40), "y": np.ones(40)}
    found = confidence_interval(formula, columns, names, np.repeat(np.arange(20), 2))
    assert (found.low, found.high) == pytest.approx(wilson_interval(0, 20))
    assert found.method == "wilson"


@pytest.mark.parametrize(
    ("formula", "names"), [("mean", ("x",)), ("median", ("x",)), ("mean_of_group_means", ("x", "g"))]
)
def test_items_that_do_not_enter_a_metric_say_nothing_of_it(formula, names):
    """Twelve cases of a kind are twelve, however many there are of other kinds."""
    generator = np.random.default_rng(5)
    groups = np.array([*"abab" * 3, *[None] * 500], object)
    rows, few = [], slice(0, 12)
    for _ in range(2):
        values = np.concatenate([generator.normal(size=12), np.full(500, np.nan)])
        rows.append({"x": values, "g": groups})
    cut = [{name: column[few] for name, column in row.items()} for row in rows]
    pictures = np.arange(512)
    assert confidence_interval(formula, rows[0], names, pictures) == confidence_interval(
        formula, cut[0], names, pictures[few]
    )
    assert paired_difference(formula, *rows, names, pictures) == paired_difference(formula, *cut, names, pictures[few])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_points_of_a_hundred_are_a_share_of_a_hundred(share):
    right, one = np.arange(40) < 40 * share, np.ones(40)
    for formula, columns, names in (
        ("mean", {"x": right.astype(float)}, ("x",)),
        ("ratio", {"x": right.astype(float), "y": one}, ("x", "y")),
    ):
        points = columns | {"x": 100 * columns["x"]}
        found = confidence_interval(formula, points, names, np.arange(40), most=100.0)
        expected = confidence_interval(formula, columns, names, np.arange(40))
        assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))
        assert found.method == expected.method


def test_paired_difference_sees_what_separate_intervals_hide():
    generator = np.random.default_rng(2)
    hard = generator.normal(size=300)
    first = {"x": (hard + 0.2 > 0).astype(float)}
    second = {"x": (hard > 0).astype(float)}
    clusters = np.arange(300)
    found = paired_difference("mean", first, second, ("x",), clusters)
    assert found.p_value < 0.01
    assert found.value == pytest.approx(first["x"].mean() - second["x"].mean())
    low = confidence_interval("mean", first, ("x",), clusters).low
    high = confidence_interval("mean", second, ("x",), clusters).high
    assert low < high  # the intervals of the two rows overlap
    back = paired_difference("mean", second, first, ("x",), clusters)
    assert back.value == pytest.approx(-found.value)


@pytest.mark.parametrize("hits", [1, 2, 999])
@pytest.mark.parametrize("formula", ["mean", "f1"])
def test_a_difference_of_few_hits_is_within_what_the_two_scores_allow(hits, formula):
    """Of one hit in 1,000 against none, Student's t of one degree of freedom would give -1.4 to 1.2 points."""
    some = np.zeros(1000)
    some[:hits] = 1
    rows = [{"x": some}, {"x": np.roll(some, 7) if hits > 1 else np.zeros(1000)}]
    rows, names = ([{"said": row["x"], "is": np.ones(1000)} for row in rows], ("said", "is")) if formula == "f1" else (
        rows, ("x",))  # fmt: skip
    found = paired_difference(formula, *rows, names, np.arange(1000))
    one, two = (confidence_interval(formula, row, names, np.arange(1000)) for row in rows)
    assert one.low - two.high <= found.low <= found.value <= found.high <= one.high - two.low
    assert found.low < 0 < found.high


def test_paired_difference_of_a_row_with_itself_is_nothing():
    columns = {"x": np.random.default_rng(4).normal(size=30)}
    found = paired_difference("mean", columns, columns, ("x",), np.arange(30))
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert np.isnan([found.low, found.high, found.min_detectable]).all()  # unbounded scores


def _tango(difference: float, gained: int, lost: int, n: int) -> float:
    """Tango's score statistic of a difference of paired shares (Statistics in Medicine 17, 1998)."""
    b = (2 * n - gained + lost) * difference - gained - lost
    lost_share = (math.sqrt(b * b + 8 * n * lost * difference * (1 - difference)) - b) / (4 * n)
    return (gained - lost - n * difference) / math.sqrt(n * (2 * lost_share + difference * (1 - difference)))


@pytest.mark.parametrize("n", [6, 40])
def test_shares_that_all_differ_alike_have_the_score_interval(n):
    wrong, right = {"x": np.zeros(n)}, {"x": np.ones(n)}
    same = paired_difference("mean", right, right, ("x",), np.arange(n))
    assert same.low == -same.high
    assert abs(_tango(same.high, 0, 0, n)) == pytest.approx(1.959964)
    apart = paired_difference("mean", right, wrong, ("x",), np.arange(n))
    assert apart.value == apart.high == 1
    assert _tango(apart.low, n, 0, n) == pytest.approx(1.959964)
    back = paired_difference("mean", wrong, right, ("x",), np.arange(n))
    assert (back.low, back.high) == (-apart.high, -apart.low)


@pytest.mark.parametrize(
    ("formula", "columns"),
    [
        ("mean", {"x": np.full(6, 0.5)}),
        ("mean_of_scores", {"x": np.zeros(6)}),  # CIDEr of captions that share no word with people's
        ("median", {"x": np.full(6, 3.0)}),
        ("sum_of_group_means", {"x": np.full(6, 200.0), "g": np.array(["a"] * 6, object)}),
        ("mean", {"x": np.array([0.2])}),  # one image
    ],
)
def test_items_that_all_agree_give_no_interval(formula, columns):
    size = len(columns["x"])
    reason = "a single image has no variance" if size == 1 else "the score does not vary over the images"
    assert confidence_interval(formula, columns, tuple(columns), np.arange(size)) == ConfidenceInterval(
        low=None, high=None, method="none", reason=reason
    )
    found = paired_difference(formula, columns, {**columns, "x": columns["x"] + 0.1}, tuple(columns), np.arange(size))
    assert np.isnan([found.low, found.high, found.min_detectable]).all()


def test_an_interval_leaves_out_zero_just_where_the_test_rejects():
    generator, rejected = np.random.default_rng(9), 0
    for _ in range(200):
        rows = ({"x": generator.gamma(1.0, 1.0, 80)} for _ in range(2))
        found = paired_difference("mean_of_scores", *rows, ("x",), np.arange(80))
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        rejected += found.p_value < 0.05
    assert 1 <= rejected <= 24
    few = paired_difference("mean", {"x": np.ones(5)}, {"x": np.zeros(5)}, ("x",), np.arange(5))
    assert few.p_value == pytest.approx(2 / 2**5)
    assert few.low == 0  # the score interval of five images alone would leave it out


def test_holm_by_hand():
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm_correction([]) == []
    for seed in range(20):
        raw = np.random.default_rng(seed).choice([0.001, 0.004, 0.01, 0.02, 0.3, 1.0], 1 + seed)
        assert holm_correction(raw.tolist()) == pytest.approx(multipletests(raw, method="holm")[1].tolist())


def test_thumbnails_are_of_few_evenly_spaced_images_once_each():
    from PIL import Image

    from benchmarks.tasks.evaluation import thumbnails

    opened = []

    def opener(number: int) -> Image.Image:
        opened.append(number)
        return Image.new("RGB", (4, 4))

    names = [str(number // 2) for number in range(40)]  # twenty images, two items each
    found = thumbnails(names, opener, most=5)
    assert [number for number, content in enumerate(found) if content] == opened == [0, 8, 16, 24, 32]
    assert sum(content is not None for content in thumbnails(names, opener, most=20)) == 20
