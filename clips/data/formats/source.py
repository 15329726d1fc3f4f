"""A source of training data: its settings, and its samples by index."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clips.core.identity import RUN_ONLY
from clips.data.formats.dataset_format import FORMATS, LANGUAGE, Format, captions_of
from clips.data.images import InvalidSampleError
from clips.data.remote_files import ShardCache
from clips.errors import UserError, unknown_name_error
from clips.ranges import NonNegativeFloat, PositiveFloat

CAPTION_NAMES = {"web_caption": "web_caption", "synthetic_caption": "synthetic_caption"}
"""Where shards and tables have their captions by default: as this suite writes them."""
_AUTO = "auto"  # the format's default


def training_formats() -> dict[str, Format]:
    """The formats that ``clips train`` reads: with random access, or with captions to list in memory."""
    return {
        name: entry
        for name, entry in FORMATS.items()
        if entry.source or (entry.captions and entry.takes != LANGUAGE)  # a setting that sources do not have
    }


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
            of that file. tables, datasets: a column. From several captions, one is sampled each time.
            Formats that list captions (karpathy, coco and others): "random_sentence" (another sentence each epoch)
            or "first_sentence". auto means random_sentence for these, laion_2b for capsfusion, and web_caption for
            webdataset, tables and datasets.
        synthetic_caption: location of the long synthetic caption, as for ``web_caption``; from a list of locations, one
            caption is sampled each time; null if there is none. Formats that list captions: "other_sentences" (all
            except the web caption, joined: a substitute for a long caption) or "all_sentences". auto means
            other_sentences for these, [laion_coco, capsfusion] for capsfusion, and synthetic_caption for the others.
        split: datasets, tables with a column ``split``, and listed captions with splits (karpathy, docci, …): the split
            to read, ``all`` for every row. ``train+restval`` is COCO's usual training split in karpathy.
        subset: datasets: the configuration of a Hub dataset that has several.
        streaming: tables, datasets: read remote or local parquet files by row group, and only the required columns,
            instead of copying all files to this disk before training. Copies of row groups are cached in
            ``cache_dir``; ``data.shuffle_buffer_shards`` counts row groups.
        image_root: tables, and formats that list captions: the directory of images; null means the directory of the
            table, or that of the format, mostly "images" next to its file. Paths outside it are rejected.
        shard_sizes: webdataset: a JSON file with the number of samples of each shard; null means sizes.json next to
            the shards. With it, a shard is opened only when it is needed; remote shards require it (``clips data
            index`` writes it).
        cache_dir: the directory for copies of remote shards and of streamed row groups, and for the indexes of shards.
        max_cache_gb: the maximum size of the copies there; the least recently used ones are deleted first. While one
            buffer of ``data.shuffle_buffer_shards`` is read, the next one is copied: set it to the size of two. Indexes
            take up to a tenth of it in addition.
        weight: ratio of samples from this source, relative to the weights of the others; set it for each source or for
            none. Without weights, the sources are read as one, each sample once per epoch. Small weights are exact
            too: every 1,000 samples, each source's count is its ratio of all samples so far, rounded to an integer;
            the source with the largest weight gets the rest.
    """

    format: str = "webdataset"
    path: str
    image_column: str | None = None
    web_caption: str = _AUTO
    synthetic_caption: tuple[str, ...] | str | None = _AUTO
    split: str = "train"
    subset: str | None = None
    streaming: bool = False
    image_root: str | None = None
    shard_sizes: str | None = None
    cache_dir: str = dataclasses.field(default="~/.cache/clips/shards", metadata=RUN_ONLY)
    max_cache_gb: NonNegativeFloat = dataclasses.field(default=100.0, metadata=RUN_ONLY)
    weight: PositiveFloat | None = None

    def __post_init__(self) -> None:
        known = training_formats()
        if self.format not in known:
            if self.format in {"csv", "tsv", "parquet"}:
                raise UserError(f"format: {self.format} files are read by format: table")
            raise unknown_name_error(self.format, known, "format of a data source")
        for name in ("web_caption", "synthetic_caption"):
            if getattr(self, name) == _AUTO:
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


class Source(abc.ABC):
    """A sequence of samples by index.

    ``config`` has no ``synthetic_caption`` if no sample can have one. ``blocks`` are the numbers of samples in its
    shards or row groups; if ``is_remote``, these are copied into the cache ``copies`` before they are read.
    """

    config: SourceConfig
    blocks: list[int]
    is_remote: bool = False
    copies: ShardCache

    def __len__(self) -> int:
        """The number of samples, including invalid ones."""
        return sum(self.blocks)

    @abc.abstractmethod
    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """Sample ``index``; ``rng`` selects captions. Raises InvalidSampleError."""

    @abc.abstractmethod
    def captions(self, index: int, rng: np.random.Generator) -> tuple[str, str]:
        """The web and the synthetic caption of sample ``index``, as `read` has them; without reading its image."""

    @abc.abstractmethod
    def record(self, index: int) -> Record:
        """The other data of sample ``index``, which must be valid."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """The location of the sample, for messages."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """The manifest entry of the source: its path, size and hash."""

    def contents(self) -> str:
        """A hash of local files that `describe` does not read; empty if there are none. May raise OSError."""
        return ""

    def fetch(self, block: int) -> Path:
        """The local copy of a shard or row group of a remote source, created if missing. Raises UserError."""
        raise NotImplementedError

    def hold(self, blocks: int | None) -> None:  # noqa: B027  # most sources have no indexes
        """Prepare for an order whose samples alternate between ``blocks`` shards, of None between all.

        Called before workers are forked.
        """

    @property
    def facts(self) -> Any:
        """What another process needs to open the same source without reading the shards; None if it reads all itself.

        Plain data, an argument of the class.
        """
        return None


def choose_captions(config: SourceConfig, captions: Callable[[str], Any], rng: np.random.Generator) -> tuple[str, str]:
    """The web caption and the synthetic caption of a sample, from what its format has under each name.

    Raises:
        InvalidSampleError: it has neither, or a value is no caption.
    """
    web = sample_caption(captions(config.web_caption), config.web_caption, rng)
    synthetics = [sample_caption(captions(name), name, rng) for name in config.synthetics]
    synthetics = [caption for caption in synthetics if caption]
    synthetic = synthetics[rng.integers(len(synthetics))] if len(synthetics) > 1 else "".join(synthetics)
    if not web and not synthetic:
        raise InvalidSampleError(f"no caption '{config.web_caption}'")
    return web, synthetic


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
