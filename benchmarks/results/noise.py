"""The noise model of a metric: sampling variance over images, and variance over training runs.

docs/statistics.md states the model with its formulas and sources; ``scripts/check_statistics.py`` simulates it.
The estimate of a metric, or of the difference of two models, has an error of two parts:

- images: the variance of the metric's influence function over images (clusters of items). Its degrees of freedom follow
  from the kurtosis (Satterthwaite). The tail probability is the larger one of Student's t before and after Hall's
  transformation, which removes skewness (Journal of the Royal Statistical Society B 54, 1992);
- training: the variance over seeds, half the model's own and half that of all trained models of the metric, relative to
  their variances due to images; the model's own alone if it is significantly larger than that of the others. Its few
  degrees of freedom follow from how unequal the models' variances are.

Their sum has the Behrens–Fisher distribution: many degrees of freedom for the images, few for training.

Letters: C images, S seeds, P estimates, M models that are pooled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 0.05
POWER = 0.8
_NODES = 301  # of the integral over the training variance
_ROUNDING = 1e-9
_FEW = 2  # degrees of freedom of a variance over seeds
_STANDS_ALONE = 0.1  # level of the F test by which a model's variance over seeds is larger than that of the others


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """One metric of one model, on the same C images for every seed.

    Args:
        values: (S,) the metric of each seed; a single one for a pretrained model or a single training run.
        influence: (S, C) derivative of each value with respect to an image's weight.
        enters: (C,) whether an image has items that enter the metric.
        items: (N,) names of the items; only models with the same items are compared.
        missing: (N, K) whether an item has no value in a column of the metric, of which it then is no mean; only
            models that lack the same values are compared.
        images: (C,) names of the images, the same in other benchmarks that show them; empty if they are not known.
        blockers: (S, N) of retrieval: the image without which an item would be a hit, -1 if there is none; part of
            ``influence``.
        item_weights: (N,) weight of each of these items in the metric.
        trained: whether the seeds are training runs; False for a pretrained model.
        spread: the variance over the model's seeds, relative to that of all models, averaged over a table's metrics
            (`TrainingNoise.relative_spread`); None with a single one.
        largest: the maximum of a bounded metric, whose minimum is 0; None for an unbounded one.
        parts: of an average, the weight and the scores of each metric in it; of a gain, those of the two scores.
        linear: whether the metric is a mean over items.
        is_gain: whether it is the difference of two scores of the model, which lies between ``-largest`` and
            ``largest``.
    """

    values: np.ndarray
    influence: np.ndarray
    enters: np.ndarray
    items: np.ndarray
    missing: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, object))
    blockers: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), int))
    item_weights: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    trained: bool = False
    spread: float | None = None
    largest: float | None = None
    linear: bool = True
    is_gain: bool = False
    parts: tuple[tuple[float, Scores], ...] = ()

    @property
    def num_seeds(self) -> int:
        """S."""
        return len(self.values)

    @property
    def scored_items(self) -> set[str]:
        """The names of the items that have a value in each column of the metric."""
        return {*self.items[~self.missing.any(axis=1)]} if self.missing.size else {*self.items}

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.values.mean())

    @functools.cached_property
    def mean_influence(self) -> np.ndarray:
        """(C,) influence of each image on the mean over seeds."""
        return self.influence.mean(axis=0)

    @functools.cached_property
    def without_gallery(self) -> np.ndarray:
        """(C,) influence of each image by its own queries alone, on the mean over seeds."""
        influence = self.mean_influence.copy()
        for row in self.blockers:
            blocked = row >= 0
            influence += np.bincount(row[blocked], self.item_weights[blocked], len(influence)) / self.num_seeds
        return influence

    @functools.cached_property
    def image_variance(self) -> float:
        """Variance of one seed's value due to images, averaged over the seeds."""
        inside = self.influence[:, self.enters]
        if inside.shape[1] < 2:
            return 0.0
        return self._unrounded(float(((inside - inside.mean(axis=1, keepdims=True)) ** 2).sum(axis=1).mean()))

    @functools.cached_property
    def interaction(self) -> float:
        """Variance of one seed's value due to seed–image interaction; 0 for one seed."""
        if self.num_seeds < 2:
            return 0.0
        deviations = self.influence - self.mean_influence
        deviations -= deviations.mean(axis=1, keepdims=True)
        return self._unrounded(float((deviations**2).sum() / (self.num_seeds - 1)))

    def _unrounded(self, variance: float) -> float:
        """A variance, or 0 instead of a rounding error, as a single image has."""
        return variance if variance > (_ROUNDING * float(np.abs(self.values).max())) ** 2 else 0.0


