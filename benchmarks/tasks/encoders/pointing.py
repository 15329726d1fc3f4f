"""Pointing game: whether an encoder's similarity map points at the object that a phrase names.

The *pointing game* (Zhang et al. 2016, arXiv 1608.00507): the map's maximum, the center of the most similar patch, is a
hit if it is in the box of the object. Further metrics: the area under the ROC curve of the map for points inside and
outside the box, and both for the mean of all phrases, a map without knowledge of the phrase.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.phrase_boxes import Box, Phrase, PhraseSet, load_benchmark_phrases
from benchmarks.tasks.encoders.map_overlay import MAP_SIZE, VisibleRegion, overlay_map, upsample_map
from benchmarks.tasks.evaluation import MAX_THUMBNAILS, Evaluation, MetricSpec, compute_metric, thumbnail
from benchmarks.tasks.item_sampling import first_per_image, hash_order

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig

NUM_SAVED_MAPS = 24  # phrases, each of another image, whose maps are stored
TIE = 1e-6
METRICS = {
    "pointing": MetricSpec(label="hits", columns=("hit",)),
    "auc": MetricSpec(label="AUC", columns=("auc",)),
    "chance": MetricSpec(label="hits by chance", columns=("chance",), higher_is_better=None),
    "pointing_any": MetricSpec(label="hits, all phrases at once", columns=("hit_any",), higher_is_better=None),
    "auc_any": MetricSpec(label="AUC, all phrases at once", columns=("auc_any",), higher_is_better=None),
}
PRIMARY = ("pointing", "auc")


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
    """Compute hits and areas of a model's encoder. The first of several processes computes the maps."""
    from benchmarks.tasks.encoders.cached_embeddings import text_embeddings
    from benchmarks.tasks.encoders.embedding import encoder_settings

    data = load_benchmark_phrases(config)
    texts = text_embeddings(row, [phrase.text for phrase in data.phrases])
    if not row.processes.is_main:
        return None
    items, places = _items(row, data, texts)
    blind = {CHANCE: _guessed(items)}
    return Evaluation(
        metrics={name: compute_metric(items, spec, blind=blind) for name, spec in METRICS.items()},
        primary=PRIMARY,
        protocol={
            "task": "pointing by the similarity of a phrase with each place of a picture",
            "benchmark": config.name,
            "data_hash": data.hash,
            "pictures": len(data.images),
            "phrases": len(data.phrases),
            **full_size_entry(len(data.images), data.available),
            "map": "cosine; each place goes through the pooling alone (MaskCLIP's value path)",
            "point": f"the middle of the most similar place, the expected value over those within {TIE} of it",
            "area": f"over {MAP_SIZE} x {MAP_SIZE} points of what the model sees, bilinear between the middles "
            f"of places",
            "phrase_text": "as given; no prompt around it",
            "scorer": "benchmarks.pointing 1",
            **row.encoder.how,
            "input_places": places,
            **encoder_settings(row.encoder),
        },
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of images, phrases and boxes."""
    return load_benchmark_phrases(config).hash


def _items(row: EvalModel, data: PhraseSet, texts: torch.Tensor) -> tuple[pd.DataFrame, str]:
    """Return the items, and the patch grid of an image, ``"7 x 7"``."""
    import pandas as pd
    import torch

    from benchmarks.tasks.encoders.patch_embeddings import patch_embeddings, similarity_maps
    from clips.commandline.progress import progress_iter

    encoder = row.encoder
    any_phrase = torch.nn.functional.normalize(texts.mean(dim=0, keepdim=True), dim=-1)
    names = [f"{phrase.image}#{number}" for number, phrase in enumerate(data.phrases)]
    images = {name: phrase.image for name, phrase in zip(names, data.phrases, strict=True)}
    drawn = set(first_per_image(hash_order(names), images, NUM_SAVED_MAPS))
    kept = {images[name] for name in drawn} | set(hash_order(data.images)[:MAX_THUMBNAILS])
    asked: dict[str, list[int]] = {}
    for number, phrase in enumerate(data.phrases):
        asked.setdefault(phrase.image, []).append(number)
    rows: list[dict[str, Any]] = []
    grid = ""
    with torch.inference_mode():
        for image in progress_iter(list(data.images), "looking at images"):
            picture, numbers = data.open(image), asked[image]
            pixels = encoder.preprocess(picture)[None].to(encoder.device, getattr(torch, encoder.precision))
            places = patch_embeddings(encoder.model, pixels)[0]
            grid = f"{places.shape[0]} x {places.shape[1]}"
            maps = similarity_maps(places, torch.cat([texts[numbers], any_phrase]))
            seen = VisibleRegion.of(encoder.how, *picture.size)
            for place, number in enumerate(numbers):
                phrase = data.phrases[number]
                box = phrase.within(*picture.size)
                drawing = overlay_map(picture, upsample_map(maps[place]), seen, box) if names[number] in drawn else None
                rows.append(
                    {
                        "item": names[number],
                        **_item(phrase, box, maps[place], maps[-1], seen),
                        "thumbnail": thumbnail(picture) if place == 0 and image in kept else None,
                        "map": None if drawing is None else thumbnail(drawing),
                    }
                )
    return pd.DataFrame(rows), grid


def _guessed(items: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the hits of a random patch, and the area of a random map."""
    return {"hit": items["chance"].to_numpy(), "auc": items["auc"].where(items["auc"].isna(), 0.5).to_numpy()}


def _item(
    phrase: Phrase, box: Box, found: torch.Tensor, any_phrase: torch.Tensor, seen: VisibleRegion
) -> dict[str, Any]:
    """Return the columns of one phrase; ``found`` and ``any_phrase`` are (h, w) maps."""
    inside = seen.inside(box, *found.shape)
    points = seen.inside(box, MAP_SIZE, MAP_SIZE)
    row, column = divmod(int(found.argmax()), found.shape[1])
    x, y = (side[place] for side, place in zip(seen.middles(*found.shape), (column, row), strict=True))
    left, top, right, bottom = (round(100 * side) for side in box)
    hit = pointing_hit(found.cpu().numpy(), inside)
    return {
        "image": phrase.image,
        "direction": "",
        "category": "",
        "question": phrase.text,
        "prediction": f"{100 * x:.0f} % from the left, {100 * y:.0f} % from the top",
        "target": f"{left} to {right} % from the left, {top} to {bottom} % from the top",
        "score": hit,
        "hit": hit,
        "auc": pointing_auc(upsample_map(found), points),
        "chance": float(inside.mean()),
        "hit_any": pointing_hit(any_phrase.cpu().numpy(), inside),
        "auc_any": pointing_auc(upsample_map(any_phrase), points),
    }


def pointing_hit(found: np.ndarray, inside: np.ndarray) -> float:
    """Return the ratio of the most similar patches, within ``TIE`` of the first, whose center is in the box.

    Args:
        found: (h, w) map.
        inside: (h, w) whether a patch's center is in the box.
    """
    return float(inside[found >= found.max() - TIE].mean())


def pointing_auc(found: np.ndarray, inside: np.ndarray) -> float:
    """Return the probability that a point inside is higher than one outside, ties counting half; NaN if undefined.

    Args:
        found: (R, R) map.
        inside: (R, R) whether a point is in the box.
    """
    from scipy.stats import rankdata

    within, without = int(inside.sum()), int((~inside).sum())
    if not within or not without:
        return float("nan")
    ranks = rankdata((found / TIE).round().ravel())[inside.ravel()]  # differences due to rounding are ties
    return float((ranks.sum() - within * (within + 1) / 2) / (within * without))
