"""Training data: its settings, and images with captions by index; `clips.data.sampler` determines their order.

A format with random access has a source of its own (shards, tables); of all others the captions are listed in memory.
torch is not imported here, so that errors of settings are reported fast.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from clips.core.identity import RUN_ONLY, file_hash
from clips.data.formats import FORMATS, DatasetSpec, read_dataset
from clips.data.formats.dataset_format import captions_by_image, captions_of
from clips.data.images import InvalidSampleError as InvalidSampleError
from clips.data.lazy_images import FileImage, image_bytes
from clips.data.remote_files import ShardCache
from clips.errors import UserError, unknown_name_error
from clips.lazy_import import import_from_string
from clips.ranges import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat, PositiveFraction

_AUTO = "auto"  # the format's default
TRAINING_FORMATS = {
    name: entry
    for name, entry in FORMATS.items()
    if entry.source or (entry.captions and name not in {"xm3600", "parallel"})  # these need the setting of a language
}
"""The formats that ``clips train`` reads."""
_LISTED_WEB = ("random_sentence", "first_sentence")
_LISTED_SYNTHETIC = ("other_sentences", "all_sentences")


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
        cache_dir: the directory for copies of remote shards and of streamed row groups, and for the indexes of shards.
        max_cache_gb: the maximum size of that directory; the least recently used copies are deleted first. While one
            buffer of ``data.shuffle_buffer_shards`` is read, the next one is copied: set it to the size of two.
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
        if self.format not in TRAINING_FORMATS:
            if self.format in {"csv", "tsv", "parquet"}:
                raise UserError(f"format: {self.format} files are read by format: table")
            raise unknown_name_error(self.format, TRAINING_FORMATS, "format of a data source")
        for name in ("web_caption", "synthetic_caption"):
            if getattr(self, name) == _AUTO:
                object.__setattr__(self, name, getattr(FORMATS[self.format], name))

    @property
    def synthetics(self) -> tuple[str, ...]:
        """The names in ``synthetic_caption``, none to several."""
        if self.synthetic_caption is None or isinstance(self.synthetic_caption, str):
            return (self.synthetic_caption,) if self.synthetic_caption else ()
        return tuple(self.synthetic_caption)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training images; evaluation always uses the full image.

    Args:
        crop_scale_min: minimum area of a random crop, as a ratio of the image; 1 squashes the full image instead.
        color_jitter: strength of SimCLR's color jitter, applied to 80 % of the images: brightness, contrast and
            saturation change by up to 0.8 times the strength, the hue by up to 0.2 times the strength of its circle.
            The reference uses 0.4: ±0.32 and ±0.08.
        gray_scale_prob: ratio of images converted to gray; the reference uses 0.2.
        horizontal_flip: mirror half of the images; wrong if captions mention left and right.
    """

    crop_scale_min: PositiveFraction = 0.4
    color_jitter: Fraction = 0.0
    gray_scale_prob: Fraction = 0.0
    horizontal_flip: bool = False

    @property
    def varies(self) -> bool:
        """Whether the augmentation is random."""
        return self.crop_scale_min < 1 or self.horizontal_flip or self.color_jitter > 0 or self.gray_scale_prob > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data.

    Args:
        sources: images with captions, each an entry of format, path, web_caption, synthetic_caption (see
            `--data.sources.help`); several are read as one, or mixed by their weights.
        shuffle_buffer_shards: number of shards (or blocks of 10,000 rows, or streamed row groups) that are shuffled
            together. null shuffles all samples of an epoch, which suits local disks; for remote shards or very many
            samples, a number such as 100 limits the reading to few shards at a time.
        augment: augmentation of the images.
        num_workers: DataLoader workers for each training process; 0 reads ahead in a thread.
        cache_images: cache decoded images in memory, so that each is decoded once at each size that crops need.
        max_invalid_ratio: stop if more than this ratio of the samples is undecodable or has no caption.
    """

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    shuffle_buffer_shards: Positive | None = None
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    num_workers: NonNegative = dataclasses.field(default=0, metadata=RUN_ONLY)
    cache_images: bool = dataclasses.field(default=False, metadata=RUN_ONLY)
    max_invalid_ratio: Fraction = dataclasses.field(default=0.01, metadata=RUN_ONLY)

    def __post_init__(self) -> None:
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            raise UserError("data.sources: expected a weight for each source or for none")
        if self.shuffle_buffer_shards is None and any(source.streaming for source in self.sources):
            raise UserError("data.shuffle_buffer_shards: expected a number, such as 100, for a streamed source")


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

    def fetch(self, block: int) -> Path:
        """The local copy of a shard or row group of a remote source, created if missing. Raises UserError."""
        raise NotImplementedError

    def open_all(self) -> None:  # noqa: B027  # most sources have no indexes
        """Read the indexes of all local shards before workers are forked: for an order whose first batch needs them."""


def open_source(config: SourceConfig) -> Source:
    """The source of ``config``, with its first samples checked.

    Raises:
        UserError: a file is missing or invalid, or none of the first samples has the fields in ``config``.
    """
    module, _, name = FORMATS[config.format].source.partition(".")
    make = import_from_string(f"clips.data.formats.{module}:{name}") if module else ListedCaptions
    source: Source = make(config)
    if not len(source):
        raise UserError(f"{config.path}: no samples")
    return source


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


class ListedCaptions(Source):
    """The paths and sentences of all images of a format that lists captions, in memory."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        if config.web_caption not in _LISTED_WEB:
            raise unknown_name_error(config.web_caption, _LISTED_WEB, f"'web_caption' of a {config.format} data source")
        synthetic = f"'synthetic_caption' of a {config.format} data source"
        for name in config.synthetics:
            if name not in _LISTED_SYNTHETIC:
                raise unknown_name_error(name, _LISTED_SYNTHETIC, synthetic)
        if len(config.synthetics) > 1:
            raise UserError(f"{synthetic}: expected one of {', '.join(_LISTED_SYNTHETIC)}")
        takes = FORMATS[config.format].takes
        taken: dict[str, Any] = {name: getattr(config, name) for name in ("split", "image_root") if name in takes}
        found = read_dataset(DatasetSpec(path=config.path, format=config.format, **taken), "captions")
        self.samples: list[tuple[FileImage, list[str]]] = []
        self.invalid: dict[int, str] = {}  # sample → why it has no sentences
        for image, captions in captions_by_image(found.records):
            if not any(captions):  # COCO has images without captions
                continue
            if not isinstance(image, FileImage):
                raise UserError(
                    f"{image}: expected a file of the image alone, as clips train lists the images of data "
                    f"source's 'format' {config.format}"
                )
            sentences, reason = list[str](), "no sentences"
            try:
                sentences = [text.strip() for text in captions_of(captions)]
            except InvalidSampleError as error:
                reason = str(error)
            if not sentences:
                self.invalid[len(self.samples)] = reason
            self.samples.append((image, sentences))
        # one sentence is the web caption, and training says that there are no others
        if "other_sentences" in config.synthetics and all(len(sentences) < 2 for _, sentences in self.samples):
            self.config = dataclasses.replace(config, synthetic_caption=None)
        self.blocks = [len(self.samples)]
        tried = [image for image, _ in self.samples[:20]]
        if tried and not any(image.exists() for image in tried):
            where = f"{tried[0].root}: expected the images there (data source's 'image_root')"
            raise UserError(f"{where}; none of the first {len(tried)} exists, such as {tried[0].reference}")

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.samples[index][0].name

    def read(self, index: int, rng: np.random.Generator) -> Sample:
        """See `Source`."""
        captions, image = self.captions(index, rng), self.samples[index][0]
        return Sample(image_bytes(image.reference, image.root), *captions)

    def captions(self, index: int, rng: np.random.Generator) -> tuple[str, str]:
        """See `Source`."""
        _, sentences = self.samples[index]
        if index in self.invalid:
            raise InvalidSampleError(self.invalid[index])
        web = int(rng.integers(len(sentences))) if self.config.web_caption == "random_sentence" else 0
        others = [
            f"{sentence.rstrip(' .!')}."  # so that it is a sentence when a caption is cut into sub-captions
            for number, sentence in enumerate(sentences)
            if number != web or "all_sentences" in self.config.synthetics
        ]
        return sentences[web], " ".join(others) if self.config.synthetics else ""

    def record(self, index: int) -> Record:
        """See `Source`; with random_sentence the web caption is the list of all sentences."""
        image, sentences = self.samples[index]
        web = sentences if self.config.web_caption == "random_sentence" else sentences[0]
        fields = {"file": image.name, "sentences": sentences, self.config.web_caption: web}
        return Record(f"{index:09d}", fields, reference=image.name)

    def describe(self) -> dict[str, Any]:
        """See `Source`."""
        path = Path(self.config.path)
        described = {"path": str(path), "split": self.config.split, "samples": len(self)}
        return described | ({"hash": file_hash(path)} if path.is_file() else {})