def _both_roles(parts: Sequence[tuple[float, Scores, np.ndarray]]) -> float:
    """What squared influences count twice: a missed query is in that of its own image and of the one that blocks it.

    Errors are correlated among the queries of an image and among those that an image blocks; the variance is the sum of
    both minus that of their intersections (Cameron, Gelbach and Miller, Journal of Business & Economic Statistics 29,
    2011).

    Args:
        parts: weight of each seed, model, and (seeds, N) blockers.
    """
    keys, sizes = [np.zeros(0, int)], [np.zeros(0)]
    for weight, scores, blockers in parts:
        for row in blockers:
            blocked = np.flatnonzero(row >= 0)
            keys.append(blocked * len(scores.enters) + row[blocked])
            sizes.append(weight * scores.item_weights[blocked])
    place = np.unique(np.concatenate(keys), return_inverse=True)[1]
    return float((np.bincount(place, np.concatenate(sizes)) ** 2).sum())


@dataclass(frozen=True, kw_only=True)
class TrainingNoise:
    """Variance over training runs, from the trained models of a metric.

    With three seeds a model's own variance is a poor estimate, and the mean of all models is wrong for one whose
    trainings differ more than those of others. Half of each holds the error rates in both cases, up to three times as
    large standard deviations. A model whose variance is significantly larger (an F test at 10 %) stands alone, with its
    own variance and degrees of freedom, unless it has most of all degrees of freedom.

    Args:
        variance: of one run's value without seed–image interaction, for a model with image variance
            ``image_variance``; other models' variances are in proportion to theirs.
        image_variance: mean over the models.
        smallest: the smallest image variance of a model that is pooled.
        spreads: of the M models, the variance over seeds for that image variance.
        seed_degrees: of freedom of each of them.
        without_spread: whether models have several seeds, and the seeds of none differ.
    """

    variance: float = 0.0
    image_variance: float = 0.0
    smallest: float = 0.0
    spreads: tuple[float, ...] = ()
    seed_degrees: tuple[int, ...] = ()
    without_spread: bool = False

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the pooled variance; 0 (unknown) if no model has several seeds that differ."""
        return sum(self.seed_degrees)

    def of(self, scores: Scores) -> float:
        """Variance of a model's mean over seeds due to training, with the model's seed–image interaction."""
        variance = scores.interaction + self.variance * self._scale(scores)
        own = self._own_spread(scores)
        if own is not None and self._stands_alone(scores, own):
            variance = max(scores.interaction, own * self._scale(scores))
        elif own is not None:
            variance = max(scores.interaction, (variance + own * self._scale(scores)) / 2)
        return variance / scores.num_seeds

    def relative_spread(self, scores: Scores) -> float | None:
        """The variance over a model's seeds relative to that of all pooled models; None for a model that is none.

        None, too, if all models' seeds have equal values, on different images.
        """
        if not self._is_pooled(scores) or not self._mean_spread:
            return None
        return self._raw_spread(scores) / self._mean_spread

    def degrees_of(self, weights: Sequence[float], models: Sequence[Scores]) -> float:
        """Degrees of freedom of the variance of a weighted sum of models, by Satterthwaite's formula.

        The formula's own correction for few degrees of freedom (Welch, Biometrika 34, 1947) is left out for two models,
        where it is too liberal, and approached with their number. A model that stands alone limits them to its own by
        its share, since the formula is too liberal where a part with few has most of the variance.
        """
        trained = [(weight, scores) for weight, scores in zip(weights, models, strict=True) if scores.trained]
        few = max(0.0, 2 - 4 / len(self.spreads))
        shared, own, alone = 0.0, [], []
        for weight, scores in trained:
            share, spread = weight**2 / scores.num_seeds * self._scale(scores), self._own_spread(scores)
            if spread is not None and self._stands_alone(scores, spread):
                few = 0.0
                own.append((share, spread, scores))
                alone.append((share * spread, scores.num_seeds - 1))
                continue
            shared += share if spread is None else share / 2
            own += [] if spread is None else [(share / 2, spread, scores)]
        total = shared * self._mean_spread + sum(share * spread for share, spread, _ in own)
        squares = sum(
            (shared * degrees / self.degrees * spread) ** 2 / (degrees + few)
            for spread, degrees in zip(self.spreads, self.seed_degrees, strict=True)
        )
        for share, spread, scores in own:  # a model's own variance is also a part of the mean
            degrees, part = scores.num_seeds - 1, shared * (scores.num_seeds - 1) / self.degrees
            squares += (share**2 + 2 * share * part) * spread**2 / (degrees + few)
        pooled = total**2 / squares - few if squares else self.degrees
        limits = [degrees * total / part for part, degrees in alone]
        return round(min([max(pooled, min(self.seed_degrees)), self.degrees, *limits]), 1)

    @property
    def _mean_spread(self) -> float:
        return float(np.average(self.spreads, weights=self.seed_degrees))

    def _scale(self, scores: Scores) -> float:
        return scores.image_variance / self.image_variance if self.image_variance else 1.0

    def _is_pooled(self, scores: Scores) -> bool:
        several = scores.trained and scores.num_seeds > 1 and _differ(scores)
        return several and scores.image_variance >= self.smallest

    def borrows(self, scores: Scores) -> bool:
        """Whether most of a model's variance over seeds is that of others, since its few seeds hardly show its own."""
        own = scores.num_seeds - 1
        if not scores.trained or own > _FEW or self.degrees - own <= own:
            return False
        spread = self._own_spread(scores)
        return spread is None or not self._stands_alone(scores, spread)

    def _stands_alone(self, scores: Scores, spread: float) -> bool:
        """Whether a model's variance over seeds, in the unit of ``spreads``, is that of this model alone."""
        own = scores.num_seeds - 1
        others = self.degrees - own
        if others <= own:  # of two models with equally many seeds Welch's test holds the error rates
            return False
        mean = (self.degrees * self._mean_spread - own * self._raw_spread(scores)) / others
        return spread > _largest_ratio(own, others) * mean

    def _raw_spread(self, scores: Scores) -> float:
        return float(scores.values.var(ddof=1)) / self._scale(scores)

    def _own_spread(self, scores: Scores) -> float | None:
        """The variance over a model's seeds in the unit of ``spreads``, half of it from all metrics of a table."""
        if not self._is_pooled(scores):
            return None
        own = self._raw_spread(scores)
        return own if scores.spread is None else (own + scores.spread * self._mean_spread) / 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric, or a difference of two, with the distribution of its error.

    Args:
        value: the estimate.
        image_variance: variance of the error due to images.
        training_variance: variance of the error due to training.
        image_degrees: degrees of freedom of ``image_variance``.
        training_degrees: degrees of freedom of ``training_variance``; 0 if that is 0.
        skewness: of the error.
        clusters: number of images.
        signs: number of images for the sign test; 0 for metrics that are no means.
    """

    value: float
    image_variance: float
    training_variance: float
    image_degrees: float
    training_degrees: float
    skewness: float
    clusters: int
    signs: int

    def scaled(self, factor: float) -> Estimate:
        """The estimate in another unit, of which ``factor`` are one of this."""
        variances = {name: factor**2 * getattr(self, name) for name in ("image_variance", "training_variance")}
        return dataclasses.replace(self, value=factor * self.value, **variances)

    @property
    def standard_error(self) -> float:
        """Standard error of the value over images and training runs."""
        return math.sqrt(self.image_variance + self.training_variance)

    def quantile(self, probability: float) -> float:
        """Quantile of the absolute error in standard errors; NaN if the standard error is 0."""
        from scipy import optimize, special

        if not self.standard_error:
            return math.nan
        if not self.training_variance:
            return -float(special.stdtrit(self.image_degrees, (1 - probability) / 2))

        def excess(log_size: float) -> float:
            tail = float(_tails([self], np.array([math.exp(log_size)]))[0])
            return math.log(max(tail, 1e-300)) - math.log(1 - probability)

        return math.exp(optimize.brentq(excess, -8.0, 40.0))

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """The values that a test at ``1 - level`` does not reject; NaN if the standard error is 0."""
        reach = self.quantile(level)
        below = max(reach, _inverse_hall(reach, self.skewness))
        above = max(reach, -_inverse_hall(-reach, self.skewness))
        return self.value - below * self.standard_error, self.value + above * self.standard_error

    @property
    def min_detectable(self) -> float:
        """The smallest true value that a single test at 5 % detects with power 0.8; NaN if the standard error is 0."""
        return (self.quantile(1 - ALPHA) + self.quantile(2 * POWER - 1)) * self.standard_error


def average_scores(metrics: Sequence[Scores], scales: Sequence[float]) -> Scores:
    """The mean of several metrics of one model as a metric, with the influence of each image on all of them.

    Args:
        metrics: with the same seeds in the same order, and the names of their images.
        scales: factor of each.
    """
    seeds, count = metrics[0].num_seeds, len(metrics)
    names, places = np.unique(np.concatenate([scores.images for scores in metrics]), return_inverse=True)
    ends = np.cumsum([len(scores.images) for scores in metrics])[:-1]
    values, largest = [], []
    influence, enters = np.zeros((seeds, len(names))), np.zeros(len(names), bool)
    blockers, weights = [np.zeros((seeds, 0), int)], [np.zeros(0)]
    for scores, scale, place in zip(metrics, scales, np.split(places, ends), strict=True):  # place: of its images
        values.append(scale * scores.values)
        largest += [scale * scores.largest] if scores.largest is not None else []
        influence[:, place] += scale / count * scores.influence
        enters[place] |= scores.enters
        if scores.blockers.size:
            blockers.append(np.where(scores.blockers >= 0, place[scores.blockers], -1))
            weights.append(scale / count * scores.item_weights)
    return Scores(
        values=np.mean(values, axis=0),
        influence=influence,
        enters=enters,
        items=np.concatenate([scores.items for scores in metrics]),
        images=names,
        blockers=np.concatenate(blockers, axis=1),
        item_weights=np.concatenate(weights),
        trained=metrics[0].trained,
        largest=sum(largest) / count if len(largest) == count else None,
        linear=False,
        parts=tuple((scale / count, scores) for scale, scores in zip(scales, metrics, strict=True)),
    )


def least_variance(variances: Iterable[float]) -> float:
    """A quarter of the largest image variance of a metric; models with less are near an end of the scale.

    It is lowered by more than rounding, which would else decide for a model at the limit.
    """
    return 0.25 * (1 - 1e-6) * max(variances, default=0.0)


def training_noise(models: Sequence[Scores]) -> TrainingNoise:
    """The variance over seeds of the trained models of one metric, each relative to its variance due to images.

    The variance over seeds has ``Scores.interaction`` as its lower bound: a smaller one is chance, for example if two
    seeds have equal accuracy on different images. Models near an end of the scale are excluded, because their variance
    is small regardless of training.
    """
    several = [scores for scores in models if scores.trained and scores.num_seeds > 1]
    spread = [scores for scores in several if _differ(scores)]
    if not spread:
        return TrainingNoise(without_spread=bool(several))
    enough = least_variance(scores.image_variance for scores in spread)
    inside = [scores for scores in spread if scores.image_variance >= enough]
    degrees = [scores.num_seeds - 1 for scores in inside]
    variances = [float(scores.values.var(ddof=1)) for scores in inside]
    excess = [variance - scores.interaction for variance, scores in zip(variances, inside, strict=True)]
    images = float(np.average([scores.image_variance for scores in inside], weights=degrees))
    return TrainingNoise(
        variance=max(0.0, float(np.average(excess, weights=degrees))),
        image_variance=images,
        smallest=enough,
        spreads=tuple(
            variance * images / scores.image_variance if images else variance
            for variance, scores in zip(variances, inside, strict=True)
        ),
        seed_degrees=tuple(degrees),
    )


def _differ(scores: Scores) -> bool:
    """Whether the seeds of a model differ by more than rounding errors."""
    return max(float(scores.values.var()), scores.interaction) > (_ROUNDING * float(np.abs(scores.values).max())) ** 2


def metric_estimate(scores: Scores, noise: TrainingNoise) -> Estimate:
    """A model's mean over its seeds, for the population of images and training runs."""
    return contrast_estimate([scores], [1.0], noise)


