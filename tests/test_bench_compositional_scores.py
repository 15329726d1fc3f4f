"""From scores to wins: by hand, against drawn orders of ties, and what guessing gives."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.tasks.compositional.caption_scores import win_probabilities


def _naive(scores: np.ndarray) -> tuple[bool, bool, bool]:
    """Winoground's three scores of four numbers that all differ, as its authors define them."""
    (c0_i0, c1_i0), (c0_i1, c1_i1) = scores
    text = c0_i0 > c1_i0 and c1_i1 > c0_i1
    image = c0_i0 > c0_i1 and c1_i1 > c1_i0
    return text, image, text and image


def test_winoground_by_its_definition():
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        scores = generator.normal(size=(2, 2))
        assert win_probabilities(scores) == _naive(scores)
        seen.add(win_probabilities(scores))
    assert len(seen) == 4  # none, text alone, image alone, all three


@pytest.mark.parametrize(
    "scores",
    [
        [[1, 1], [1, 1]],
        [[1, 0], [1, 0]],
        [[1, 1], [0, 1]],
        [[0.5, 0.5], [0, 0.5]],
        [[2, 1], [1, 2]],
    ],
)
def test_ties_are_drawn_orders(scores):
    """The expected win is the mean over many tiny disturbances."""
    generator = np.random.default_rng(1)
    scores = np.array(scores, float)
    drawn = np.mean([_naive(scores + 1e-9 * generator.normal(size=(2, 2))) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(win_probabilities(scores), drawn, atol=0.03)


def test_what_tells_nothing_apart_scores_chance():
    assert win_probabilities(np.ones((2, 2))) == pytest.approx((1 / 4, 1 / 4, 1 / 6))
    assert win_probabilities(np.ones((1, 2)))[0] == pytest.approx(1 / 2)
    assert win_probabilities(np.ones((1, 5)))[0] == pytest.approx(1 / 5)


def test_one_picture():
    assert win_probabilities(np.array([[0.3, 0.2, 0.1]]))[0] == 1
    assert win_probabilities(np.array([[0.3, 0.2, 0.4]]))[0] == 0
    assert win_probabilities(np.array([[0.3, 0.3, 0.1]]))[0] == 0.5
    assert np.isnan(win_probabilities(np.array([[0.3, 0.3]]))[1:]).all()
