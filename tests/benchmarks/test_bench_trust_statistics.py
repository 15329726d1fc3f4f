"""The noise of images and of training: known values, and small simulations by `scripts/check_statistics.py`."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

import numpy as np
import pytest
from scipy import stats
from script_modules import load_script

from benchmarks.results.noise import (
    Scores,
    TrainingNoise,
    difference_estimate,
    metric_estimate,
    p_values,
    training_noise,
)
from benchmarks.results.statistics import (
    compare,
    confidence_interval,
    holm_correction,
    image_scores,
    scores_interval,
    wilson_interval,
)


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    return load_script("check_statistics.py")


def answers(*seeds: np.ndarray, trained: bool = True) -> Scores:
    """A share of right answers, one image an item."""
    return image_scores("mean", [{"x": seed} for seed in seeds], ("x",), np.arange(len(seeds[0])), trained=trained)


def single(values: np.ndarray, owner: np.ndarray | None = None) -> Scores:
    owner = np.arange(len(values)) if owner is None else owner
    return image_scores("mean_of_scores", [{"x": values}], ("x",), owner)


@pytest.mark.parametrize("kind", ["share", "F1", "CIDEr", "MME", "median"])
def test_intervals_cover_the_truth_and_equal_models_rarely_differ(simulation, kind):
    found = simulation.simulate(simulation.World(kind=kind, images=150, questions=2), 150)
    assert 0.91 <= found.scores <= 0.99
    assert 0.91 <= found.differences <= 0.99
    assert found.alarms <= 0.09


@pytest.mark.slow
def test_a_pretrained_model_among_trained_ones_is_not_called_different(simulation):
    """Its number, copied to each seed, had no spread: a t test over seeds said p = 0 of one item of 120."""
    world = simulation.World(images=120, models=3, pretrained=1, seeds=3, training=1.0, tests=4)
    assert simulation.simulate(world, 60).alarms <= 0.09
    generator = np.random.default_rng(0)
    base = (generator.random(120) < 0.5).astype(float)
    other = base.copy()
    other[np.flatnonzero(base == 0)[0]] = 1.0
    found = compare(answers(other, trained=False), answers(base, trained=False), TrainingNoise())
    assert found.p_value > 0.2
    assert found.low < 0 < found.high


@pytest.mark.slow
def test_models_that_differ_lastingly_on_some_images_are_not_called_different(simulation):
    """Seeds agree on what a model answers in its own way, so that the spread over seeds leaves that out."""
    world = simulation.World(images=200, models=2, seeds=5, lasting=0.3, per_training=0.02, tests=1)
    assert simulation.simulate(world, 150).alarms <= 0.08


def test_two_seeds_with_equal_differences_are_no_certainty():
    """Both seeds right on as many items, and on other ones: the images tell how far these can part."""
    generator = np.random.default_rng(1)
    one = [generator.permutation(np.arange(300) < 180).astype(float) for _ in range(2)]
    two = [generator.permutation(np.arange(300) < 190).astype(float) for _ in range(2)]
    first, second = answers(*one), answers(*two)
    noise = training_noise([first, second])
    assert noise.degrees == 2
    assert noise.of(first) == pytest.approx(0.6 * 0.4 / 300 / 2, rel=0.2)
    assert p_values([difference_estimate(first, second, noise)])[0] > 0.2


def test_seeds_without_any_spread_are_rejected():
    same = np.random.default_rng(2).integers(0, 2, 80).astype(float)
    models = [answers(same, same), answers(1 - same, 1 - same)]
    noise = training_noise(models)
    assert (noise.without_spread, noise.degrees) == (True, 0)
    assert scores_interval(models[0], noise).method == "none"


@pytest.mark.parametrize("last", [0.63, 0.69, 0.99])
def test_training_alone_gives_welchs_t(last):
    """Where all seeds answer like the images' mean, what is left is the textbook's t test of two unequal variances."""
    levels = np.array([[0.50, 0.54, 0.58], [0.60, 0.63, last]])
    first, second = (
        Scores(values=row, influence=np.zeros((3, 50)), enters=np.ones(50, bool), items=np.arange(50), trained=True)
        for row in levels
    )
    noise = training_noise([first, second])
    expected = stats.ttest_ind(*levels, equal_var=False)
    assert noise.degrees == 4
    assert noise.degrees_of((1, -1), (first, second)) == pytest.approx(expected.df, abs=0.06)
    # the error of images has 49 degrees of freedom besides, which makes the tails a little heavier
    assert p_values([difference_estimate(first, second, noise)])[0] == pytest.approx(expected.pvalue, rel=0.1)


def test_images_alone_give_students_paired_t():
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=400), generator.normal(0.2, 1, size=400)
    estimate = difference_estimate(single(first), single(second), TrainingNoise())
    assert estimate.standard_error == pytest.approx(stats.sem(first - second))
    assert p_values([estimate])[0] == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=0.1)
    low, high = estimate.interval()
    expected = stats.t.interval(0.95, 399, (first - second).mean(), stats.sem(first - second))
    assert (low, high) == pytest.approx(expected, rel=0.02)


def test_both_noises_add_and_what_seeds_share_is_counted_once():
    """Each seed gives new answers: the variance over seeds includes that, and that over images must not again."""
    generator = np.random.default_rng(4)
    found = []
    for _ in range(200):
        models = [answers(*(generator.random((3, 400)) < 0.5).astype(float)) for _ in range(4)]
        noise = training_noise(models)
        found.append(difference_estimate(models[0], models[1], noise))
    stated = np.mean([estimate.image_variance + estimate.training_variance for estimate in found])
    truth = 2 * 0.25 / (3 * 400)
    assert truth < stated < 1.4 * truth  # a variance over seeds below that of images is not believed
    assert np.var([estimate.value for estimate in found]) == pytest.approx(truth, rel=0.3)


def test_a_single_training_borrows_the_noise_of_others():
    generator = np.random.default_rng(5)
    several = answers(*(generator.random((5, 200)) < 0.5).astype(float))
    one = answers((generator.random(200) < 0.5).astype(float))
    noise = training_noise([several, one])
    assert noise.degrees == 4
    # what the images explain is in its own variance over images already
    assert metric_estimate(one, noise).training_variance == pytest.approx(
        noise.variance * one.image_variance / several.image_variance)  # fmt: skip
    assert metric_estimate(several, noise).training_variance == pytest.approx(max(
        several.values.var(ddof=1), several.interaction) / 5)  # fmt: skip


def test_noisy_seeds_do_not_shrink_the_noise_of_other_models():
    """Eight models at the end of the scale, two whose seeds disagree: pooled, these seemed to have no noise."""
    generator, alarms = np.random.default_rng(6), 0
    for _ in range(100):
        saturated = [answers(*(generator.random((3, 300)) < 0.995).astype(float)) for _ in range(8)]
        pair = [answers(*(generator.random((3, 300)) < 0.5).astype(float)) for _ in range(2)]
        alarms += p_values([difference_estimate(*pair, training_noise([*saturated, *pair]))])[0] < 0.05
    assert alarms <= 9


def test_models_near_the_end_of_the_scale_do_not_narrow_the_intervals_of_others():
    """Their seeds hardly differ: pooled as they were, 80 % of the others' held the truth."""
    generator, held = np.random.default_rng(7), 0
    for _ in range(100):
        weak = [answers(*(generator.random((2, 2000)) < 0.001).astype(float)) for _ in range(8)]
        ability = 0.6 + generator.normal(0, 0.03, (2, 2, 1))
        pair = [answers(*(generator.random((2, 2000)) < shares).astype(float)) for shares in ability]
        found = scores_interval(pair[0], training_noise([*weak, *pair]))
        held += found.low < 0.6 < found.high
    assert held >= 90


