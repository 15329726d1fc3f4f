"""Correspondence: whether the patch at an object is most similar to a patch of the same object in another image.

As in the evaluation of semantic correspondence (SPair-71k, arXiv 1908.10543; of frozen features: El Banani et al. 2024,
arXiv 2404.08636), nothing is trained: the most similar patch by cosine is the answer. Here objects have boxes instead
of keypoints: the query is the patch nearest to the center of a box, and a hit is in the box of the object that has the
same phrase in another image. The patch tokens are those that a LLaVA reads by default (`image_tower.PatchTokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.phrase_boxes import Phrase, PhraseSet, load_benchmark_phrases
from benchmarks.tasks.encoders.pointing import VisibleRegion, pointing_hit
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, hash_order, thumbnail
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.encoders.embedding import DualEncoder
    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

METRICS = {
    "correspondence": MetricSpec(label="hits", columns=("hit",)),
    "chance": MetricSpec(label="hits by chance", columns=("chance",), higher_is_better=None),
    "other_object": MetricSpec(label="hits of another object", columns=("hit_other",), higher_is_better=None),
}
PRIMARY = ("correspondence",)


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
    """Compute the hits of a model's image tower; rank 0 computes the features."""

    data = load_benchmark_phrases(config)
    pairs = pair_objects(data.phrases)
    if not pairs:
        raise UserError(f"{data.source}: expected a phrase that occurs in two images, found none")
    if not model.processes.is_main:
        return None
    tower = model.patch_tower
    needed = {data.phrases[number].image for pair in pairs for number in pair}
    features = patch_features(tower, data, [image for image in data.images if image in needed])
    items, grid = pair_items(features, data.phrases, pairs), next(iter(features.values())).patches.shape
    baselines = {CHANCE: {"hit": items["chance"].to_numpy()}}
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items()},
        primary=PRIMARY,
        protocol={
            "task": "correspondence of patches of the same object in two images",
            "benchmark": config.name,
            "data_hash": data.hash,
            "images": len(data.images),
            "pairs": len(pairs),
            **full_size_entry(len(data.images), data.available),
            "pairing": "each object with the next image of the same phrase, in the order of their hashes",
            "point": "center of the most similar patch (cosine); the query is the patch nearest to the box's center",
            "scorer": "benchmarks.correspondence 1",
            **tower.settings,
            "input_patch_grid": f"{grid[0]} x {grid[1]}",
        },
        items=items,
    )


def pair_objects(phrases: Sequence[Phrase]) -> list[tuple[int, int]]:
    """(query, target) indices of phrases: each object with the next one of the same phrase, the last with the first.

    The order is that of the hashes of their images. Phrases of a single image, and a second object of the same phrase
    in an image, are left out.
    """
    groups: dict[str, dict[str, int]] = {}
    for number, phrase in enumerate(phrases):
        groups.setdefault(phrase.text, {}).setdefault(phrase.image, number)
    pairs = []
    for group in groups.values():
        order = [group[image] for image in hash_order(group)]
        pairs += [] if len(order) < 2 else list(zip(order, order[1:] + order[:1], strict=True))
    return pairs


class PatchFeatures(NamedTuple):
    """An image's (h, w, D) unit patch tokens, its visible region, its size and its thumbnail."""

    patches: torch.Tensor
    region: VisibleRegion
    size: tuple[int, int]
    thumbnail: bytes


def pair_items(
    features: Mapping[str, PatchFeatures], phrases: Sequence[Phrase], pairs: Sequence[tuple[int, int]]
) -> pd.DataFrame:
    """Return the items of `pair_objects`; ``features`` are those of each image by its reference."""
    import pandas as pd

    def query(number: int) -> torch.Tensor:
        phrase = phrases[number]
        found, region, size, _ = features[phrase.image]
        left, top, right, bottom = phrase.within(*size)
        x, y = region.centers(found.shape[1], found.shape[0])
        row, column = np.abs(y - (top + bottom) / 2).argmin(), np.abs(x - (left + right) / 2).argmin()
        return found[int(row), int(column)]

    shown = {image: feature.thumbnail for image, feature in features.items()}
    rows: list[dict[str, Any]] = []
    for place, (source, target) in enumerate(pairs):
        phrase, origin = phrases[target], phrases[source]
        other = next((each for each, _ in (*pairs[place:], *pairs[:place]) if phrases[each].text != phrase.text), None)
        found, region, size, _ = features[phrase.image]
        inside = region.inside(phrase.within(*size), *found.shape[:2])
        hit = pointing_hit((found @ query(source)).cpu().numpy(), inside)
        rows.append(
            {
                "item": f"{origin.image}#{source}",
                "image": phrase.image,
                "direction": "",
                "category": "",
                "question": f"where is the {phrase.text} of {origin.image}?",
                "prediction": f"{100 * hit:.0f} % of the most similar patches are in the box",
                "target": phrase.text,
                "score": hit,
                "thumbnail": shown.pop(phrase.image, None),
                "hit": hit,
                "chance": float(inside.mean()),
                "hit_other": np.nan if other is None else pointing_hit((found @ query(other)).cpu().numpy(), inside),
            }
        )
    return pd.DataFrame(rows)


def patch_features(tower: DualEncoder, data: PhraseSet, images: Sequence[str]) -> dict[str, PatchFeatures]:
    """Compute the features of some images of ``data``."""
    import torch

    from clips.commandline.progress import progress_iter

    features = {}
    with torch.inference_mode():
        for name in progress_iter(images, "computing patch tokens"):
            image = data.open(name)
            pixels = tower.preprocess(image)[None].to(tower.device, getattr(torch, tower.precision))
            found = tower.model.encode_patches(pixels)[0].float()
            patches = torch.nn.functional.normalize(found, dim=-1).cpu()
            region = VisibleRegion.of(tower.preprocessing, *image.size)
            features[name] = PatchFeatures(patches, region, image.size, thumbnail(image))
    return features
