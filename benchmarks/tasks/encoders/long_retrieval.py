"""Retrieval with long captions: full, truncated to their first words, and by length.

The curve of recall against the number of words shows how much of a caption an encoder uses: with a context of 77 tokens
it does not improve beyond them. All points use the same images and number of captions; only the texts get shorter.
The length bin of an image or caption is that of the full caption, and the search covers all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.caption_sets import CaptionSet, load_benchmark_captions
from benchmarks.tasks.encoders import retrieval
from benchmarks.tasks.encoders.recall import compute_ranks
from benchmarks.tasks.encoders.retrieval import DIRECTION_LABELS, RetrievalConfig
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from benchmarks.tasks.registry import benchmark
from clips.errors import UserError
from clips.ranges import Positive

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from benchmarks.tasks.eval_model import EvalModel

WORD_LIMITS = "word_limits"  # the protocol entry that lists the points of the curve, "8, 16, 32"


@dataclass(frozen=True, kw_only=True)
class LongRetrievalConfig(RetrievalConfig):
    """Retrieval with long captions.

    Args:
        word_limits: also truncate the captions to these numbers of words.
    """

    word_limits: tuple[Positive, ...] = (8, 16, 32, 64, 128, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.word_limits or list(self.word_limits) != sorted(set(self.word_limits)):
            raise UserError(f"word_limits: expected increasing numbers, got {list(self.word_limits)}")


@benchmark(
    "long_retrieval",
    config=LongRetrievalConfig,
    data_hash=retrieval.data_hash,
    benchmark_type="retrieval",
    about="the same with long captions, full and truncated (DOCCI, DCI, Urban-1k, ShareGPT4V, IIW)",
    needs="encoder",
)
def evaluate(model: EvalModel, config: LongRetrievalConfig) -> Evaluation:
    """Compute recalls with full captions and with their first words, and R@1 per length bin."""
    from benchmarks.tasks.encoders.embedding import image_embeddings, text_embeddings

    captions = load_benchmark_captions(config, language=config.language)
    versions = {"": list(captions.texts)} | {
        metric_suffix(words): [truncate_words(text, words) for text in captions.texts] for words in config.word_limits
    }
    unique = list(dict.fromkeys(text for texts in versions.values() for text in texts))
    index_of = {text: index for index, text in enumerate(unique)}
    images = image_embeddings(model, captions.open, captions.images, captions.image_hashes, "encoder")
    vectors = text_embeddings(model, unique)
    metrics = {
        name: compute_ranks(images, vectors[[index_of[text] for text in texts]], captions.pairs, model.processes)
        for name, texts in versions.items()
    }
    items = retrieval.items_of(captions, metrics[""])
    truncated = truncated_by_tokenizer(captions.texts, model.encoder.tokenizer)
    columns = {"truncated": np.concatenate([np.full(len(captions.images), np.nan), truncated])}
    chance: dict[str, np.ndarray] = {}
    for name in versions:
        columns |= retrieval.hit_columns(metrics[name], name) if name else {}
        chance |= retrieval.hit_columns(retrieval.chance_ranks(captions), name)
    items = items.assign(**columns, **_by_length(items, captions, config.word_limits))
    chance |= _by_length(chance, captions, config.word_limits)
    specs = _specs(config.word_limits, items)
    lengths = [len(text.split()) for text in captions.texts]
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines={CHANCE: chance}) for name, spec in specs.items()},
        primary=retrieval.PRIMARY,
        protocol=retrieval.retrieval_protocol(captions, config.name, config.language)
        | {
            "task": "zero-shot retrieval by long captions, full and truncated to their first words, both directions",
            WORD_LIMITS: ", ".join(map(str, config.word_limits)),
            "words": "separated by whitespace; a truncated caption has single spaces",
            "mean_words": round(float(np.mean(lengths)), 1),
            "scorer": "benchmarks.long_retrieval 1",
        }
        | model.encoder.settings
        | {"input_context_length": int(model.encoder.tokenizer([""]).shape[1])},
        items=items,
    )


def metric_suffix(words: int) -> str:
    """Return the suffix of the metric names and item columns of a truncation."""
    return f"_w{words}"


def truncate_words(text: str, words: int) -> str:
    """Return the first ``words`` words with single spaces; a shorter text is unchanged."""
    split = text.split()
    return " ".join(split[:words]) if len(split) > words else text


def truncated_by_tokenizer(texts: Sequence[str], tokenizer: Callable[..., torch.Tensor]) -> np.ndarray:
    """Return (M,) 1 for truncated captions, which have other tokens or more of them in a longer context."""
    context = tokenizer([""]).shape[1]
    longer = context + 4
    *_, padding, last = tokenizer([""], longer)[0]
    end = int(last != padding)  # CLIPS's class token is the last one of a row, behind the padding
    parts = []
    for start in range(0, len(texts), 1000):
        block = list(texts[start : start + 1000])
        short, long = tokenizer(block), tokenizer(block, longer)
        # a truncated row has its end token where the longer one has the next token of the caption
        changed = (short[:, : context - end] != long[:, : context - end]).any(dim=1)
        more = (long[:, context - end : longer - end] != padding).any(dim=1)
        parts.append((changed | more).cpu().numpy().astype(float))
    return np.concatenate(parts)


def _bins(words: Sequence[int]) -> dict[str, tuple[int, float]]:
    """Map suffix to (lowest, highest) number of words, between the points of the curve."""
    bounds: list[tuple[int, float]] = [(low + 1, high) for low, high in itertools.pairwise([0, *words])]
    closed = {f"_of_{low}_to_{high}": (low, high) for low, high in bounds}
    return closed | {f"_of_{words[-1] + 1}_up": (words[-1] + 1, np.inf)}


def _by_length(
    items: pd.DataFrame | Mapping[str, np.ndarray], captions: CaptionSet, words: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return the R@1 columns of each non-empty bin; an image's length is the mean of its captions'."""
    lengths = np.array([len(text.split()) for text in captions.texts])
    total, count = np.zeros(len(captions.images)), np.zeros(len(captions.images))
    np.add.at(total, captions.pairs[:, 0], lengths[captions.pairs[:, 1]])
    np.add.at(count, captions.pairs[:, 0], 1)
    of_items = np.concatenate([np.ceil(total / count), lengths])
    columns = {}
    for name, (low, high) in _bins(words).items():
        inside = (of_items >= low) & (of_items <= high)
        for direction in DIRECTION_LABELS:
            values = np.where(inside, items[f"{direction}_r1"], np.nan)
            if not np.isnan(values).all():
                columns[f"{direction}_r1{name}"] = values
    return columns


def _specs(words: Sequence[int], items: pd.DataFrame) -> dict[str, MetricSpec]:
    specs = dict(retrieval.METRICS)
    for count in words:
        specs |= retrieval.recall_metrics(metric_suffix(count), f", first {count} words")
    for name, (low, high) in _bins(words).items():
        span = f"{low} to {high}" if np.isfinite(high) else f"{low} or more"
        for direction, arrow in DIRECTION_LABELS.items():
            if f"{direction}_r1{name}" in items:
                specs[f"{direction}_r1{name}"] = MetricSpec(
                    label=f"{arrow} R@1, captions of {span} words", columns=(f"{direction}_r1{name}",)
                )
    specs["captions_truncated"] = MetricSpec(
        label="captions truncated by the text tower", columns=("truncated",), higher_is_better=None
    )
    return specs
