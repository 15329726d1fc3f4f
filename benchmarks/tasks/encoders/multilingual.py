"""Retrieval in several languages over the same images, and the mean over languages, equally weighted.

An item is an image, or an image's n-th caption, with a column per language.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.results.results import CHANCE
from benchmarks.tasks.data.caption_sets import CaptionSet, CaptionSetConfig, load_benchmark_captions
from benchmarks.tasks.encoders import retrieval
from benchmarks.tasks.encoders.recall import RECALL_KS, compute_ranks
from benchmarks.tasks.encoders.retrieval import DIRECTION_LABELS
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric
from benchmarks.tasks.registry import benchmark
from clips.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from benchmarks.tasks.eval_model import EvalModel

_HITS = [f"{direction}_r{k}" for direction in DIRECTION_LABELS for k in RECALL_KS]


@dataclass(frozen=True, kw_only=True)
class MultilingualConfig(CaptionSetConfig):
    """Retrieval in several languages.

    Args:
        languages: the languages to average over.
    """

    languages: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise UserError(f"languages: expected at least one, and different ones, got {list(self.languages)}")


def data_hash(config: MultilingualConfig) -> str:
    """Return the SHA-256 of the images and of the captions in every language."""
    return _hash(_sets(config))


@benchmark(
    "multilingual_retrieval",
    config=MultilingualConfig,
    data_hash=data_hash,
    benchmark_type="retrieval",
    about="the same in several languages, and their mean (XM3600, Flickr30k-200, XTD10, XTD200)",
    needs="encoder",
)
def evaluate(model: EvalModel, config: MultilingualConfig) -> Evaluation:
    """Compute recall at 1, 5 and 10 in each language, and the means over them."""
    from benchmarks.tasks.encoders.embedding import image_embeddings, text_embeddings

    sets = _sets(config)
    first = next(iter(sets.values()))
    images = image_embeddings(model, first.open, first.images, first.image_hashes, "encoder")
    tables = {}
    for language, captions in sets.items():
        ranks = compute_ranks(images, text_embeddings(model, captions.texts), captions.pairs, model.processes)
        tables[language] = retrieval.items_of(captions, ranks, with_thumbnails=captions is first).set_index("item")
    items = _join(tables)
    hits = {name: retrieval.hit_columns(retrieval.chance_ranks(captions)) for name, captions in sets.items()}
    chance = _join({name: table.assign(**hits[name]) for name, table in tables.items()})
    baselines = {CHANCE: {name: chance[name].to_numpy() for name in _columns(list(sets), *_HITS)}}
    return Evaluation(
        metrics={name: compute_metric(items, spec, baselines=baselines) for name, spec in _specs(list(sets)).items()},
        primary=retrieval.PRIMARY,
        protocol=retrieval.retrieval_protocol(first, config.name)
        | {
            "task": "zero-shot retrieval in several languages, both directions",
            "data_hash": _hash(sets),
            "captions": sum(len(captions.texts) for captions in sets.values()),
            "captions_per_image": ", ".join(
                f"{language} {retrieval.captions_per_image_range(captions)}" for language, captions in sets.items()
            ),
            "languages": ", ".join(sets),
            "mean": "mean of the languages' recalls, equally weighted",
            "scorer": "benchmarks.multilingual 1",
        }
        | model.encoder.settings,
        items=items,
    )


def _sets(config: MultilingualConfig) -> dict[str, CaptionSet]:
    """Map language to its captions, of the same images in the same order."""
    sets = {language: load_benchmark_captions(config, language=language) for language in config.languages}
    first, *others = sets
    for language in others:
        if list(sets[language].images) != list(sets[first].images):
            raise UserError(f"{config.data}: '{language}' has captions of other images than '{first}'")
    return sets


def _hash(sets: dict[str, CaptionSet]) -> str:
    digest = hashlib.sha256("".join(next(iter(sets.values())).image_hashes).encode())
    for language, captions in sets.items():
        digest.update(f"{language} {captions.captions_hash}".encode())
    return digest.hexdigest()


def _join(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Merge all languages of an item into one row; query and answer are of the first language that has it."""
    import pandas as pd

    shown = pd.concat(tables.values())
    shown = shown[~shown.index.duplicated()].drop(columns=[*_HITS, "score"])
    for language, table in tables.items():
        shown = shown.join(table[_HITS].add_suffix(f"_{language}"))
    of_captions = shown[[f"t2i_r1_{language}" for language in tables]]
    return shown.assign(score=of_captions.mean(axis=1)).reset_index()


def _columns(languages: list[str], *names: str) -> tuple[str, ...]:
    return tuple(f"{name}_{language}" for name in names for language in languages)


def _specs(languages: list[str]) -> dict[str, MetricSpec]:
    means = {
        f"{direction}_r{k}": MetricSpec(label=f"{arrow} R@{k}", columns=_columns(languages, f"{direction}_r{k}"))
        for direction, arrow in DIRECTION_LABELS.items()
        for k in RECALL_KS
    }
    means["mean_r1"] = MetricSpec(label="mean R@1", columns=_columns(languages, "i2t_r1", "t2i_r1"))
    means["mean_recall"] = MetricSpec(label="mean recall", columns=_columns(languages, *_HITS))
    return means | {
        f"{direction}_r{k}_{language}": MetricSpec(
            label=f"{arrow} R@{k}, {language}", columns=(f"{direction}_r{k}_{language}",)
        )
        for direction, arrow in DIRECTION_LABELS.items()
        for k in RECALL_KS
        for language in languages
    }
