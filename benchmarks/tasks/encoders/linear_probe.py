"""Linear probe: logistic regression on an image tower's features, with regularization selected on a part of train.

Letters: N images, D width, C classes.

Source: section A.3 of the CLIP paper (arXiv 2103.00020): scikit-learn's L-BFGS with at most 1,000 steps; a search over
97 values of its strength from 1e-6 to 1e6 tries every 16th first and halves the step around the best.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.tasks.data.classification_sets import ClassificationSet, load_classification_set, say_skipped
from benchmarks.tasks.encoders.classification import (
    PRIMARY,
    class_ranks,
    data_settings,
    items_table,
    metrics,
    undefined_metrics,
)
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from clips.core.artifact import log_info
from clips.errors import UserError

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

C_VALUES = np.logspace(-6, 6, 97)
"""Values of C, the inverse of the regularization strength: eight per decade."""
_HELD_OUT = 5  # ratio of held-out images, one in this number per class
_STEPS = 1000
_CHOSEN = MetricSpec(label="C", aggregation=None, scale=1.0, higher_is_better=None)
_NEVER = -1e9  # log probability of a class that train does not contain


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation:
    """Compute the test accuracy of a classifier trained on the train split, and the selected C."""
    from importlib.metadata import version

    from benchmarks.tasks.encoders.cached_embeddings import image_embeddings
    from benchmarks.tasks.encoders.embedding import encoder_settings

    train, test = _load(config)
    for found in (train, test):
        say_skipped(found)
    learned = image_embeddings(row, train.open, train.pictures, train.hash).cpu().numpy()
    asked = image_embeddings(row, test.open, test.pictures, test.hash).cpu().numpy()
    strength = select_c(learned, train.targets)
    scores = _scores(fit_classifier(learned, train.targets, strength, config.name), asked, len(test.classes))
    items = items_table(test, class_ranks(iter([scores]), test.targets))
    return Evaluation(
        metrics=metrics(items, test) | {"C": compute_metric(items, _CHOSEN, strength)},
        primary=PRIMARY,
        missing_metrics=undefined_metrics(test),
        protocol={"task": "linear probe"}
        | data_settings(test, config)
        | {
            "train_hash": train.hash,
            "train_split": config.train_split,
            "train_pictures": len(train.pictures),
            "features": "unit vectors of the image embedding",
            "classifier": f"logistic regression, L2, L-BFGS, at most {_STEPS} steps",
            "chosen_C": f"best of 1e-6 to 1e6, 8 a decade, by halving steps, on 1 in {_HELD_OUT} pictures of "
            "train; then learned again from all of train",
            "ties": f"expected value over random order of classes within {TIE_TOLERANCE}",
            "scorer": "benchmarks.linear_probe 1",
            "scikit-learn": version("scikit-learn"),
        }
        | row.tower.how
        | encoder_settings(row.tower),
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of the images of both splits and their classes."""
    import hashlib

    return hashlib.sha256("".join(found.hash for found in _load(config)).encode()).hexdigest()


def _load(config: BenchmarkConfig) -> tuple[ClassificationSet, ClassificationSet]:
    """Return train and test; ``limit`` applies only to the test images."""
    if config.split == config.train_split:
        raise UserError(f"benchmarks.train_split: expected another than 'split', got '{config.split}' for both")
    train = load_classification_set(config.data, split=config.train_split)
    test = load_classification_set(config.data, split=config.split, limit=config.limit)
    if list(train.classes) != list(test.classes):
        raise UserError(f"{config.data}: '{config.train_split}' and '{config.split}' have other classes")
    return train, test


def select_c(features: np.ndarray, targets: np.ndarray) -> float:
    """Return the C of :data:`C_VALUES` with the best held-out accuracy; the smallest of equal ones.

    Args:
        features: (N, D).
        targets: (N,) classes.

    Raises:
        UserError: too few images to hold any out, or a single class.
    """
    held = validation_mask(targets)
    if not held.any() or len(np.unique(targets[~held])) < 2:
        raise UserError(f"linear probe: expected two classes and {_HELD_OUT} pictures of one of them to learn from")
    known: dict[int, float] = {}

    def accuracy(place: int) -> float:
        if place not in known:
            model = fit_classifier(features[~held], targets[~held], C_VALUES[place])
            known[place] = float((model.predict(features[held]) == targets[held]).mean())
        return known[place]

    last = len(C_VALUES) - 1
    places, step = range(0, last + 1, 16), 16
    while True:
        best = max(places, key=lambda place: (accuracy(place), -place))
        if step == 1:
            return float(C_VALUES[best])
        step //= 2
        places = range(max(0, best - step), min(last, best + step) + 1, step)


def validation_mask(targets: np.ndarray) -> np.ndarray:
    """Return (N,) whether an image is held out: one in five of each class, sampled with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(targets))
    held = np.zeros(len(targets), bool)
    for target in np.unique(targets):
        held[order[targets[order] == target][_HELD_OUT - 1 :: _HELD_OUT]] = True
    return held


def fit_classifier(features: np.ndarray, targets: np.ndarray, strength: float, name: str = "") -> Any:
    """Fit the classifier to (N, D) features and (N,) targets; report early stopping if ``name`` is given."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=_STEPS, random_state=0).fit(features, targets)
    if name and model.n_iter_.max() >= _STEPS:
        log_info(f"{name}: the classifier was stopped after {_STEPS} steps, as CLIP's are, before it had settled")
    return model


def _scores(model: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """Return (N, C) log probabilities."""
    scores = np.full((len(features), classes), _NEVER)
    scores[:, model.classes_] = model.predict_log_proba(features)
    return scores
