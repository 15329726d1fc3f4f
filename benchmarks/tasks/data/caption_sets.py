"""Images with several captions each, and captions with several images, whatever format they came in."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.dataset_format import Captioned, texts_of
from clips.data.lazy_images import LazyImage
from clips.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from benchmarks.tasks.run_config import BenchmarkConfig

_KEPT = 8  # sets that a process keeps: names and captions, no pictures


@dataclass(frozen=True)
class CaptionSet:
    """Pictures, captions, and which belong together.

    Letters: N pictures, M captions, P right pairs of them.

    Args:
        files: (N,) the images.
        images: (N,) their names, all different.
        texts: (M,) captions, those of a picture side by side; equal ones of two pictures are two.
        pairs: (P, 2) numbers of a picture and of a caption that is right for it, by caption.
        source: the file or directory that was read, for messages.
        split: which split that is; ``formats.base.WHOLE`` where there are none.
        available: pictures that there are without ``limit``.
    """

    files: Sequence[LazyImage]
    images: Sequence[str]
    texts: Sequence[str]
    pairs: np.ndarray
    source: str
    split: str
    available: int

    @functools.cached_property
    def captions(self) -> list[list[str]]:
        """(N,) the captions of each picture, at least one."""
        groups: list[list[str]] = [[] for _ in self.images]
        for image, caption in self.pairs:
            groups[image].append(self.texts[caption])
        return groups

    @functools.cached_property
    def first_owner(self) -> np.ndarray:
        """(M,) the first picture that each caption belongs to."""
        return self.pairs[np.unique(self.pairs[:, 1], return_index=True)[1], 0]

    @property
    def shared(self) -> bool:
        """Whether a caption belongs to several pictures."""
        return len(self.pairs) > len(self.texts)

    def open(self, index: int) -> Image:
        """Picture ``index`` as RGB. Raises UserError naming one that is missing or broken."""
        return self.files[index].open()

    @functools.cached_property
    def picture_hashes(self) -> list[str]:
        """(N,) SHA-256 of each picture's content."""
        return [hashlib.sha256(image.read()).hexdigest() for image in self.files]

    @functools.cached_property
    def pictures_hash(self) -> str:
        """SHA-256 over the pictures' contents, in order."""
        return hashlib.sha256("".join(self.picture_hashes).encode()).hexdigest()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over captions and picture contents, the same whatever format they came in."""
        digest = hashlib.sha256()
        for content, captions in zip(self.picture_hashes, self.captions, strict=True):
            digest.update(json.dumps([content, *captions], ensure_ascii=False).encode())
        if self.shared:
            digest.update(json.dumps(self.pairs.tolist()).encode())
        return digest.hexdigest()

    @functools.cached_property
    def captions_hash(self) -> str:
        """SHA-256 over the captions and the pictures that each belongs to; no picture is read."""
        return hashlib.sha256(json.dumps([self.texts, self.pairs.tolist()], ensure_ascii=False).encode()).hexdigest()


def load_caption_set(source: DatasetSpec, *, captions_per_image: int = 5, limit: int | None = None) -> CaptionSet:
    """Read a retrieval data set; once in a process, unless its files change.

    A picture that comes several times is one picture with all those captions.

    Args:
        source: where it is.
        captions_per_image: keep captions that are among the first so many of some picture.
        limit: keep the first so many pictures.

    Raises:
        UserError: missing or malformed, an empty split, a picture without captions.
    """
    return _load(source, captions_per_image, limit, file_stamps(Path(source.path)))


def load_benchmark_captions(config: BenchmarkConfig, *, language: str | None = None) -> CaptionSet:
    """The data set of a benchmark, or of one of its languages. Raises what `load_caption_set` does."""
    source = DatasetSpec(
        path=config.data,
        format=config.format,
        split=config.split,
        image_root=config.image_root,
        language=language or config.language,
        subset=config.subset,
        image_column=config.image_column,
        caption_columns=tuple(config.caption_columns),
    )
    return load_caption_set(source, captions_per_image=config.captions_per_image, limit=config.limit)


def file_stamps(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of all files there, by which a change is noticed."""
    files = path.rglob("*") if path.is_dir() else [path] if path.exists() else []
    facts = ((str(file), file.stat()) for file in files if file.is_file())
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in facts))


@functools.lru_cache(maxsize=_KEPT)
def _load(source: DatasetSpec, per_image: int, limit: int | None, _stamp: object) -> CaptionSet:
    found = read_dataset(source, "captions")
    images, texts, owners = _gather(found.records, source.path)
    if not texts:
        raise UserError(f"{source.path}: holds no picture with captions")
    kept = _choose(owners, per_image, limit)
    pairs = [(image, number) for number, (_, owned) in enumerate(kept) for image in owned]
    return CaptionSet(
        list(images.values())[:limit],
        list(images)[:limit],
        [texts[caption] for caption, _ in kept],
        np.array(pairs),
        source.path,
        found.split,
        len(images),
    )


def _gather(records: Iterable[Captioned], path: str) -> tuple[dict[str, LazyImage], list[str], list[list[int]]]:
    """(images by name, captions, the images of each caption), in the order of the records."""
    images: dict[str, LazyImage] = {}
    numbers: dict[str, int] = {}
    texts: list[str] = []
    owners: list[list[int]] = []
    for record in records:
        names = [image.name for image in record.images]
        _check(record.captions, f"{path}: {', '.join(names):.200}")
        images |= {name: image for name, image in zip(names, record.images, strict=True) if name not in images}
        owned = sorted({numbers.setdefault(name, len(numbers)) for name in names})
        texts += record.captions
        owners += [owned] * len(record.captions)
    return images, texts, owners


def _check(captions: Any, where: str) -> None:
    if not texts_of(captions, where):
        raise UserError(f"{where}: expected a list of captions, got none")
    for number, text in enumerate(captions, 1):
        if not text.strip():
            raise UserError(f"{where}: caption {number} is empty")


def _choose(owners: Sequence[Sequence[int]], per_image: int, limit: int | None) -> list[tuple[int, list[int]]]:
    """(caption, its pictures) of those that are kept, ordered by their first picture.

    A caption that is kept keeps all its pictures that are: with one of them left out, an answer that is right would
    count as wrong.
    """
    taken: Counter[int] = Counter()
    kept = []
    for caption in sorted(range(len(owners)), key=lambda caption: owners[caption][0]):
        owned = [image for image in owners[caption] if limit is None or image < limit]
        if any(taken[image] < per_image for image in owned):
            taken.update(owned)
            kept.append((caption, owned))
    return kept
