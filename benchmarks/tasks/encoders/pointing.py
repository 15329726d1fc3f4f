"""Pointing game: whether an encoder's similarity map points at the object that a phrase names.

The *pointing game* (Zhang et al. 2016, arXiv 1608.00507): the map's maximum, the center of the most similar patch, is a
hit if it is in the box of the object. Further metrics: the area under the ROC curve of the map for points inside and
outside the box, and both for the mean of all phrases, a map without knowledge of the phrase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.phrase_boxes import Box, Phrase, PhraseSet, load_benchmark_phrases
from benchmarks.tasks.evaluation import (
    MAX_THUMBNAILS,
    Evaluation,
    MetricSpec,
    compute_metric,
    first_per_image,
    hash_order,
    thumbnail,
)

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig


MAP_SIZE = 64
"""Points per axis at which a map is drawn and its area measured, independent of the number of patches."""

_DARKEST = 0.25
_LINE = (255, 170, 0)


@dataclass(frozen=True)
class VisibleRegion:
    """The visible region of an image: left, top, right, bottom as ratios of the image size.

    With padding to a square it extends beyond the image.
    """

    left: float
    top: float
    right: float
    bottom: float

    @staticmethod
    def of(preprocessing: Entries, width: int, height: int) -> VisibleRegion:
        """Compute it from the resize mode in the encoder's directory."""
        sides = {"shortest": min(width, height), "longest": max(width, height)}
        side = sides.get(str(preprocessing["input_resize"]))
        if side is None:  # squashed
            return VisibleRegion(0.0, 0.0, 1.0, 1.0)
        wide, tall = side / width, side / height
        return VisibleRegion((1 - wide) / 2, (1 - tall) / 2, (1 + wide) / 2, (1 + tall) / 2)

    def centers(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (columns,) x and (rows,) y of the patch centers, as ratios of the image size."""
        x = self.left + (np.arange(columns) + 0.5) / columns * (self.right - self.left)
        return x, self.top + (np.arange(rows) + 0.5) / rows * (self.bottom - self.top)

    def inside(self, box: tuple[float, float, float, float], rows: int, columns: int) -> np.ndarray:
        """Return (rows, columns) whether each patch center is in ``box``: left, top, right, bottom as ratios."""
        x, y = self.centers(rows, columns)
        return ((y >= box[1]) & (y <= box[3]))[:, None] & ((x >= box[0]) & (x <= box[2]))[None]


def upsample_map(found: Tensor) -> np.ndarray:
    """Interpolate an (h, w) map to (MAP_SIZE, MAP_SIZE), bilinear between patch centers."""
    from torch.nn.functional import interpolate

    return interpolate(found[None, None].float(), size=(MAP_SIZE, MAP_SIZE), mode="bilinear")[0, 0].cpu().numpy()


def overlay_map(
    image: Image, found: np.ndarray, visible: VisibleRegion, box: tuple[float, float, float, float] | None = None
) -> Image:
    """The image with brightness by similarity, scaled from this map's minimum to its maximum.

    Args:
        image: RGB.
        found: (R, R) similarity map over the visible region.
        visible: the visible region; the image is darkest outside it.
        box: left, top, right, bottom of the target, as ratios of the image size, drawn as a line.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    width, height = image.size
    span = float(found.max() - found.min())
    light = _DARKEST + (1 - _DARKEST) * (found - found.min()) / span if span > 0 else np.full(found.shape, _DARKEST)
    left, right = round(visible.left * width), round(visible.right * width)
    top, bottom = round(visible.top * height), round(visible.bottom * height)
    mask = Images.new("L", image.size, round(255 * _DARKEST))
    resized = Images.fromarray((light * 255).round().astype(np.uint8)).resize(
        (max(1, right - left), max(1, bottom - top)), Images.Resampling.BILINEAR
    )
    mask.paste(resized, (left, top))
    shown = Images.composite(image, Images.new("RGB", image.size), mask)
    if box is not None:
        corners = (box[0] * width, box[1] * height, box[2] * width - 1, box[3] * height - 1)
        ImageDraw.Draw(shown).rectangle(corners, outline=_LINE, width=max(1, round(min(width, height) / 80)))
    return shown


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


def evaluate(model: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
    """Compute hits and areas of a model's encoder; rank 0 computes the maps."""
    from benchmarks.tasks.encoders.cached_embeddings import text_embeddings

    data = load_benchmark_phrases(config)
    texts = text_embeddings(model, [phrase.text for phrase in data.phrases])
    if not model.processes.is_main:
        return None
    items, grid = _items(model, data, texts)
    baselines = {CHANCE: _chance_columns(items)}
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items()},
        primary=PRIMARY,
        protocol={
            "task": "pointing by the similarity of a phrase with each patch of an image",
            "benchmark": config.name,
            "data_hash": data.hash,
            "images": len(data.images),
            "phrases": len(data.phrases),
            **full_size_entry(len(data.images), data.available),
            "map": "cosine; each patch is pooled alone (MaskCLIP's value path)",
            "point": f"center of the most similar patch, expected value over those within {TIE} of it",
            "area": f"over {MAP_SIZE} x {MAP_SIZE} points of the visible region, bilinear between patch centers",
            "phrase_text": "unchanged, without a prompt",
            "scorer": "benchmarks.pointing 1",
            **model.encoder.settings,
            "input_patch_grid": grid,
        },
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of images, phrases and boxes."""
    return load_benchmark_phrases(config).hash


def _items(model: EvalModel, data: PhraseSet, texts: torch.Tensor) -> tuple[pd.DataFrame, str]:
    """Return the items, and the patch grid of an image, ``"7 x 7"``."""
    import pandas as pd
    import torch

    from benchmarks.tasks.encoders.patch_embeddings import patch_embeddings, similarity_maps
    from clips.commandline.progress import progress_iter

    encoder = model.encoder
    any_phrase = torch.nn.functional.normalize(texts.mean(dim=0, keepdim=True), dim=-1)
    names = [f"{phrase.image}#{number}" for number, phrase in enumerate(data.phrases)]
    images = {name: phrase.image for name, phrase in zip(names, data.phrases, strict=True)}
    with_map = set(first_per_image(hash_order(names), images, NUM_SAVED_MAPS))
    with_thumbnail = {images[name] for name in with_map} | set(hash_order(data.images)[:MAX_THUMBNAILS])
    phrases_of: dict[str, list[int]] = {}
    for number, phrase in enumerate(data.phrases):
        phrases_of.setdefault(phrase.image, []).append(number)
    rows: list[dict[str, Any]] = []
    grid = ""
    with torch.inference_mode():
        for name in progress_iter(list(data.images), "computing similarity maps"):
            image, numbers = data.open(name), phrases_of[name]
            pixels = encoder.preprocess(image)[None].to(encoder.device, getattr(torch, encoder.precision))
            patches = patch_embeddings(encoder.model, pixels)[0]
            grid = f"{patches.shape[0]} x {patches.shape[1]}"
            maps = similarity_maps(patches, torch.cat([texts[numbers], any_phrase]))
            visible = VisibleRegion.of(encoder.preprocessing, *image.size)
            for index, number in enumerate(numbers):
                phrase = data.phrases[number]
                box = phrase.within(*image.size)
                is_drawn = names[number] in with_map
                overlay = thumbnail(overlay_map(image, upsample_map(maps[index]), visible, box)) if is_drawn else None
                rows.append(
                    {
                        "item": names[number],
                        **_item(phrase, box, maps[index], maps[-1], visible),
                        "thumbnail": thumbnail(image) if index == 0 and name in with_thumbnail else None,
                        "map": overlay,
                    }
                )
    return pd.DataFrame(rows), grid


def _chance_columns(items: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the hits of a random patch, and the area of a random map."""
    return {"hit": items["chance"].to_numpy(), "auc": items["auc"].where(items["auc"].isna(), 0.5).to_numpy()}


def _item(
    phrase: Phrase, box: Box, found: torch.Tensor, any_phrase: torch.Tensor, visible: VisibleRegion
) -> dict[str, Any]:
    """Return the columns of one phrase; ``found`` and ``any_phrase`` are (h, w) maps."""
    inside = visible.inside(box, *found.shape)
    points = visible.inside(box, MAP_SIZE, MAP_SIZE)
    row, column = divmod(int(found.argmax()), found.shape[1])
    x, y = (centers[index] for centers, index in zip(visible.centers(*found.shape), (column, row), strict=True))
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

    ``found`` is an (h, w) map, and ``inside`` (h, w) whether a patch's center is in the box.
    """
    return float(inside[found >= found.max() - TIE].mean())


def pointing_auc(found: np.ndarray, inside: np.ndarray) -> float:
    """Return the probability that a point inside is higher than one outside, ties counting half; NaN if undefined.

    ``found`` is an (R, R) map, and ``inside`` (R, R) whether a point is in the box.
    """
    from scipy.stats import rankdata

    within, without = int(inside.sum()), int((~inside).sum())
    if not within or not without:
        return float("nan")
    ranks = rankdata((found / TIE).round().ravel())[inside.ravel()]  # differences due to rounding are ties
    return float((ranks.sum() - within * (within + 1) / 2) / (within * without))