@pytest.mark.parametrize("formula", ["median", "ratio"])
def test_without_a_standard_error_only_means_are_tested(formula):
    """Precision 3 of 3 against none of 300, a median on one side of a tie: no error is known, which is not none."""
    said = [np.array([1.0] * 3 + [0.0] * 297), np.ones(300)]
    right = [said[0], np.zeros(300)]
    columns = [{"x": hits, "y": asked} for hits, asked in zip(right, said, strict=True)]
    if formula == "median":
        columns = [{"x": np.full(300, value)} for value in (1.0, 2.0)]
    names = tuple(columns[0])
    models = [image_scores(formula, [table], names, np.arange(300)) for table in columns]
    found = compare(*models, TrainingNoise())
    assert (found.p_value, math.isnan(found.low)) == (1.0, True)


def test_scores_that_are_swapped_between_images_are_equal():
    values = np.random.default_rng(7).random(300)
    swapped = values.reshape(150, 2)[:, ::-1].ravel()
    owner = np.repeat(np.arange(150), 2)
    assert compare(single(values, owner), single(swapped, owner), TrainingNoise()).p_value == 1.0


def test_few_answers_that_differ_are_worth_few():
    """Of 200 answers 8 differ, all to one side: the sign test has 2 / 2⁸ = 0.008, the normal distribution 0.004."""
    first, second = np.zeros(200), np.zeros(200)
    first[:8] = 1.0
    found = compare(answers(first, trained=False), answers(second, trained=False), TrainingNoise())
    assert 2 / 2**8 < found.p_value < 0.02
    first[4:] = 0.0
    few = compare(answers(first, trained=False), answers(second, trained=False), TrainingNoise())
    assert few.p_value > 0.05
    assert few.low <= 0


