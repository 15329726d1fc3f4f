"""Similarity of two sets of features of the same N items: debiased CKA, mutual nearest neighbors, Gromov-Wasserstein.

None is a mean over items. The variance of the first two over items comes from the jackknife (Arvesen, Annals of
Mathematical Statistics 40, 1969), without the duplicates of a bootstrap, which bias kernels and neighbors. It is
returned as *influence values*, one per item: their mean is the similarity, and the interval of that mean is the
jackknife's.

Letters: N items, D and E widths of the features.
"""

from __future__ import annotations

import math

import numpy as np

_TIE_DECIMALS = 6  # similarities that are equal so far are ties
_NUM_HALVES = 20  # subsamples of the delete-half jackknife
_NO_VARIANCE = 1e-12  # of features relative to their square: rounding errors of float32


def _influence_values(whole: float, without: np.ndarray) -> np.ndarray:
    """(N,) a statistic of all items plus each item's jackknife influence, from the values without each item."""
    return whole + (len(without) - 1) * (without.mean() - without)


def debiased_cka(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) influence values of the debiased linear CKA; NaN if the features of a side do not vary.

    CKA (Kornblith et al. 2019, arXiv 1905.00414) with the unbiased estimator of HSIC (Song et al., JMLR 13, 2012,
    equation 5; in CKA: Nguyen, Raghu and Kornblith 2021, arXiv 2010.15327).

    Args:
        first: (N, D) features, N at least 5.
        second: (N, E) features of the same items.
    """
    kernels = []
    for features in (first, second):
        centered = features - features.mean(axis=0, dtype=float)  # changes only rounding: HSIC ignores the mean
        if (centered**2).sum() <= _NO_VARIANCE * (features**2).sum():
            return np.full(len(first), math.nan)
        kernels.append(centered @ centered.T)
        np.fill_diagonal(kernels[-1], 0.0)
    cross, own, other = _hsic(*kernels), _hsic(kernels[0], kernels[0]), _hsic(kernels[1], kernels[1])
    if min(own.min(), other.min()) <= 0:
        return np.full(len(first), math.nan)
    values = cross / np.sqrt(own * other)
    return _influence_values(float(values[0]), values[1:])


def _hsic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N + 1,) unbiased HSIC up to its factor 1 / (n (n - 3)): of all items, then without each.

    Args:
        first: (N, N) kernel with zeros on the diagonal.
        second: likewise.
    """
    rows, columns, both = first.sum(axis=1), second.sum(axis=1), (first * second).sum(axis=1)
    trace, sums, products = both.sum(), (rows.sum(), columns.sum()), (rows * columns).sum()
    without = products - rows * columns - first @ columns - second @ rows + both
    traces = np.append(trace, trace - 2 * both)
    totals = np.append(sums[0], sums[0] - 2 * rows) * np.append(sums[1], sums[1] - 2 * columns)
    n = np.append(len(first), np.full(len(first), len(first) - 1))
    return traces + totals / ((n - 1) * (n - 2)) - 2 * np.append(products, without) / (n - 2)


def neighbor_overlap(first: np.ndarray, second: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) ratio of each item's ``k`` nearest neighbors (cosine) that both sets share, and (N,) influence values.

    The mean of either is the mutual k-nearest-neighbor alignment (Huh et al. 2024, arXiv 2405.07987, section 2), here
    without the truncation of outliers of the authors' code. The ratios depend on each other, as neighborhoods overlap:
    their variance would give too narrow intervals. Ties are in random order, each set and item with its own.

    Args:
        first: (N, D) unit vectors, N at least ``k`` + 2.
        second: (N, E) unit vectors of the same items.
        k: number of neighbors.
    """
    near = np.zeros((2, len(first), len(first)), bool)
    next_nearest = np.zeros((2, len(first)), int)
    for side, features in enumerate((first, second)):
        similarity = (features @ features.T).round(_TIE_DECIMALS)
        similarity += np.random.default_rng(side).random(similarity.shape) * 10.0 ** -(_TIE_DECIMALS + 1)
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argsort(-similarity, axis=1)[:, : k + 1]
        np.put_along_axis(near[side], nearest[:, :k], True, axis=1)
        next_nearest[side] = nearest[:, k]
    shared = (near[0] & near[1]).sum(axis=1)
    # without item i, the next neighbor replaces it: (j, i) the change of the number that item j shares
    rows = np.arange(len(first))
    one, other = near.astype(float)
    enters_one, enters_other = other[rows, next_nearest[0]], one[rows, next_nearest[1]]
    same = (next_nearest[0] == next_nearest[1]).astype(float)
    change = one * enters_one[:, None] + other * enters_other[:, None] + one * other * (same - 1)[:, None]
    without = (shared.sum() - shared + change.sum(axis=0)) / (k * (len(first) - 1))
    return shared / k, _influence_values(float(shared.mean() / k), without)


def centered_distances(features: np.ndarray) -> np.ndarray:
    """(N, N) cosine distance / 2, from 0 to 1, of features (N, D) minus their mean: the similarity structure."""
    centered = features - features.mean(axis=0)
    unit = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    found = (1 - unit @ unit.T) / 2
    np.fill_diagonal(found, 0.0)
    return found


def gromov_wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """Gromov-Wasserstein distance (square loss, uniform weights) of two sets with as many items; a local minimum.

    Mémoli (Foundations of Computational Mathematics 11, 2011); minimized by conditional gradient (Vayer et al. 2019,
    arXiv 1805.09114, the default of POT's ``ot.gromov.gromov_wasserstein``). With squared Euclidean distances, such as
    cosine distances, the objective is concave (Maron and Lipman 2018, arXiv 1806.05722), so that every step is a full
    one, to a permutation: a linear assignment. It starts from the given pairing and from that by mean distance, and
    the smaller value counts; the exact minimum is NP-hard to find.

    Args:
        first: (N, N) squared Euclidean distances, for example of :func:`centered_distances`.
        second: likewise.
    """
    from scipy.optimize import linear_sum_assignment

    constant = (first**2).mean() + (second**2).mean()

    def cost(order: np.ndarray) -> float:
        return float(constant - 2 * (first * second[np.ix_(order, order)]).mean())

    by_mean = np.empty(len(first), int)
    by_mean[first.mean(axis=1).argsort(kind="stable")] = second.mean(axis=1).argsort(kind="stable")
    found = []
    for order in (np.arange(len(first)), by_mean):
        value = cost(order)
        while (lower := cost(order := linear_sum_assignment(first @ second[order], maximize=True)[1])) < value - 1e-12:
            value = lower
        found.append(value)
    return math.sqrt(max(0.0, min(found)))


def distance_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of :func:`gromov_wasserstein` of N items, by a delete-half jackknife (Shao and Wu 1989).

    It is about the distance of N sampled items, whose mean decreases with N, not about that of infinitely many.

    Args:
        first: (N, N) squared Euclidean distances.
        second: likewise.
    """
    from scipy import stats

    rng = np.random.default_rng(0)
    halves = [rng.permutation(len(first))[: len(first) // 2] for _ in range(_NUM_HALVES)]
    found = [gromov_wasserstein(first[np.ix_(half, half)], second[np.ix_(half, half)]) for half in halves]
    half_width = stats.t.isf(0.025, _NUM_HALVES - 1) * np.std(found, ddof=1)  # deleting a half needs no factor
    value = gromov_wasserstein(first, second)
    return float(max(0.0, value - half_width)), float(value + half_width)