def difference_estimate(first: Scores, second: Scores, noise: TrainingNoise) -> Estimate:
    """The metric of one model minus that of another on the same images."""
    return contrast_estimate([first, second], [1.0, -1.0], noise)


def contrast_estimate(models: Sequence[Scores], weights: Sequence[float], noise: TrainingNoise) -> Estimate:
    """A weighted sum of the metric of several models on the same images."""
    value = sum(weight * scores.value for weight, scores in zip(weights, models, strict=True))
    influence = sum(weight * scores.mean_influence for weight, scores in zip(weights, models, strict=True))
    influence = np.asarray(influence)[np.any([scores.enters for scores in models], axis=0)]
    clusters = len(influence)
    centered = influence - influence.mean() if clusters else influence
    square = centered * centered  # numpy's powers of 3 and 4 take ten times as long
    squares, cubes, fourths = (float(of_image.sum()) for of_image in (square, square * centered, square * square))
    if abs(value) <= _ROUNDING * max(scores.largest or abs(scores.value) for scores in models):
        value = 0.0
    if any(scores.blockers.size for scores in models):
        # The variance of two-way clusters may be smaller than that of one way, even 0 for a single hit: not below it.
        rows = sum(weight * scores.without_gallery for weight, scores in zip(weights, models, strict=True))
        rows = np.asarray(rows)[np.any([scores.enters for scores in models], axis=0)]
        parts = zip(weights, models, strict=True)
        both = _both_roles([(weight / scores.num_seeds, scores, scores.blockers) for weight, scores in parts])
        squares = max(squares - both, float(((rows - rows.mean()) ** 2).sum()))
    if squares <= (_ROUNDING * max(scores.largest or abs(scores.value) for scores in models)) ** 2 / max(1, clusters):
        squares = 0.0
    of_images, of_training = squares * clusters / max(1, clusters - 1), 0.0
    for weight, scores in zip(weights, models, strict=True):
        if scores.trained and noise.degrees:
            of_training += weight**2 * noise.of(scores)
            of_images -= weight**2 * scores.interaction / scores.num_seeds  # part of the variance over seeds
    of_images = max(0.0, of_images)
    skewness, degrees = 0.0, max(1.0, clusters - 1.0)
    if squares and of_images:
        skewness = cubes / squares**1.5 * (of_images / (of_images + of_training)) ** 1.5
        excess = fourths / squares**2 - 1 / clusters  # (kurtosis - 1) / clusters
        degrees = max(1.0, min(degrees, 2 / excess if excess > 0 else math.inf))
    return Estimate(
        value=value,
        image_variance=of_images,
        training_variance=of_training,
        image_degrees=degrees,
        training_degrees=noise.degrees_of(weights, models) if of_training else 0,
        skewness=skewness,
        clusters=clusters,
        signs=clusters if all(scores.linear for scores in models) else 0,
    )


