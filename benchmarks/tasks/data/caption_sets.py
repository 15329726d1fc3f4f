"""Images with several captions each, and captions with several images, in any supported format."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.tasks.registry import BenchmarkConfig
from clips.core.identity import RUN_ONLY, file_stamps
from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.dataset_format import strict_captions
from clips.data.lazy_images import LazyImage
from clips.errors import UserError
from clips.ranges import Positive

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class CaptionSetConfig(BenchmarkConfig):
    """A benchmark on images with captions.

    Args:
        data: WebDataset shards, a Karpathy JSON, JSON lines of {image, captions}, or another format (see
            docs/data-formats.md).
        split: split of the data, if it has any; ``all`` uses every split.
        image_root: directory of the images; by default ``images`` next to a JSON, or the directory of the file.
        captions_per_image: use at most this number of captions per image (5 in the COCO protocol).
        format: of the data, if detection is ambiguous; ``datasets`` for a Hub repo id.
        subset: a dataset's configuration on the Hub.
        image_column: of a table (CSV, TSV, JSON lines, parquet) or a Hugging Face dataset; by default the first
            existing one of image, jpg, png, image_path, file_name, path, url, image_url.
        caption_columns: likewise; one column of lists, or several. By default the first existing one of captions,
            caption, sentences, texts, text, raw, or caption_0, caption_1, ….
    """

    split: str = "test"
    image_root: str | None = dataclasses.field(default=None, metadata=RUN_ONLY)
    captions_per_image: Positive = 5
    format: str | None = None
    subset: str | None = None
    image_column: str | None = None
    caption_columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionSet:
    """Images, captions and their matching pairs.

    Letters: N images, M captions, P matching pairs.
    """

    files: Sequence[LazyImage]  # (N,) the images
    images: Sequence[str]  # (N,) their unique names
    texts: Sequence[str]  # (M,) captions, grouped by image; equal captions of two images count as two
    pairs: np.ndarray  # (P, 2) indices of an image and a matching caption, ordered by caption
    source: str  # the file or directory that was read, for messages
    split: str  # the split; ``dataset_format.WHOLE`` without splits
    available: int  # number of images without ``limit``

    @functools.cached_property
    def captions(self) -> list[list[str]]:
        """(N,) the captions of each image, at least one."""
        groups: list[list[str]] = [[] for _ in self.images]
        for image, caption in self.pairs:
            groups[image].append(self.texts[caption])
        return groups

    @functools.cached_property
    def first_image_of_caption(self) -> np.ndarray:
        """(M,) the first image that each caption belongs to."""
        return self.pairs[np.unique(self.pairs[:, 1], return_index=True)[1], 0]

    @property
    def shared(self) -> bool:
        """Whether a caption belongs to several images."""
        return len(self.pairs) > len(self.texts)

    def open(self, index: int) -> Image:
        """Image ``index`` as RGB.

        Raises:
            UserError: it is missing or broken.
        """
        return self.files[index].open()

    @functools.cached_property
    def image_hashes(self) -> list[str]:
        """(N,) SHA-256 of each image's content."""
        return [hashlib.sha256(image.read()).hexdigest() for image in self.files]

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over captions and image contents, independent of the file format."""
        digest = hashlib.sha256()
        for content, captions in zip(self.image_hashes, self.captions, strict=True):
            digest.update(json.dumps([content, *captions], ensure_ascii=False).encode())
        if self.shared:
            digest.update(json.dumps(self.pairs.tolist()).encode())
        return digest.hexdigest()

    @functools.cached_property
    def captions_hash(self) -> str:
        """SHA-256 over the captions and their pairs, without reading images."""
        return hashlib.sha256(json.dumps([self.texts, self.pairs.tolist()], ensure_ascii=False).encode()).hexdigest()


def load_caption_set(source: DatasetSpec, *, captions_per_image: int = 5, limit: int | None = None) -> CaptionSet:
    """Read the first ``limit`` images of a retrieval dataset; cached per process until its files change.

    Repeated images are merged with all their captions, of which the first ``captions_per_image`` are used.

    Raises:
        UserError: missing or malformed, an empty split, an image without captions.
    """
    return _load(source, captions_per_image, limit, file_stamps(Path(source.path)))


def load_benchmark_captions(config: CaptionSetConfig, *, language: str | None = None) -> CaptionSet:
    """The dataset of a benchmark, in one of its languages if it has several.

    Raises what `load_caption_set` does.
    """
    return load_caption_set(
        dataset_of(config, language), captions_per_image=config.captions_per_image, limit=config.limit
    )


def dataset_of(config: CaptionSetConfig, language: str | None = None) -> DatasetSpec:
    """The specification of a benchmark's dataset."""
    return DatasetSpec(
        path=config.data,
        format=config.format,
        split=config.split,
        image_root=config.image_root,
        language=language,
        subset=config.subset,
        image_column=config.image_column,
        caption_columns=tuple(config.caption_columns),
    )


@functools.lru_cache(maxsize=8)  # names and captions, no images
def _load(source: DatasetSpec, per_image: int, limit: int | None, _stamp: object) -> CaptionSet:
    dataset = read_dataset(source, "captions")
    images: dict[str, LazyImage] = {}
    numbers: dict[str, int] = {}
    texts: list[str] = []
    owners: list[list[int]] = []  # the images of each caption
    for record in dataset.records:
        names = [image.name for image in record.images]
        captions = strict_captions(record.captions, f"{source.path}: {', '.join(names):.200}")
        images |= {name: image for name, image in zip(names, record.images, strict=True) if name not in images}
        texts += captions
        owners += [sorted({numbers.setdefault(name, len(numbers)) for name in names})] * len(captions)
    if not texts:
        raise UserError(f"{source.path}: contains no image with captions")
    # captions in the order of their first image, until each image has enough; a selected one has all of its selected
    # images: without one, a right answer would count as wrong
    counts: Counter[int] = Counter()
    selected: list[tuple[int, list[int]]] = []
    for caption in sorted(range(len(owners)), key=lambda caption: owners[caption][0]):
        owned = [image for image in owners[caption] if limit is None or image < limit]
        if any(counts[image] < per_image for image in owned):
            counts.update(owned)
            selected.append((caption, owned))
    pairs = [(image, number) for number, (_, owned) in enumerate(selected) for image in owned]
    return CaptionSet(
        list(images.values())[:limit],
        list(images)[:limit],
        [texts[caption] for caption, _ in selected],
        np.array(pairs),
        source.path,
        dataset.split,
        len(images),
    )
