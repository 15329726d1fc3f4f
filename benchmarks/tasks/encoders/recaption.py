"""Captions of an encoder's captioner for held-out images and their web captions, against the synthetic captions.

All tokens are decoded in parallel if the captioner was trained so, otherwise greedily. Because the web caption alone
tells much of the synthetic one, each sample is captioned again with its web caption and another image: the difference
is what the captioner gains from looking.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.results.protocol import full_size_entry
from benchmarks.tasks.evaluation import Evaluation, MetricSpec, compute_metric, thumbnails
from benchmarks.tasks.mllm.caption_metrics import ONE_IMAGE, caption_scorer_hash, score_captions, tokenizer_name
from benchmarks.tasks.mllm.task_metrics import caption_columns, caption_metrics
from benchmarks.tasks.registry import Benchmark, BenchmarkConfig, benchmark
from clips.commandline.progress import progress_iter
from clips.core.identity import RUN_ONLY, file_stamps
from clips.errors import UserError
from clips.model_refs import CAPTIONER_WEIGHTS

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from clips.data.sources import Source, SourceConfig

METRICS = caption_metrics() | {
    "CIDEr_other_image": MetricSpec(
        label="CIDEr with another image",
        aggregation="mean_of_scores",
        columns=("cider_other_image",),
        higher_is_better=None,
        baseline_of="CIDEr",
        condition="other_image",
    ),
    "CIDEr_over_other_image": MetricSpec(
        label="CIDEr above that with another image",
        aggregation="mean_of_scores",
        columns=("cider_over_other_image",),
        gain_of="CIDEr",
        condition="other_image",
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
    others: Sequence[int] | None  # (N,) the next sample with another image; None if all have the same one
    num_excluded: int  # number of the source's samples without one or the other
    hash: str  # SHA-256 of images and captions

    def open(self, index: int) -> Image:
        """Image ``index`` of the N as RGB.

        Raises:
            UserError: it is broken.
        """
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


@dataclass(frozen=True, kw_only=True)
class RecaptionBenchmark(Benchmark):
    """Recaptioning, which pycocoevalcap scores."""

    def scorer_hash(self) -> str:
        """SHA-256 of pycocoevalcap and its tokenizer."""
        return caption_scorer_hash()


@benchmark(
    "recaption",
    kind=RecaptionBenchmark,
    config=RecaptionConfig,
    data_hash=data_hash,
    benchmark_type="captions",
    about="captions of an encoder's captioner for an image and its web caption, against a synthetic caption",
    needs="tower",
    trivial_baseline_note=(
        "'CIDEr with another image' is the score for the next image's pixels and the same web caption: that of a "
        "captioner that does not look."
    ),
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
        "other_image": "the next one with other pixels, with the same web caption",
        "scorer": f"pycocoevalcap {version('pycocoevalcap')}",
        "caption_tokenizer": tokenizer_name(),
        **model.tower.settings,
    }
    captions = of_other_images = None
    missing = dict.fromkeys(METRICS, "this encoder has no captioner (its recipe trains none)")
    if not model.is_bare_tower and (Path(directory := model.path("tower")) / CAPTIONER_WEIGHTS).is_file():
        captions, of_other_images = _generate(model, samples, directory)
        compared = ("CIDEr_other_image", "CIDEr_over_other_image") if of_other_images is None else ()
        missing = dict.fromkeys(compared, "all samples have the same image")
    if len(samples.indices) == 1:
        missing |= {name: ONE_IMAGE for name in METRICS if name.startswith("CIDEr") and name not in missing}
    items = _items(samples, captions, of_other_images)
    return Evaluation(
        metrics={name: compute_metric(items, spec) for name, spec in METRICS.items() if name not in missing},
        primary=("CIDEr",),
        missing_metrics=missing,
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
    from clips.data.images import InvalidSampleError
    from clips.data.sources import open_source

    source = open_source(config)
    digest = hashlib.sha256()
    indices, images, web, synthetic, num_excluded = list[int](), list[str](), list[str](), list[str](), 0
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
        images.append(image)
        web.append(sample.web)
        synthetic.append(sample.synthetic)
    if not indices:
        raise UserError(f"{config.path}: expected samples with a synthetic caption under '{config.synthetic_caption}'")
    names = [source.name(number) for number in indices]
    others = None
    if len(set(images)) > 1:
        following = [itertools.chain(range(row + 1, len(images)), range(row)) for row in range(len(images))]
        others = [
            next(other for other in rows if images[other] != own) for rows, own in zip(following, images, strict=True)
        ]
    return RecaptionSet(source, indices, names, web, synthetic, others, num_excluded, digest.hexdigest())


def _rng(number: int) -> np.random.Generator:
    return np.random.default_rng([0, number])


def _generate(model: EvalModel, samples: RecaptionSet, directory: str) -> tuple[list[str], list[str] | None]:
    """The captions of the samples, and those of their web captions and the images of others."""
    import torch

    from benchmarks.tasks.encoders.embedding import batches
    from clips.encoder import load_captioner
    from clips.model.captioner import caption_images

    encoder = model.tower
    captioner = load_captioner(directory).to(encoder.device)
    dtype = getattr(torch, encoder.precision)
    reads_text = captioner.text_projection is not None
    own = [(row, row if reads_text else None) for row in range(len(samples.indices))]  # rows of image and web caption
    swapped = None
    if samples.others is not None:
        swapped = [(other, row if reads_text else None) for row, other in enumerate(samples.others)]
    # without a web caption the others' captions are written already
    pairs = list(dict.fromkeys([*own, *(swapped or [])]))
    written = list[str]()
    for rows in progress_iter(batches(range(len(pairs)), model.config.batch_size), "writing captions", "batches"):
        batch = [pairs[row] for row in rows]
        pixels = torch.stack([encoder.preprocess(samples.open(image)) for image, _ in batch])
        texts = encoder.tokenizer([samples.web[text] for _, text in batch if text is not None]) if reads_text else None
        written += caption_images(encoder.model, captioner, pixels.to(encoder.device, dtype), texts)
    caption = dict(zip(pairs, written, strict=True))
    return [caption[pair] for pair in own], None if swapped is None else [caption[pair] for pair in swapped]


def _items(
    samples: RecaptionSet, captions: Sequence[str] | None, of_other_images: Sequence[str] | None
) -> pd.DataFrame:
    import pandas as pd

    names, count = list(samples.names), len(samples.names)
    columns = {}
    if captions is not None:
        references = [[text] for text in samples.synthetic]
        columns = dict(caption_columns(range(count), score_captions(references, captions)))
        if of_other_images is not None:
            others = score_captions(references, of_other_images)
            columns["cider_other_image"] = np.array([others.cider[number] for number in range(count)])
            columns["cider_over_other_image"] = columns["cider"] - columns["cider_other_image"]
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
