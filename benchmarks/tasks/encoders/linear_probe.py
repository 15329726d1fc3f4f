"""Linear probe: logistic regression on an image tower's features, regularization selected on a split of train.

Letters: N images, D width, C classes.

Source: section A.3 of the CLIP paper (arXiv 2103.00020): scikit-learn's L-BFGS with at most 1,000 steps; a search over
97 values of its strength from 1e-6 to 1e6 tries every 16th first and halves the step around the best.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.tasks.data.classification_sets import ClassificationSet, load_classification_set, log_skipped
from benchmarks.tasks.encoders import classification
from benchmarks.tasks.encoders.recall import TIE_TOLERANCE
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from benchmarks.tasks.registry import BenchmarkConfig, benchmark
from clips.errors import UserError
from clips.safe_text import log_info

if TYPE_CHECKING:
    from benchmarks.tasks.eval_model import EvalModel

C_VALUES = np.logspace(-6, 6, 97)  # values of C, the inverse of the regularization strength: eight per decade
DEFAULT_C = 1.0  # scikit-learn's
_HELD_OUT = 5  # one in this number of images per class is held out
_STEPS = 1000
IN_TRAIN, UNSEEN_ACCURACY = "images_in_train", "acc1_unseen"
"""Metrics of results with test images that are byte by byte in the training split."""


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(BenchmarkConfig):
    """A linear probe.

    Args:
        data: a directory of WebDataset shards, class directories or parquet files, with both splits.
        split: the test split.
        train_split: the training split.
    """

    split: str = "test"
    train_split: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split == self.train_split:
            raise UserError(f"train_split: expected a different one than 'split', got '{self.split}' for both")


def data_hash(config: LinearProbeConfig) -> str:
    """Return the SHA-256 of the images of both splits and their classes."""
    return hashlib.sha256("".join(images.hash for images in _load(config)).encode()).hexdigest()


@benchmark(
    "linear_probe",
    config=LinearProbeConfig,
    data_hash=data_hash,
    benchmark_type="classification",
    about="logistic regression on an image tower's features, trained on a train split",
    needs="tower",
)
def evaluate(model: EvalModel, config: LinearProbeConfig) -> Evaluation:
    """Compute the test accuracy of a classifier trained on the train split, and the selected C."""
    from importlib.metadata import version

    from benchmarks.tasks.encoders.embedding import image_embeddings

    train, test = _load(config)
    for part in (train, test):
        log_skipped(part)
    train_features = image_embeddings(model, train.open, train.images, train.image_hashes).cpu().numpy()
    test_features = image_embeddings(model, test.open, test.images, test.image_hashes).cpu().numpy()
    strength = select_c(train_features, train.targets)
    classifier = fit_classifier(train_features, train.targets, strength, config.name)
    scores = np.full((len(test_features), len(test.classes)), -1e9)  # of classes that train does not contain
    known_scores = classifier.predict_log_proba(test_features)
    # the smallest C, which is selected where all classify equally well, gives log probabilities so close that distinct
    # ones would count as ties: their multiples have the same order
    spread = np.ptp(known_scores, axis=1).max()
    scores[:, classifier.classes_] = known_scores / spread if 1e-9 < spread < 1 else known_scores
    items = classification.items_table(test, classification.class_ranks(iter([scores]), test.targets))
    learned = {*train.image_hashes}
    seen = np.array([content in learned for content in test.image_hashes])
    selected_c = MetricSpec(label="C", aggregation=None, scale=1.0, higher_is_better=None)
    metrics = classification.metrics(items, test) | {"C": compute_metric(items, selected_c, strength)}
    if seen.any():
        items = items.assign(in_train=seen.astype(float), acc1_unseen=items["acc1"].where(~seen))
        in_train = MetricSpec(label="test images in train", columns=("in_train",), higher_is_better=None)
        unseen = MetricSpec(label="acc@1, images not in train", columns=(UNSEEN_ACCURACY,))
        metrics |= {
            IN_TRAIN: compute_metric(items, in_train),
            UNSEEN_ACCURACY: compute_metric(items, unseen),
        }
        log_info(
            f"{config.name}: {seen.sum()} of {len(seen)} test images are byte by byte in '{config.train_split}', which "
            f"the probe learns; acc@1 {100 * items['acc1'].mean():.1f}, without them "
            f"{100 * items['acc1_unseen'].mean():.1f}"
        )
    return Evaluation(
        metrics=metrics,
        primary=classification.PRIMARY,
        missing_metrics=classification.undefined_metrics(test),
        protocol={"task": "linear probe"}
        | classification.data_settings(test, config)
        | {
            "train_hash": train.hash,
            "train_split": config.train_split,
            "train_images": len(train.images),
            "features": "unit vectors of the image embedding",
            "classifier": f"logistic regression, L2, L-BFGS, at most {_STEPS} steps",
            "selected_C": _describe_selection(train.targets),
            "ties": f"expected value over random order of classes within {TIE_TOLERANCE}",
            "scorer": "benchmarks.linear_probe 1",
            "scikit-learn": version("scikit-learn"),
        }
        | model.tower.settings,
        items=items,
    )


def _load(config: LinearProbeConfig) -> tuple[ClassificationSet, ClassificationSet]:
    """Return train and test; ``limit`` applies only to the test images."""
    train = load_classification_set(config.data, split=config.train_split)
    test = load_classification_set(config.data, split=config.split, limit=config.limit)
    # a list of names next to both splits fits both, whatever their directories are
    for here, there in ((train.own_classes, test.own_classes), (train.classes, test.classes)):
        if list(here) != list(there):
            only = next((name for name in [*here, *there] if (name in here) != (name in there)), None)
            details = f" (only one of them has '{only}')" if only else ""
            raise UserError(
                f"{config.data}: '{config.train_split}' and '{config.split}' have different classes{details}"
            )
    return train, test


def select_c(features: np.ndarray, targets: np.ndarray) -> float:
    """Return the C of :data:`C_VALUES` with the best held-out accuracy for (N, D) features and (N,) classes.

    Of equal ones it is the smallest. Of one image per class none can be held out, and it is `DEFAULT_C`.

    Raises:
        UserError: a single class.
    """
    if len(np.unique(targets)) < 2:
        raise UserError("linear probe: expected training images of at least two classes")
    every = _one_in(targets)
    if every is None:
        return DEFAULT_C
    held_out = validation_mask(targets, every)
    known: dict[int, float] = {}

    def accuracy(index: int) -> float:
        if index not in known:
            model = fit_classifier(features[~held_out], targets[~held_out], C_VALUES[index])
            known[index] = float((model.predict(features[held_out]) == targets[held_out]).mean())
        return known[index]

    last = len(C_VALUES) - 1
    candidates, step = range(0, last + 1, 16), 16
    while True:
        best = max(candidates, key=lambda index: (accuracy(index), -index))
        if step == 1:
            return float(C_VALUES[best])
        step //= 2
        candidates = range(max(0, best - step), min(last, best + step) + 1, step)


def _one_in(targets: np.ndarray) -> int | None:
    """Of how many images of a class one is held out: of five, or of two if no class has five; None if none has two."""
    largest = np.unique(targets, return_counts=True)[1].max()
    return next((every for every in (_HELD_OUT, 2) if largest >= every), None)


def _describe_selection(targets: np.ndarray) -> str:
    if (every := _one_in(targets)) is None:
        return f"{DEFAULT_C:g}, because train has one image per class"
    selection = f"best of 1e-6 to 1e6, 8 per decade, by halving steps, on 1 in {every} images of train"
    return f"{selection}; then refitted on all of train"


def validation_mask(targets: np.ndarray, every: int = _HELD_OUT) -> np.ndarray:
    """Return (N,) whether an image is held out: one in ``every`` of each class, sampled with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(targets))
    held = np.zeros(len(targets), bool)
    for target in np.unique(targets):
        held[order[targets[order] == target][every - 1 :: every]] = True
    return held


def fit_classifier(features: np.ndarray, targets: np.ndarray, strength: float, name: str = "") -> Any:
    """Fit the classifier to (N, D) features and (N,) targets; report early stopping if ``name`` is given."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=_STEPS, random_state=0).fit(features, targets)
    if name and model.n_iter_.max() >= _STEPS:
        log_info(f"{name}: the classifier stopped after {_STEPS} steps, CLIP's limit, before convergence")
    return model
