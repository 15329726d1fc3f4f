"""Correspondence: whether the patch at an object is most similar to a patch of the same object in another image.

As in the evaluation of semantic correspondence (SPair-71k, arXiv 1908.10543; of frozen features: El Banani et al. 2024,
arXiv 2404.08636), nothing is trained: the most similar patch by cosine is the answer. Here objects have boxes instead
of keypoints: the query is the patch nearest to the center of a box, and a hit is in the box of the object that has the
same phrase in another image. The patch tokens are those that a LLaVA reads by default (`image_tower.PatchTokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    items, grid = _items(model, data, pairs)
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
            "input_patch_grid": grid,
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


def _items(model: EvalModel, data: PhraseSet, pairs: Sequence[tuple[int, int]]) -> tuple[pd.DataFrame, str]:
    """Return the items, and the patch grid of an image, ``"7 x 7"``."""
    import pandas as pd

    needed = {data.phrases[number].image for pair in pairs for number in pair}
    patches, regions, shown = _patches(model, data, [image for image in data.images if image in needed])
    sizes = {image: region[1] for image, region in regions.items()}
    visible = {image: region[0] for image, region in regions.items()}

    def query(number: int) -> torch.Tensor:
        phrase = data.phrases[number]
        left, top, right, bottom = phrase.within(*sizes[phrase.image])
        found = patches[phrase.image]
        x, y = visible[phrase.image].centers(found.shape[1], found.shape[0])
        row, column = np.abs(y - (top + bottom) / 2).argmin(), np.abs(x - (left + right) / 2).argmin()
        return found[int(row), int(column)]

    rows: list[dict[str, Any]] = []
    for place, (source, target) in enumerate(pairs):
        phrase, origin = data.phrases[target], data.phrases[source]
        other = next(
            (each for each, _ in (*pairs[place:], *pairs[:place]) if data.phrases[each].text != phrase.text), None
        )
        found = patches[phrase.image]
        inside = visible[phrase.image].inside(phrase.within(*sizes[phrase.image]), *found.shape[:2])
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
    grid = next(iter(patches.values())).shape
    return pd.DataFrame(rows), f"{grid[0]} x {grid[1]}"


def _patches(
    model: EvalModel, data: PhraseSet, images: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[VisibleRegion, tuple[int, int]]], dict[str, bytes]]:
    """Return each image's (h, w, D) unit patch tokens, its visible region and size, and its thumbnail."""
    import torch

    from clips.commandline.progress import progress_iter

    tower = model.patch_tower
    patches, regions, shown = {}, {}, {}
    with torch.inference_mode():
        for name in progress_iter(images, "computing patch tokens"):
            image = data.open(name)
            pixels = tower.preprocess(image)[None].to(tower.device, getattr(torch, tower.precision))
            found = tower.model.encode_patches(pixels)[0].float()
            patches[name] = torch.nn.functional.normalize(found, dim=-1).cpu()
            regions[name] = VisibleRegion.of(tower.preprocessing, *image.size), image.size
            shown[name] = thumbnail(image)
    return patches, regions, shown