def test_many_tests_on_few_answers_that_differ_raise_no_alarm():
    generator, alarms = np.random.default_rng(0), 0
    for _family in range(30):
        estimates = []
        for _test in range(30):
            first = np.zeros(40)
            first[:8] = generator.integers(0, 2, 8)
            second = np.where(np.arange(40) < 8, 1 - first, 0.0)
            pair = (answers(first, trained=False), answers(second, trained=False))
            estimates.append(difference_estimate(*pair, TrainingNoise()))
        alarms += min(holm_correction(p_values(estimates))) < 0.05
    assert alarms <= 1


def test_images_count_and_not_items():
    """Forty answers that differ, but about two images alone: nothing is shown by two of them."""
    first, second, owner = np.ones(40), np.zeros(40), np.repeat([0, 1], 20)
    together = compare(single(first, owner), single(second, owner), TrainingNoise())
    assert together.p_value == pytest.approx(0.5)  # the sign test of two
    assert compare(single(first), single(second), TrainingNoise()).p_value < 0.001


def test_the_smallest_difference_by_hand():
    """2.8 standard errors for many items; with as many items again it is smaller by the square root of two."""
    generator = np.random.default_rng(5)
    first, second = generator.normal(size=1000), generator.normal(size=1000)
    found = compare(single(first), single(second), TrainingNoise())
    assert found.min_detectable == pytest.approx(2.8 * (first - second).std() / math.sqrt(1000), rel=0.05)
    more = compare(single(np.tile(first, 2)), single(np.tile(second, 2)), TrainingNoise())
    assert more.min_detectable == pytest.approx(found.min_detectable / math.sqrt(2), rel=0.05)
    same = compare(single(first), single(first), TrainingNoise())
    assert math.isnan(same.min_detectable)  # no item differs: nothing is known of how much they would


def test_a_difference_of_the_smallest_size_is_found_four_times_in_five(simulation):
    found, stated = simulation.smallest_is_found(simulation.World(images=100, questions=2), 120)
    assert 0.68 <= found <= 0.92
    assert 0.03 < stated < 0.2


def test_images_and_seeds_find_many_times_what_t_tests_over_seeds_find(simulation):
    world = simulation.World(models=6, tests=6, seeds=3, images=400, training=1.0)
    mine, of_all_pairs, students = simulation.found_differences(world, 3, 5.0)
    assert mine > 0.4
    assert mine > of_all_pairs
    assert mine > 4 * students


@pytest.mark.slow
def test_one_model_with_uneven_seeds_raises_no_false_alarms(simulation):
    """Tested with the mean variance of all models, 12 to 16 tables of 100 had one (of two models 8 to 9)."""
    for models, unequal, trials in ((6, 5.0, 150), (2, -5.0, 200)):
        world = simulation.World(images=300, models=models, seeds=3, training=1.0, unequal=unequal)
        assert simulation.simulate(world, trials).alarms <= 0.09


@pytest.mark.slow
@pytest.mark.parametrize(("models", "seeds", "few"), [(2, 6, 3), (6, 3, 0)])
def test_a_model_whose_seeds_vary_more_stands_alone(simulation, models, seeds, few):
    """With half a pool of which the others have most, 8 to 11 of 100 tests of equal models had a false positive."""
    world = simulation.World(models=models, seeds=seeds, few=few, images=1000, training=0.7, unequal=-5.0)
    found = simulation.simulate(world, 200)
    assert found.alarms <= 0.09
    assert found.differences >= 0.92


def test_by_which_variance_a_model_stands_alone():
    """Of 0.02 against 0.001 and 0.0005 it is its own alone, of twice the others' mean it is half of each."""

    def seeds(*values: float) -> Scores:
        return Scores(values=np.array(values), influence=np.zeros((len(values), 50)), enters=np.ones(50, bool),
                      items=np.arange(50), trained=True)  # fmt: skip

    others = [seeds(0.5, 0.53, 0.56), seeds(0.6, 0.61, 0.63), seeds(0.4, 0.44, 0.45)]
    wild, mild = seeds(0.2, 0.5, 0.8), seeds(0.5, 0.54, 0.59)
    for model, alone in ((wild, True), (mild, False)):
        noise, own = training_noise([*others, model]), float(model.values.var(ddof=1))
        ratio = own / np.mean([each.values.var(ddof=1) for each in others])
        assert (ratio > stats.f.isf(0.1, 2, 6)) == alone
        expected = own if alone else (own + np.mean(noise.spreads)) / 2
        assert 3 * noise.of(model) == pytest.approx(expected)
        assert (noise.degrees_of((1, -1), (model, others[0])) <= 2) == alone
        assert noise.borrows(model) != alone


