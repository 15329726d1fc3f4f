"""Sources of images with captions: config, samples, and helpers that all formats share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clips.core.identity import RUN_ONLY
from clips.data.formats import FORMATS
from clips.data.images import BadSampleError
from clips.data.remote_files import ShardCache
from clips.errors import UserError, unknown_name_error

AUTO = "auto"
"""Of a config's ``web_caption`` and ``synthetic_caption``: where the format has its captions (`Format`)."""


TRAINING_FORMATS = {name: entry for name, entry in FORMATS.items() if entry.trains_encoders}
"""The formats that ``clips train`` reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Images with captions.

    Args:
        format: webdataset (tar shards of images with JSON or text files of the same name), table (a CSV, TSV, JSON
            lines or parquet file, or a directory of such, an image a row), capsfusion (a table with the columns of
            CapsFusion-120M), datasets (a dataset of the Hugging Face hub, or a directory that ``save_to_disk`` wrote),
            karpathy (Karpathy's JSON: COCO, Flickr30k, Flickr8k), coco (COCO's captions_*.json), or another that lists
            captions (docs/data-formats.md).
        path: the file, the directory, or the dataset's name on the Hub. webdataset and tables also take addresses that
            fsspec reads (https://, s3://, …), with ``{000..127}`` for many of them; webdataset also commands that write
            a shard (``pipe:aws s3 cp s3://bucket/{000..127}.tar -``).
        image_column: tables, datasets: the column of the image: its bytes, or its path or address. null takes the
            first of image, jpg, png, image_path, file_name, path, url, image_url that is there.
        web_caption: where the short web caption is found. webdataset: a key of the sample's JSON, or ".txt" for the
            text file;
            tables, datasets: a column; a list of captions there means one drawn at random each time.
            karpathy, coco:
            "drawn_sentence" (another human sentence each epoch) or "first_sentence". auto is
            drawn_sentence of these
            two, laion_2b of capsfusion, web_caption of the others.
        synthetic_caption: where the long synthetic caption is found, as ``web_caption``; a list of such names means one
            of these captions drawn at random each time; null if there is none. karpathy, coco: "other_sentences" (all
            but the web caption, joined: a stand-in for a long caption) or "all_sentences". auto is other_sentences of
            these two, [laion_coco, capsfusion] of capsfusion, synthetic_caption of the others.
        split: karpathy, datasets: the split to read.
        subset: datasets: the configuration of a hub dataset that has several.
        streaming: tables, datasets: read parquet files where they are, a row group at a time and of it only the columns
            named here, instead of copying all to this disk before training begins. Copies of row groups are kept in
            ``cache_dir``; they are what ``data.shuffle_buffer_shards`` counts.
        image_root: tables, karpathy, coco: the directory of images; null means the directory of the table, or "images"
            next to the JSON file. Paths that lead out of it are rejected.
        allow_private_network: tables: whether addresses of images in them may lead to this machine or a private
            network. A table
            from elsewhere must not name such images.
        shard_sizes: webdataset: a JSON file that says how many samples each shard has; null means sizes.json next to
            the shards. With it no shard is opened before it is needed; remote shards need it (``clips data index``
            writes it).
        cache_dir: the directory for copies of remote shards and of streamed row groups.
        max_cache_gb: how much that directory may hold; the longest unused copies go first. While one
            ``data.shuffle_buffer_shards`` of shards is read, the next one is copied: give it room for two.
        weight: how much of all batches comes from this source, relative to the weights of the others; give one to each
            source or to none. Without, the sources are read as one, each sample once an epoch. Small weights are kept
            too: shares of all samples so far are rounded to whole samples, every 1,000 samples.
    """

    format: str = dataclasses.field(
        default="webdataset", metadata={"choices": "clips.data.sources.source:TRAINING_FORMATS"}
    )
    path: str
    image_column: str | None = None
    web_caption: str = AUTO
    synthetic_caption: tuple[str, ...] | str | None = AUTO
    split: str = "train"
    subset: str | None = None
    streaming: bool = False
    image_root: str | None = None
    allow_private_network: bool = False
    shard_sizes: str | None = None
    cache_dir: str = dataclasses.field(default="~/.cache/clips/shards", metadata=RUN_ONLY)
    max_cache_gb: float = dataclasses.field(default=100.0, metadata=RUN_ONLY)
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.format not in TRAINING_FORMATS:
            raise unknown_name_error(self.format, TRAINING_FORMATS, "format of a data source")
        for name in ("web_caption", "synthetic_caption"):
            if getattr(self, name) == AUTO:
                object.__setattr__(self, name, getattr(FORMATS[self.format], name))
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise UserError(f"data source's 'weight': expected a number above 0, got {self.weight}")

    @property
    def synthetics(self) -> tuple[str, ...]:
        """The names in ``synthetic_caption``, none to several."""
        if self.synthetic_caption is None or isinstance(self.synthetic_caption, str):
            return (self.synthetic_caption,) if self.synthetic_caption else ()
        return tuple(self.synthetic_caption)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image, still encoded, with its captions: "" where one is empty, or the source has no synthetic ones."""

    image: bytes
    web: str
    synthetic: str


@dataclasses.dataclass(frozen=True)
class Record:
    """A sample without its image, for writing the sample again.

    Args:
        key: unique within its shard.
        fields: captions and all other fields, as plain data; its web caption is under the config's
            ``web_caption``.
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
        """The number of samples, bad ones included."""

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; ``rng`` draws captions. Raises BadSampleError."""

    def record(self, index: int) -> Record:
        """What is known of sample ``index``, which `read` could read."""

    def name(self, index: int) -> str:
        """How people find the sample again."""

    def describe(self) -> dict[str, Any]:
        """The manifest entry of the source: its path, size and hash."""


class RemoteSource(Protocol):
    """A source with shards or row groups that are copied to local disk before they are read."""

    @property
    def is_remote(self) -> bool:
        """Whether there are such blocks."""

    @property
    def copies(self) -> ShardCache:
        """The cache of them."""

    def fetch(self, block: int) -> Path:
        """The local copy of ``block``, created if missing. Raises UserError."""


def shard_lengths(source: Source) -> list[int]:
    """Number of samples in each shard; formats without shards have a single one."""
    return list(getattr(source, "blocks", None) or [len(source)])


def sample_caption(found: Any, wanted: str, rng: np.random.Generator) -> str:
    """One caption, "" where it is empty: ``found`` is a text, a list of which one is drawn, or None.

    Raises:
        BadSampleError: it is something else.
    """
    if isinstance(found, list | np.ndarray):
        found = found[rng.integers(len(found))] if len(found) else None
    if found is None:
        return ""
    if not isinstance(found, str):
        raise BadSampleError(f"no caption '{wanted}'")
    return found.strip()


def choose_nonempty(captions: Sequence[str], rng: np.random.Generator) -> str:
    """One of those that are not empty, each equally likely; "" where there is none."""
    there = [caption for caption in captions if caption]
    return there[rng.integers(len(there))] if len(there) > 1 else "".join(there)
