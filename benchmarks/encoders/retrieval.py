"""Zero-shot retrieval under the protocol of COCO and Flickr30K: several captions a picture, both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data.caption_sets import CaptionSet, load_caption_set
from benchmarks.encoders.recall import CUTS, TIE, Ranks, ranks
from benchmarks.outcome import MetricSpec, Outcome, measure, thumbnail
from benchmarks.protocol import Entries

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.config import BenchmarkConfig
    from benchmarks.models import Row

_ARROWS = {"t2i": "T→I", "i2t": "I→T"}
_RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in CUTS)
PRIMARY = ("t2i_r1", "i2t_r1", "mean_r1")
METRICS: dict[str, MetricSpec] = {
    **{
        f"{direction}_r{k}": MetricSpec(label=f"{arrow} R@{k}", columns=(f"{direction}_r{k}",))
        for direction, arrow in _ARROWS.items()
        for k in CUTS
    },
    "mean_r1": MetricSpec(label="mean R@1", columns=("i2t_r1", "t2i_r1")),
    "mean_recall": MetricSpec(label="mean recall", columns=_RECALLS),
    **{
        f"{direction}_median_rank": MetricSpec(
            label=f"{arrow} median rank",
            formula="median",
            columns=(f"{direction}_rank",),
            scale=1.0,
            higher_is_better=False,
        )
        for direction, arrow in _ARROWS.items()
    },
}


def evaluate(row: Row, config: BenchmarkConfig) -> Outcome:
    """Recall at 1, 5 and 10, median rank and means, of a row's encoder."""
    from benchmarks.encoders.embed import computed_by, embed_images, embed_texts

    captions = _load(config)
    encoder, batch_size = row.encoder, row.config.batch_size
    texts = [text for group in captions.captions for text in group]
    owner = np.repeat(np.arange(len(captions.images)), [len(group) for group in captions.captions])
    image_features = embed_images(
        encoder, captions.open, captions.images, batch_size, row.kept_vectors("pictures", captions.hash)
    )
    text_features = embed_texts(encoder, texts, batch_size, row.kept_vectors("texts", captions.hash))
    pairs = np.stack([owner, np.arange(len(owner))], axis=1)
    found = ranks(image_features.to(row.device), text_features.to(row.device), pairs, row.processes)
    items = _items(captions, texts, owner, found)
    return Outcome(
        metrics={name: measure(items, spec) for name, spec in METRICS.items()},
        primary=PRIMARY,
        protocol=_protocol(captions, config) | encoder.how | computed_by(encoder),
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """SHA-256 of the pictures and captions."""
    return _load(config).hash


def _load(config: BenchmarkConfig) -> CaptionSet:
    return load_caption_set(
        config.data,
        split=config.split,
        images=config.images,
        captions_per_image=config.captions_per_image,
        limit=config.limit,
    )


def _protocol(captions: CaptionSet, config: BenchmarkConfig) -> Entries:
    counts = sorted({len(group) for group in captions.captions})
    return {
        "task": "zero-shot retrieval, both directions",
        "benchmark": config.name,
        "data_hash": captions.hash,
        "split": config.split,
        "pictures": len(captions.images),
        "captions": sum(len(group) for group in captions.captions),
        "captions_per_picture": str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "caption_text": "as given, casing and punctuation kept; no prompt around it",
        "similarity": "cosine",
        "hit": "any right answer among the first K",
        "ties": f"expected value over random order of answers within {TIE}",
        "scorer": "benchmarks.retrieval 1",
    }


def _items(captions: CaptionSet, texts: list[str], owner: np.ndarray, found: tuple[Ranks, Ranks]) -> pd.DataFrame:
    import pandas as pd

    to_captions, to_images = found
    pictures = list(captions.images)
    by_picture = pd.DataFrame(
        {
            "item": [f"i2t/{name}" for name in pictures],
            "image": pictures,
            "direction": "i2t",
            "category": "",
            "question": "",
            "prediction": [texts[index] for index in to_captions.first],
            "target": [" | ".join(group) for group in captions.captions],
            "score": np.nan,
            "thumbnail": [thumbnail(captions.open(index)) for index in range(len(pictures))],
        }
    )
    place = np.concatenate([np.arange(len(group)) for group in captions.captions])
    by_caption = pd.DataFrame(
        {
            "item": [f"t2i/{pictures[image]}#{number}" for image, number in zip(owner, place, strict=True)],
            "image": [pictures[image] for image in owner],
            "direction": "t2i",
            "category": "",
            "question": texts,
            "prediction": [pictures[index] for index in to_images.first],
            "target": [pictures[image] for image in owner],
            "score": to_images.hit(1),
            "thumbnail": None,
        }
    )
    for frame, direction, rank in ((by_picture, "i2t", to_captions), (by_caption, "t2i", to_images)):
        frame[f"{direction}_rank"] = rank.expected()
        for k in CUTS:
            frame[f"{direction}_r{k}"] = rank.hit(k)
    return pd.concat([by_picture, by_caption], ignore_index=True)