def test_the_share_of_the_own_variance_and_its_degrees():
    """Three models: half the pooled variance and half the own one, and degrees between those of a model and of all."""
    levels = np.array([[0.50, 0.54, 0.58], [0.60, 0.63, 0.66], [0.52, 0.58, 0.64]])
    models = [
        Scores(values=row, influence=np.zeros((3, 50)), enters=np.ones(50, bool), items=np.arange(50), trained=True)
        for row in levels
    ]
    noise, variances = training_noise(models), levels.var(axis=1, ddof=1)
    assert [3 * noise.of(scores) for scores in models] == pytest.approx((variances + variances.mean()) / 2)
    assert noise.degrees == 6
    assert 2 < noise.degrees_of((1, -1), models[1:]) < 6
    assert noise.relative_spread(models[2]) == pytest.approx(variances[2] / variances.mean())
    even = dataclasses.replace(models[2], spread=1.0)  # as the other metrics say
    assert 3 * noise.of(even) == pytest.approx((variances[2] + 3 * variances.mean()) / 4)


@pytest.mark.parametrize("changed", [0.0, 0.1])
def test_variances_over_seeds_are_pooled_by_degrees_and_relative_to_those_over_images(changed):
    """Models of 2, 3 and 5 seeds; ``changed``: how far the seeds' images differ."""
    generator, models = np.random.default_rng(0), []
    for seeds, size, spread in ((2, 1.0, 0.05), (3, 1.4, 0.04), (5, 0.8, 0.03)):  # so even that none stands alone
        influence = size * (generator.normal(0, 0.02, 40) + changed * generator.normal(0, 0.02, (seeds, 40)))
        values = 0.5 + size * spread * np.linspace(-1, 1, seeds) / np.linspace(-1, 1, seeds).std(ddof=1)
        row = {"enters": np.ones(40, bool), "items": np.arange(40), "trained": True}
        models.append(Scores(values=values, influence=influence, **row))
    degrees = np.array([1, 2, 4])
    centered = [each.influence - each.influence.mean(axis=1, keepdims=True) for each in models]
    images = np.array([(each**2).sum(axis=1).mean() for each in centered])
    changes = [((each - each.mean(axis=0)) ** 2).sum() for each in centered] / degrees
    variances = np.array([each.values.var(ddof=1) for each in models])
    pooled = ((variances - changes) * degrees).sum() / degrees.sum()
    relative = images / ((images * degrees).sum() / degrees.sum())
    noise = training_noise(models)
    found = [noise.of(scores) * scores.num_seeds for scores in models]
    assert found == pytest.approx((changes + pooled * relative + variances) / 2)


def test_a_share_in_clusters_counts_as_many_items_as_it_is_worth():
    """Ten questions about each image, all right or all wrong, are worth one."""
    values = np.repeat((np.arange(400) % 4 == 0).astype(float), 10)
    found = confidence_interval("mean", {"x": values}, ("x",), np.repeat(np.arange(400), 10))
    assert (found.low, found.high) == pytest.approx(wilson_interval(100, 400), abs=0.002)
    assert found.method == "wilson"


@pytest.mark.slow
@pytest.mark.parametrize("by_rank", [False, True])
def test_intervals_of_questions_on_few_images_cover_the_truth(simulation, by_rank):
    """Of images with 1 / rank questions 91.6 % did: the variance is that of the few with most questions."""
    found = simulation.simulate(simulation.World(images=200, questions=3, by_rank=by_rank, right=0.5), 400)
    assert found.scores >= 0.925


@pytest.mark.parametrize(("kind", "right", "images", "questions"), [("share", 0.05, 100, 1), ("F1", 0.6, 38, 18)])
def test_a_model_that_does_not_look_is_rarely_credited(simulation, kind, right, images, questions):
    world = simulation.World(kind=kind, right=right, images=images, questions=questions, models=3, lasting=0.5)
    found = [simulation.simulate_blind(world, 80, seed=seed) for seed in (1, 2)]
    assert np.mean([each.intervals for each in found]) > 0.9
    assert np.mean([each.by_one for each in found]) < 0.07
    assert np.mean([each.by_both for each in found]) < 0.04
    assert simulation.simulate_blind(world, 30, gain=0.15).by_both > 0.3


def test_a_single_image_has_no_variance_from_rounding() -> None:
    def seeds(*tables: list[float]) -> Scores:
        columns = [{"x": np.array(values)} for values in tables]
        return image_scores("mean_of_scores", columns, ("x",), [0, 1], trained=True)

    first, second = seeds([0.7, np.nan], [0.71, np.nan], [0.69, np.nan]), seeds([0, np.nan], [0.1, np.nan], [0, np.nan])
    assert first.interaction == second.interaction == 0
    noise = training_noise([first, second, seeds([0.1, 0.9], [0.2, 1.0], [0.4, 1.2])])
    assert p_values([difference_estimate(first, second, noise)])[0] == 1
