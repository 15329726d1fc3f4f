"""Captions of an encoder's captioner for held-out images and their web captions, against the synthetic captions.

All tokens are decoded in parallel if the captioner was trained so, otherwise greedily.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.tasks.data.caption_sets import file_stamps
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.mllm.caption_metrics import score_captions, tokenizer_name
from benchmarks.tasks.mllm.task_metrics import caption_columns, caption_metrics
from benchmarks.tasks.registry import BenchmarkConfig, benchmark
from clips.commandline.progress import progress_iter
from clips.core.identity import RUN_ONLY
from clips.errors import UserError
from clips.model_refs import CAPTIONER_WEIGHTS

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from clips.data.sources import Source, SourceConfig

METRICS = caption_metrics() | {
    "CIDEr_of_others": MetricSpec(
        label="CIDEr of another image's caption",
        aggregation="mean_of_scores",
        columns=("cider_of_others",),
        higher_is_better=None,
    ),
    "CIDEr_gain": MetricSpec(
        label="CIDEr above that of another image's caption",
        aggregation="mean_of_scores",
        columns=("cider_gain",),
    ),
}


@dataclass(frozen=True)
class RecaptionSet:
    """Samples of a training source with an image and a synthetic caption."""

    source: Source  # their data source
    indices: Sequence[int]  # (N,) indices of the samples in the source
    names: Sequence[str]  # (N,) readable sample names
    web: Sequence[str]  # (N,) web captions, some of which may be empty
    synthetic: Sequence[str]  # (N,) synthetic captions
    num_excluded: int  # number of the source's samples without one or the other
    hash: str  # SHA-256 of images and captions

    def open(self, index: int) -> Image:
        """Image ``index`` of the N as RGB. Raises UserError if it is broken."""
        from clips.data.images import InvalidImageError, decode_image

        try:
            return decode_image(self.source.read(self.indices[index], _rng(self.indices[index])).image)
        except InvalidImageError as error:
            raise UserError(f"image {self.names[index]}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class RecaptionConfig(BenchmarkConfig):
    """Captions of an encoder's captioner.

    Args:
        data: a source as of ``clips train``.
        split: split of the data, if it has any.
        image_root: directory of the images; by default ``images`` next to a JSON, or the directory of the file.
        format: of the source, by default ``webdataset``.
        subset: a dataset's configuration on the Hub.
        web_caption: field of the web caption, as ``web_caption`` of a training source.
        synthetic_caption: field of the synthetic caption, likewise.
    """

    split: str = "test"
    image_root: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    format: str | None = None
    subset: str | None = None
    web_caption: str = "auto"
    synthetic_caption: str = "auto"


def data_hash(config: RecaptionConfig) -> str:
    """Return the SHA-256 of the images, web captions and synthetic captions."""
    return _samples(config).hash


@benchmark(
    "recaption",
    config=RecaptionConfig,
    data_hash=data_hash,
    benchmark_type="captions",
    about="captions of an encoder's captioner for an image and its web caption, against a synthetic caption",
    needs="tower",
    trivial_baseline_note="'CIDEr of another image's caption' is the score of captions that ignore their image.",
)
def evaluate(model: EvalModel, config: RecaptionConfig) -> Evaluation | None:
    """Compute CIDEr, BLEU and ROUGE-L of the captioner's captions, on rank 0 only."""
    if not model.processes.is_main:
        return None

    samples = _samples(config)
    protocol = {
        "task": "recaptioning: image and web caption → synthetic caption",
        "benchmark": config.name,
        "data_hash": samples.hash,
        "images": len(samples.indices),
        "excluded": samples.num_excluded,
        **full_size_entry(len(samples.indices) + samples.num_excluded, len(samples.source)),
        "reference": "one, the full synthetic caption",
        "decoding": "most probable token at each position",
        "scorer": f"pycocoevalcap {version('pycocoevalcap')}",
        "caption_tokenizer": tokenizer_name(),
        **model.tower.settings,
    }
    captions = None
    if not model.is_bare_tower and (Path(directory := model.path("tower")) / CAPTIONER_WEIGHTS).is_file():
        captions = _generate(model, samples, directory)
    items = _items(samples, captions)
    absent = "this encoder has no captioner (its recipe trains none)"
    return Evaluation(
        metrics={} if captions is None else {name: compute_metric(items, spec) for name, spec in METRICS.items()},
        primary=("CIDEr",),
        missing_metrics=dict.fromkeys(METRICS, absent) if captions is None else {},
        protocol=protocol,
        items=items,
    )