def p_values(estimates: Sequence[Estimate]) -> np.ndarray:
    """(P,) uncorrected two-sided p-values of "the value is 0".

    Without a standard error (all images agree) means have the sign test's 2^(1 − C), other metrics 1.
    """
    if not estimates:
        return np.zeros(0)
    values = np.array([estimate.value for estimate in estimates], dtype=float)
    errors = np.array([estimate.standard_error for estimate in estimates], dtype=float)
    skewness = np.array([estimate.skewness for estimate in estimates], dtype=float)
    sizes = np.divide(values, errors, out=np.zeros(len(values)), where=errors > 0)
    nearest = np.minimum(np.abs(sizes), np.abs(_hall(sizes, skewness)))
    signs = np.array([min(1.0, 2.0 ** (1 - min(estimate.signs, 1000))) for estimate in estimates])
    return np.where(errors > 0, _tails(estimates, nearest), np.where(values == 0, 1.0, signs))


def _tails(estimates: Sequence[Estimate], sizes: np.ndarray) -> np.ndarray:
    """(P,) two-sided probability that an error is at least ``sizes`` standard errors."""
    from scipy import special  # scipy.stats takes half a second to import, and calls the same functions

    image_degrees = np.array([estimate.image_degrees for estimate in estimates])
    tails = 2 * special.stdtr(image_degrees, -sizes)
    for degrees in {estimate.training_degrees for estimate in estimates} - {0}:
        chosen = np.array([estimate.training_degrees == degrees for estimate in estimates])
        training = np.array([estimate.training_variance for estimate in estimates])[chosen, None]
        images = np.array([estimate.image_variance for estimate in estimates])[chosen, None]
        ratios, weights = _variance_ratios(degrees)
        spread = np.sqrt((images + training / ratios) / (images + training))
        tails[chosen] = 2 * special.stdtr(image_degrees[chosen, None], -sizes[chosen, None] / spread) @ weights
    return tails


