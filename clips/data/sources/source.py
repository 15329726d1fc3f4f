"""Sources of images with captions: config, samples, and helpers for all formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clips.core.identity import RUN_ONLY
from clips.data.formats import FORMATS
from clips.data.formats.dataset_format import captions_of
from clips.data.images import InvalidSampleError
from clips.data.remote_files import ShardCache
from clips.errors import unknown_name_error
from clips.ranges import FinitePositive

AUTO = "auto"
"""A config's ``web_caption`` or ``synthetic_caption`` is the format's default (`Format`)."""
TRAINING_FORMATS = {name: entry for name, entry in FORMATS.items() if entry.trains_encoders}
"""The formats that ``clips train`` reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Images with captions.

    Args:
        format: webdataset (tar shards of images with JSON or text files of the same name), table (a CSV, TSV, JSON
            lines or parquet file, or a directory of them, one image per row), capsfusion (a table with the columns of
            CapsFusion-120M), datasets (a dataset of the Hugging Face Hub, or a directory that ``save_to_disk`` wrote),
            karpathy (Karpathy's JSON: COCO, Flickr30k, Flickr8k), coco (COCO's captions_*.json), or another format
            that lists captions (docs/data-formats.md).
        path: the file, the directory, or the Hub repo id. webdataset and tables also accept fsspec URLs (https://,
            s3://, …), with ``{000..127}`` for many of them; webdataset also accepts commands that write a shard
            (``pipe:aws s3 cp s3://bucket/{000..127}.tar -``).
        image_column: tables, datasets: the column with the image's bytes, path or URL. null means the first existing
            one of image, jpg, png, image_path, file_name, path, url, image_url.
        web_caption: location of the short web caption. webdataset: a key of the sample's JSON, or ".txt" for the text
            file, with a caption per line. tables, datasets: a column. From several captions, one is sampled each time.
            karpathy, coco: "random_sentence" (another human sentence each epoch) or "first_sentence". auto means
            random_sentence for these two, laion_2b for capsfusion, and web_caption for the others.
        synthetic_caption: location of the long synthetic caption, as for ``web_caption``; from a list of locations, one
            caption is sampled each time; null if there is none. karpathy, coco: "other_sentences" (all except the web
            caption, joined: a substitute for a long caption) or "all_sentences". auto means other_sentences for these
            two, [laion_coco, capsfusion] for capsfusion, and synthetic_caption for the others.
        split: karpathy, datasets, and tables with a column ``split``: the split to read, ``all`` for every row.
            ``train+restval`` is COCO's usual training split in karpathy.
        subset: datasets: the configuration of a Hub dataset that has several.
        streaming: tables, datasets: read remote or local parquet files by row group, and only the required columns,
            instead of copying all files to this disk before training. Copies of row groups are cached in
            ``cache_dir``; ``data.shuffle_buffer_shards`` counts row groups.
        image_root: tables, karpathy, coco: the directory of images; null means the directory of the table, or "images"
            next to the JSON file. Paths outside it are rejected.
        shard_sizes: webdataset: a JSON file with the number of samples of each shard; null means sizes.json next to
            the shards. With it, a shard is opened only when it is needed; remote shards require it (``clips data
            index`` writes it).
        cache_dir: the directory for copies of remote shards and of streamed row groups.
        max_cache_gb: the maximum size of that directory; the least recently used copies are deleted first. While one
            buffer of ``data.shuffle_buffer_shards`` is read, the next one is copied: set it to the size of two.
        weight: ratio of samples from this source, relative to the weights of the others; set it for each source or for
            none. Without weights, the sources are read as one, each sample once per epoch. Small weights are exact
            too: every 1,000 samples, each source's count is its ratio of all samples so far, rounded to an integer.
    """

    format: str = "webdataset"
    path: str
    image_column: str | None = None
    web_caption: str = AUTO
    synthetic_caption: tuple[str, ...] | str | None = AUTO
    split: str = "train"
    subset: str | None = None
    streaming: bool = False
    image_root: str | None = None
    shard_sizes: str | None = None
    cache_dir: str = dataclasses.field(default="~/.cache/clips/shards", metadata=RUN_ONLY)
    max_cache_gb: float = dataclasses.field(default=100.0, metadata=RUN_ONLY)
    weight: FinitePositive | None = None

    def __post_init__(self) -> None:
        if self.format not in TRAINING_FORMATS:
            raise unknown_name_error(self.format, TRAINING_FORMATS, "format of a data source")
        for name in ("web_caption", "synthetic_caption"):
            if getattr(self, name) == AUTO:
                object.__setattr__(self, name, getattr(FORMATS[self.format], name))

    @property
    def synthetics(self) -> tuple[str, ...]:
        """The names in ``synthetic_caption``, none to several."""
        if self.synthetic_caption is None or isinstance(self.synthetic_caption, str):
            return (self.synthetic_caption,) if self.synthetic_caption else ()
        return tuple(self.synthetic_caption)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One encoded image with its captions; "" for a caption that is empty or that the source does not have."""

    image: bytes
    web: str
    synthetic: str


@dataclasses.dataclass(frozen=True)
class Record:
    """A sample without its image, for writing it to another dataset.

    Args:
        key: unique within its shard.
        fields: captions and all other fields, as plain data; the web caption's key is the config's ``web_caption``.
        files: other files of the sample: extension → content.
        reference: the path or URL of its image, if the source has it.
    """

    key: str
    fields: dict[str, Any]
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    reference: str | None = None


class Source(Protocol):
    """A sequence of samples by index; `clips.data.sampler` determines their order."""

    def __len__(self) -> int:
        """The number of samples, including invalid ones."""

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; ``rng`` selects captions. Raises InvalidSampleError."""

    def record(self, index: int) -> Record:
        """The other data of sample ``index``, which must be valid."""

    def name(self, index: int) -> str:
        """The location of the sample, for messages."""

    def describe(self) -> dict[str, Any]:
        """The manifest entry of the source: its path, size and hash."""


class RemoteSource(Protocol):
    """A source with shards or row groups that are copied to local disk before they are read."""

    @property
    def is_remote(self) -> bool:
        """Whether its shards or row groups are remote."""

    @property
    def copies(self) -> ShardCache:
        """The cache of its shards or row groups."""

    def fetch(self, block: int) -> Path:
        """The local copy of a shard or row group, created if missing. Raises UserError."""


def shard_lengths(source: Source) -> list[int]:
    """Number of samples in each shard; formats without shards have a single one."""
    return list(getattr(source, "blocks", None) or [len(source)])


def sample_caption(value: Any, name: str, rng: np.random.Generator) -> str:
    """One of the captions of ``value`` (`captions_of`) at random; "" if there is none.

    Raises:
        InvalidSampleError: the value is no caption.
    """
    try:
        captions = captions_of(value)
    except InvalidSampleError as error:
        raise InvalidSampleError(f"{name}: {error}") from None
    return captions[rng.integers(len(captions))].strip() if captions else ""


def choose_nonempty(captions: Sequence[str], rng: np.random.Generator) -> str:
    """One of the nonempty captions, with equal probability; "" if there is none."""
    nonempty = [caption for caption in captions if caption]
    return nonempty[rng.integers(len(nonempty))] if len(nonempty) > 1 else "".join(nonempty)
