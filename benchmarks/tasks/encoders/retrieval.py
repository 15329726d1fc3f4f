"""Zero-shot retrieval under the protocol of COCO and Flickr30K: several captions per image, both directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import Entries, full_size_entry
from benchmarks.results.result_types import BLOCKER, IMAGE_HASH
from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.caption_sets import CaptionSet, CaptionSetConfig, load_benchmark_captions
from benchmarks.tasks.encoders.recall import RECALL_KS, TIE_TOLERANCE, RetrievalRanks, compute_ranks
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.registry import benchmark

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.tasks.eval_model import EvalModel


DIRECTION_LABELS = {"t2i": "T→I", "i2t": "I→T"}
PRIMARY = ("t2i_r1", "i2t_r1", "mean_r1")


def recall_metrics(suffix: str = "", label: str = "") -> dict[str, MetricSpec]:
    """Recall at 1, 5 and 10 in both directions, and mean R@1, of the item columns with suffix ``suffix``."""
    single = {
        f"{direction}_r{k}{suffix}": MetricSpec(label=f"{arrow} R@{k}{label}", columns=(f"{direction}_r{k}{suffix}",))
        for direction, arrow in DIRECTION_LABELS.items()
        for k in RECALL_KS
    }
    both = (f"i2t_r1{suffix}", f"t2i_r1{suffix}")
    return single | {f"mean_r1{suffix}": MetricSpec(label=f"mean R@1{label}", columns=both)}


METRICS: dict[str, MetricSpec] = {
    **recall_metrics(),
    "mean_recall": MetricSpec(
        label="mean recall", columns=tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in RECALL_KS)
    ),
    **{
        f"{direction}_median_rank": MetricSpec(
            label=f"{arrow} median rank",
            aggregation="median",
            columns=(f"{direction}_rank",),
            scale=1.0,
            higher_is_better=False,
        )
        for direction, arrow in DIRECTION_LABELS.items()
    },
}


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(CaptionSetConfig):
    """Retrieval between images and captions.

    Args:
        language: of data in several languages.
    """

    language: str | None = None


def data_hash(config: RetrievalConfig) -> str:
    """Return the SHA-256 of the images and captions."""
    return load_benchmark_captions(config, language=config.language).hash


@benchmark(
    "retrieval",
    config=RetrievalConfig,
    data_hash=data_hash,
    benchmark_type="retrieval",
    about="zero-shot retrieval between images and their captions, both ways (COCO and Flickr30K protocol)",
    needs="encoder",
)
def evaluate(model: EvalModel, config: RetrievalConfig) -> Evaluation:
    """Compute recall at 1, 5 and 10, median rank and means, of a model's encoder."""
    from benchmarks.tasks.encoders.embedding import image_embeddings, text_embeddings

    captions = load_benchmark_captions(config, language=config.language)
    images = image_embeddings(model, captions.open, captions.images, captions.image_hashes, "encoder")
    texts = text_embeddings(model, captions.texts)
    items = items_of(captions, compute_ranks(images, texts, captions.pairs, model.processes))
    baselines = {CHANCE: hit_columns(chance_ranks(captions))}
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines=baselines) for name, spec in METRICS.items()},
        primary=PRIMARY,
        protocol=retrieval_protocol(captions, config.name, config.language) | model.encoder.settings,
        items=items,
    )


def retrieval_protocol(captions: CaptionSet, benchmark: str, language: str | None = None) -> Entries:
    """Protocol of a retrieval result: every setting, except the model, that affects recall."""
    stated: Entries = {
        "task": "zero-shot retrieval, both directions",
        "benchmark": benchmark,
        "data_hash": captions.hash,
        "split": captions.split,
        "images": len(captions.images),
        "captions": len(captions.texts),
        "captions_per_image": captions_per_image_range(captions),
        "caption_text": "unchanged, without a prompt",
        "similarity": "cosine",
        "hit": "any right answer among the first K",
        "ties": f"expected value over random order of answers within {TIE_TOLERANCE}",
        "scorer": "benchmarks.retrieval 1",
        **full_size_entry(len(captions.images), captions.available),
    }
    if captions.shared:
        stated["images_per_caption"] = _span(np.bincount(captions.pairs[:, 1]).tolist())
    if language is not None:
        stated["language"] = language
    return stated