def _samples(config: RecaptionConfig) -> RecaptionSet:
    from clips.data.sources import SourceConfig

    source = SourceConfig(
        format=config.format or "webdataset",
        path=config.data,
        web_caption=config.web_caption,
        synthetic_caption=config.synthetic_caption,
        split=config.split,
        subset=config.subset,
        image_root=config.image_root,
    )
    return _read(source, config.limit, file_stamps(Path(config.data)))


@functools.lru_cache(maxsize=2)
def _read(config: SourceConfig, limit: int | None, _stamp: object) -> RecaptionSet:
    from clips.data.sources import InvalidSampleError, open_source

    source = open_source(config)
    digest = hashlib.sha256()
    indices, web, synthetic, num_excluded = list[int](), list[str](), list[str](), 0
    for number in range(len(source)):
        if limit is not None and len(indices) == limit:
            break
        try:
            sample = source.read(number, _rng(number))
        except InvalidSampleError:
            num_excluded += 1
            continue
        if not sample.web or not sample.synthetic.strip():
            num_excluded += 1
            continue
        image = hashlib.sha256(sample.image).hexdigest()
        digest.update(json.dumps([image, sample.web, sample.synthetic], ensure_ascii=False).encode())
        indices.append(number)
        web.append(sample.web)
        synthetic.append(sample.synthetic)
    if not indices:
        raise UserError(f"{config.path}: expected samples with a synthetic caption under '{config.synthetic_caption}'")
    names = [source.name(number) for number in indices]
    return RecaptionSet(source, indices, names, web, synthetic, num_excluded, digest.hexdigest())


def _rng(number: int) -> np.random.Generator:
    return np.random.default_rng([0, number])


def _generate(model: EvalModel, samples: RecaptionSet, directory: str) -> list[str]:
    import torch

    from benchmarks.tasks.encoders.embedding import batches
    from clips.encoder import load_captioner
    from clips.model.captioner import caption_images

    encoder = model.tower
    captioner = load_captioner(directory).to(encoder.device)
    dtype = getattr(torch, encoder.precision)
    chosen, found = batches(range(len(samples.indices)), model.config.batch_size), []
    for batch in progress_iter(chosen, "writing captions", "batches"):
        pixels = torch.stack([encoder.preprocess(samples.open(index)) for index in batch])
        reads_text = captioner.text_projection is not None
        texts = encoder.tokenizer([samples.web[index] for index in batch]) if reads_text else None
        found += caption_images(encoder.model, captioner, pixels.to(encoder.device, dtype), texts)
    return found


def _items(samples: RecaptionSet, captions: Sequence[str] | None) -> pd.DataFrame:
    import pandas as pd

    names, count = list(samples.names), len(samples.names)
    columns = {}
    if captions is not None:
        own = score_captions([[text] for text in samples.synthetic], captions)
        others = score_captions([[text] for text in np.roll(samples.synthetic, -1)], captions)
        columns = dict(caption_columns(range(count), own))
        columns["cider_of_others"] = np.array([others.cider[number] for number in range(count)])
        columns["cider_gain"] = columns["cider"] - columns["cider_of_others"]
    return pd.DataFrame(
        {
            "item": names,
            "image": names,
            "direction": "",
            "category": "",
            "question": "",
            "prediction": "" if captions is None else captions,
            "target": list(samples.synthetic),
            "score": columns.get("cider", np.full(count, np.nan)),
            "thumbnail": thumbnails(names, samples.open),
            "given": list(samples.web),
            **columns,
        }
    )
