"""Simulate the intervals of alignment and correspondence over images, and of the report's correlations over encoders.

    python scripts/check_predictors.py --trials 500                  (about ten minutes on one core)
    python scripts/check_predictors.py --trials 500 --scenes DIRECTORY --encoder DIRECTORY    (correspondence alone)

Prints % of the 95 % intervals that contain the true value. Alignment: the true value of CKA is that of 6,000 images, of
the others their mean over the trials (both depend on the number of images). The interval of the Gromov-Wasserstein
distance is that of a delete-half jackknife. Correlations: normal pairs; with noise, a fifth of the variance of the
measured scores is noise, and coverage is stated of the correlation of the scores without noise (`true`) and of that of
the measured ones (`measured`). Correspondence: images drawn from shards of `clips scenes`, with an encoder's features;
the true value is the mean over the trials.
"""

from __future__ import annotations

import argparse
import itertools
import math

import numpy as np
from check_statistics import percent

from benchmarks.report.correlation import correlation, leave_one_out
from benchmarks.results.statistics import confidence_interval
from benchmarks.tasks.data.phrase_boxes import load_benchmark_phrases
from benchmarks.tasks.encoders.correspondence import METRICS, pair_items, pair_objects, patch_features
from benchmarks.tasks.encoders.feature_similarity import (
    centered_distances,
    debiased_cka,
    distance_interval,
    gromov_wasserstein,
    neighbor_overlap,
)
from benchmarks.tasks.encoders.image_tower import load_image_tower
from benchmarks.tasks.evaluation import compute_metric
from benchmarks.tasks.run_config import BenchmarkConfig

_SHARED = {"independent": 0.0, "weak": 0.4, "strong": 1.5}
_NEIGHBORS = 10


def sample_features(
    shared: float, clusters: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of unit vectors (count, 24), (count, 32) of a latent variable of 8 dimensions, in groups if asked.

    Args:
        shared: weight of the latent variable, relative to the noise.
        clusters: number of groups of similar items; 0 for none.
        count: number of items.
        rng: samples the items; the maps from the latent variable are fixed.
    """
    fixed = np.random.default_rng(5)
    maps = [fixed.normal(size=(8, width)) / math.sqrt(8) for width in (24, 32)]
    latent = rng.normal(size=(count, 8))
    if clusters:
        latent = 0.3 * latent + fixed.normal(size=(clusters, 8))[rng.integers(0, clusters, count)]
    found = [shared * latent @ each + rng.normal(size=(count, each.shape[1])) * 0.7 + 0.3 for each in maps]
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in found)
    return first, second


def _contains(scores: np.ndarray, formula: str) -> tuple[float, float, float]:
    found = confidence_interval(formula, {"score": scores}, ("score",), range(len(scores)))
    low, high = (math.nan if end is None else end for end in (found.low, found.high))
    return float(scores.mean()), low, high


def check_alignment(trials: int, count: int) -> None:
    """Print coverages over images."""
    for (name, shared), clusters in itertools.product(_SHARED.items(), (0, 12)):
        rng = np.random.default_rng(7)
        truth = float(debiased_cka(*sample_features(shared, clusters, 6000, rng)).mean())
        found: dict[str, list[tuple[float, float, float]]] = {"cka": [], "knn": [], "gw": []}
        for trial in range(trials):
            features = sample_features(shared, clusters, count, rng)
            found["cka"].append(_contains(debiased_cka(*features), "mean_of_scores"))
            found["knn"].append(_contains(neighbor_overlap(*features, k=_NEIGHBORS)[1], "mean_of_scores"))
            if trial < trials // 5:
                structures = [centered_distances(each) for each in features]
                found["gw"].append((gromov_wasserstein(*structures), *distance_interval(*structures)))
        texts = []
        for metric, rows in found.items():
            values, low, high = np.array(rows).T
            target = truth if metric == "cka" else values.mean()
            inside = float(((low <= target) & (target <= high)).mean())
            texts.append(f"{metric} {target:.3f}: {percent(inside, len(rows))} (width {np.mean(high - low):.3f})")
        print(f"{count} images, {name}, {clusters} clusters |", " | ".join(texts), flush=True)


def check_correspondence(trials: int, scenes: str, encoder: str) -> None:
    """Print coverages over images drawn from ``scenes``."""
    pool = load_benchmark_phrases(BenchmarkConfig(name="correspondence", data=scenes))
    features = patch_features(load_image_tower(encoder, "cpu", "float32", for_llava=True), pool, pool.images)
    for count in (30, 100, 300):
        rng, rows = np.random.default_rng(11), []
        for _ in range(trials):
            drawn = set(rng.choice(pool.images, count, replace=False).tolist())
            phrases = [phrase for phrase in pool.phrases if phrase.image in drawn]
            found = compute_metric(pair_items(features, phrases, pair_objects(phrases)), METRICS["correspondence"])
            rows.append((found.value, found.ci_low, found.ci_high))
        values, low, high = np.array(rows, dtype=float).T
        inside = float(((low <= values.mean()) & (values.mean() <= high)).mean())
        width = f"width {np.mean(high - low):.3f}, of the values {2 * 1.96 * values.std():.3f}"
        print(f"{count} images, correspondence {values.mean():.3f}: {percent(inside, trials)} ({width})", flush=True)


def check_correlations(trials: int) -> None:
    """Print coverages of Spearman's correlation and of the ratio of correctly ordered pairs over encoders."""
    for count, true, noise in itertools.product((6, 12, 24), (0.0, 0.5, 0.8, 0.95), (0.0, 0.2)):
        rng = np.random.default_rng(3)
        measured = true * (1 - noise)
        hits: dict[str, list[bool]] = {
            name: [] for name in ("rho true", "rho measured", "pairs true", "pairs measured")
        }
        for _ in range(trials):
            x, y = rng.multivariate_normal([0, 0], [[1, measured], [measured, 1]], count).T
            rho, pairs = correlation("spearman", x, y), leave_one_out(x, y)
            for name, value in (("true", true), ("measured", measured)):
                if rho is not None:
                    hits[f"rho {name}"].append(rho.low <= 6 / math.pi * math.asin(value / 2) <= rho.high)
                hits[f"pairs {name}"].append(
                    pairs.ordered_low <= 0.5 + math.asin(value) / math.pi <= pairs.ordered_high
                )
        texts = [f"{name} {percent(float(np.mean(each)), trials)}" for name, each in hits.items()]
        print(f"{count} encoders, correlation {true}, noise {noise} |", " | ".join(texts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--only", choices=("alignment", "correlations"))
    parser.add_argument("--scenes", help="shards of `clips scenes`: check correspondence, and nothing else")
    parser.add_argument("--encoder", help="the encoder whose features --scenes uses")
    options = parser.parse_args()
    if bool(options.scenes) != bool(options.encoder):
        parser.error("expected --scenes and --encoder together")
    if options.scenes:
        check_correspondence(options.trials, options.scenes, options.encoder)
        return
    if options.only != "correlations":
        for count in (100, 300):
            check_alignment(options.trials, count)
    if options.only != "alignment":
        check_correlations(options.trials)


if __name__ == "__main__":
    main()
