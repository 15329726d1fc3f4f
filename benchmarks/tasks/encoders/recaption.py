"""Captions of an encoder's captioner for held-out images and their web captions, against the synthetic captions.

Decoding is that of `clips caption`: all words in parallel if trained so, else greedy.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
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
from clips.commandline.progress import progress_iter
from clips.errors import UserError
from clips.model_refs import CAPTIONER_WEIGHTS

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

    from benchmarks.tasks.eval_model import EvalModel
    from benchmarks.tasks.run_config import BenchmarkConfig
    from clips.data.sources import Source, SourceConfig

METRICS = caption_metrics() | {
    "CIDEr_of_others": MetricSpec(
        label="CIDEr of another picture's caption",
        aggregation="mean_of_scores",
        columns=("cider_of_others",),
        higher_is_better=None,
    )
}
PRIMARY = ("CIDEr",)
NO_CAPTIONER = "this encoder has no captioner (its recipe trains none)"


@dataclass(frozen=True)
class RecaptionSet:
    """Samples of a training source that have a picture and a synthetic caption.

    Args:
        source: what they are read from.
        numbers: (N,) which of its samples they are.
        names: (N,) how people find them again.
        web: (N,) web captions, some of which may be empty.
        synthetic: (N,) synthetic captions.
        left_out: how many of the source's samples lack one or the other.
        hash: SHA-256 of pictures and captions.
    """

    source: Source
    numbers: Sequence[int]
    names: Sequence[str]
    web: Sequence[str]
    synthetic: Sequence[str]
    left_out: int
    hash: str

    def open(self, index: int) -> Image:
        """Picture ``index`` of the N as RGB. Raises UserError naming one that is broken."""
        from clips.data.images import BadImageError, decode_image

        try:
            return decode_image(self.source.read(self.numbers[index], _drawer(self.numbers[index])).image)
        except BadImageError as error:
            raise UserError(f"picture {self.names[index]}: {error}") from None


def evaluate(row: EvalModel, config: BenchmarkConfig) -> Evaluation | None:
    """Compute CIDEr, BLEU and ROUGE-L of the captioner's captions. The first of several processes does it all."""
    if not row.processes.is_main:
        return None
    from benchmarks.tasks.encoders.embedding import encoder_settings

    samples = _samples(config)
    stated = {
        "task": "recaptioning: picture and web caption → synthetic caption",
        "benchmark": config.name,
        "data_hash": samples.hash,
        "pictures": len(samples.numbers),
        "left_out": samples.left_out,
        **full_size_entry(len(samples.numbers) + samples.left_out, len(samples.source)),
        "reference": "one, the whole synthetic caption",
        "decoding": "the likeliest word each time",
        "scorer": f"pycocoevalcap {version('pycocoevalcap')}",
        "caption_tokenizer": tokenizer_name(),
        **row.encoder.how,
        **encoder_settings(row.encoder),
    }
    written = _written(row, samples)
    if written is None:
        absent = dict.fromkeys(METRICS, NO_CAPTIONER)
        return Evaluation(
            metrics={}, primary=PRIMARY, missing_metrics=absent, protocol=stated, items=_items(samples, None)
        )
    items = _items(samples, written)
    return Evaluation(
        metrics={name: compute_metric(items, spec) for name, spec in METRICS.items()},
        primary=PRIMARY,
        protocol=stated,
        items=items,
    )


def data_hash(config: BenchmarkConfig) -> str:
    """Return the SHA-256 of the images, web captions and synthetic captions."""
    return _samples(config).hash


def _samples(config: BenchmarkConfig) -> RecaptionSet:
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
    from clips.data.sources import BadSampleError, open_source

    source = open_source(config)
    digest = hashlib.sha256()
    numbers, web, synthetic, left_out = list[int](), list[str](), list[str](), 0
    for number in range(len(source)):
        if limit is not None and len(numbers) == limit:
            break
        try:
            sample = source.read(number, _drawer(number))
        except BadSampleError:
            left_out += 1
            continue
        if not sample.web or not sample.synthetic.strip():
            left_out += 1
            continue
        picture = hashlib.sha256(sample.image).hexdigest()
        digest.update(json.dumps([picture, sample.web, sample.synthetic], ensure_ascii=False).encode())
        numbers.append(number)
        web.append(sample.web)
        synthetic.append(sample.synthetic)
    if not numbers:
        raise UserError(f"{config.path}: expected samples with a synthetic caption under '{config.synthetic_caption}'")
    names = [source.name(number) for number in numbers]
    return RecaptionSet(source, numbers, names, web, synthetic, left_out, digest.hexdigest())


def _drawer(number: int) -> np.random.Generator:
    """A random generator that always makes the same choice."""
    return np.random.default_rng([0, number])


def _written(row: EvalModel, samples: RecaptionSet) -> list[str] | None:
    """Return the captioner's captions; None if there is no captioner."""
    from clips.encoder import load_captioner
    from clips.model.generation import generate_batch
    from clips.model.tokenizer import ClipsTokenizer

    directory = row.path("encoder")
    if not (Path(directory) / CAPTIONER_WEIGHTS).is_file():
        return None
    import torch

    from clips.model import towers

    encoder, captioner, words = row.encoder, load_captioner(directory), ClipsTokenizer()
    captioner = captioner.to(encoder.device)
    dtype = getattr(torch, encoder.precision)
    found = []
    with torch.inference_mode():
        for batch in progress_iter(list(_batches(len(samples.numbers), row.config.batch_size)), "writing captions"):
            pixels = torch.stack([encoder.preprocess(samples.open(index)) for index in batch])
            image = towers.encode_image(encoder.model, pixels.to(encoder.device, dtype))[1].float()
            text = None
            if captioner.text_projection is not None:
                tokens = encoder.tokenizer([samples.web[index] for index in batch]).to(encoder.device)
                text = towers.encode_text(encoder.model, tokens)[1].float()
            found += [words.decode(tokens) for tokens in generate_batch(captioner, image, text)]
    return found


def _batches(count: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def _items(samples: RecaptionSet, written: Sequence[str] | None) -> pd.DataFrame:
    import pandas as pd

    names, count = list(samples.names), len(samples.names)
    columns = {}
    if written is not None:
        own = score_captions([[text] for text in samples.synthetic], written)
        others = score_captions([[text] for text in np.roll(samples.synthetic, -1)], written)
        columns = dict(caption_columns(range(count), own))
        columns["cider_of_others"] = np.array([others.cider[number] for number in range(count)])
    return pd.DataFrame(
        {
            "item": names,
            "image": names,
            "direction": "",
            "category": "",
            "question": "",
            "prediction": "" if written is None else written,
            "target": list(samples.synthetic),
            "score": columns.get("cider", np.full(count, np.nan)),
            "thumbnail": thumbnails(names, samples.open),
            "given": list(samples.web),
            **columns,
        }
    )