def captions_per_image_range(captions: CaptionSet) -> str:
    """``"5"``, or ``"5 to 7"``."""
    return _span([len(group) for group in captions.captions])


def _span(counts: Sequence[int]) -> str:
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def items_of(
    captions: CaptionSet, ranks: tuple[RetrievalRanks, RetrievalRanks], *, with_thumbnails: bool = True
) -> pd.DataFrame:
    """One row per image, then one row per caption, each with its ranks and hits.

    Args:
        ranks: image → caption and caption → image. A caption of several images belongs to the cluster of the first.
    """
    import pandas as pd

    to_captions, to_images = ranks
    texts, images = captions.texts, list(captions.images)
    by_image = pd.DataFrame(
        {
            "item": [f"i2t/{name}" for name in images],
            "image": images,
            "direction": "i2t",
            "category": "",
            "question": "",
            "prediction": [texts[index] for index in to_captions.first],
            "target": [" | ".join(group) for group in captions.captions],
            "score": np.nan,
            "thumbnail": thumbnails(images, captions.open) if with_thumbnails else None,
        }
    )
    owner, hashes = captions.first_image_of_caption, [digest[:16] for digest in captions.image_hashes]
    _, start = np.unique(owner, return_index=True)
    position = np.arange(len(owner)) - np.repeat(start, np.diff([*start, len(owner)]))
    right: list[list[str]] = [[] for _ in texts]
    for image, caption in captions.pairs:
        right[caption].append(images[image])
    by_caption = pd.DataFrame(
        {
            "item": [f"t2i/{images[image]}#{number}" for image, number in zip(owner, position, strict=True)],
            "image": [images[image] for image in owner],
            "direction": "t2i",
            "category": "",
            "question": texts,
            "prediction": [images[index] for index in to_images.first],
            "target": [" | ".join(names) for names in right],
            "score": to_images.hit(1),
            "thumbnail": None,
        }
    )
    items = pd.concat([by_image, by_caption], ignore_index=True)
    items[IMAGE_HASH] = [*hashes, *(hashes[image] for image in owner)]
    blockers = np.concatenate([owner[to_captions.first], to_images.first])
    alone = np.concatenate([(each.above == 1) & (each.tied == each.right) for each in ranks])
    items[BLOCKER] = [images[image] if only else None for image, only in zip(blockers, alone, strict=True)]
    return items.assign(**hit_columns(ranks))


def hit_columns(ranks: tuple[RetrievalRanks, RetrievalRanks], suffix: str = "") -> dict[str, np.ndarray]:
    """Item columns of ranks and hits: images' first, then captions', NaN for the other direction."""
    to_captions, to_images = ranks
    images, texts = np.full(len(to_captions.above), np.nan), np.full(len(to_images.above), np.nan)
    columns = {}
    for direction, rank in (("i2t", to_captions), ("t2i", to_images)):
        for name, values in {"rank": rank.expected(), **{f"r{k}": rank.hit(k) for k in RECALL_KS}}.items():
            parts = (values, texts) if direction == "i2t" else (images, values)
            columns[f"{direction}_{name}{suffix}"] = np.concatenate(parts)
    return columns


def chance_ranks(captions: CaptionSet) -> tuple[RetrievalRanks, RetrievalRanks]:
    """Return the ranks of both directions for a model whose similarities are all equal."""
    sides = []
    for side, answers in enumerate((len(captions.texts), len(captions.images))):
        right = np.bincount(captions.pairs[:, side])
        none = np.zeros_like(right)
        sides.append(RetrievalRanks(above=none, tied=np.full_like(right, answers), right=right, first=none))
    return sides[0], sides[1]