@functools.lru_cache(maxsize=1000)
def _largest_ratio(own: int, others: int) -> float:
    """Of two equal variances with these degrees of freedom, up to which an F test does not say that one is larger."""
    from scipy import stats

    return float(stats.f.isf(_STANDS_ALONE, own, others))


@functools.lru_cache(maxsize=1000)
def _variance_ratios(degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a mean over chi²/degrees, by the trapezoid rule on its logarithm."""
    from scipy import special

    shape = degrees / 2
    low, high = (
        math.log(end / shape) for end in (special.gammaincinv(shape, 1e-13), special.gammainccinv(shape, 1e-13))
    )
    logs = np.linspace(low, high, _NODES)
    weights = np.exp(shape * (logs - np.exp(logs) + 1))
    return np.exp(logs), weights / weights.sum()


def _hall(sizes: np.ndarray, skewness: np.ndarray) -> np.ndarray:
    """Studentized estimates after Hall's transformation, which removes skewness (Hall 1992, section 2)."""
    return sizes + skewness * (2 * sizes**2 + 1) / 6 + skewness**2 * sizes**3 / 27


def _inverse_hall(size: float, skewness: float) -> float:
    if abs(skewness) < _ROUNDING:
        return size
    return 3 * (float(np.cbrt(1 + skewness * (size - skewness / 6))) - 1) / skewness
