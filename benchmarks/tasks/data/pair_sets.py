"""Images with captions that fit and captions that nearly fit, as compositional benchmarks use them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.tasks.data.aro_relations import SYMMETRIC
from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.dataset_format import ImageRegion, Pair
from clips.errors import UserError
from clips.jsontext import safe_json_loads

if TYPE_CHECKING:
    from PIL.Image import Image

_LEAST_OF_KIND = 25  # ARO's VG-Attribution leaves pairs of attributes out of its mean that are rarer


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Cases and their pictures.

    Args:
        root: what was read, for messages.
        cases: at least one; all have equally many pictures.
        averaged: the kinds that enter the mean over kinds.
        by_kinds: whether its authors report that mean, not the share of all cases.
        available: cases that there are without ``limit``.
    """

    root: Path
    cases: Sequence[Pair]
    averaged: frozenset[str]
    by_kinds: bool
    available: int

    @functools.cached_property
    def pictures(self) -> list[ImageRegion]:
        """Every different picture, in the order of the cases."""
        return list(dict.fromkeys(picture for case in self.cases for picture in case.pictures))

    def open(self, picture: ImageRegion) -> Image:
        """A picture, or the part that is meant, as RGB."""
        image = picture.image.open()
        return image if picture.box is None else image.crop(picture.box)

    @functools.cached_property
    def contents(self) -> dict[ImageRegion, str]:
        """What each of `pictures` shows: SHA-256 of its file, and the part that is meant."""
        images = dict.fromkeys(picture.image for picture in self.pictures)
        hashes = {image: hashlib.sha256(image.read()).hexdigest() for image in images}
        return {picture: json.dumps([hashes[picture.image], picture.box]) for picture in self.pictures}

    @functools.cached_property
    def pictures_hash(self) -> str:
        """SHA-256 over what the pictures show, in order."""
        return hashlib.sha256("".join(self.contents.values()).encode()).hexdigest()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the captions, kinds and pictures, the same wherever they lie and however they are called."""
        digest = hashlib.sha256()
        for case in self.cases:
            shown = [safe_json_loads(self.contents[picture]) for picture in case.pictures]
            digest.update(json.dumps([case.kind, case.captions, shown], ensure_ascii=False).encode())
        return digest.hexdigest()


def load_pair_set(data: str, format: str, *, images: str | None = None, limit: int | None = None) -> PairSet:
    """Read a compositional benchmark.

    Args:
        data: its file, or the directory of its files.
        format: a name in :data:`clips.data.formats.FORMATS` that yields pairs.
        images: folder of the pictures; by default ``images`` beside the file, or where the file is.
        limit: the first so many cases.

    Raises:
        UserError: missing or malformed, naming the place.
    """
    everything = list(read_dataset(DatasetSpec(path=data, format=format, image_root=images), "pairs").records)
    cases = everything[:limit]
    if not cases:
        raise UserError(f"{data}: holds no pair of captions")
    return PairSet(
        root=Path(data),
        cases=cases,
        averaged=_averaged(format, Counter(case.kind for case in cases if case.kind)),
        by_kinds=format in {"aro_relation", "aro_attribution"},
        available=len(everything),
    )


def _averaged(format: str, counts: Mapping[str, int]) -> frozenset[str]:
    """The kinds that enter the mean over kinds: all, but for what ARO's authors leave out of theirs."""
    if format == "aro_relation":
        return frozenset(counts) - SYMMETRIC
    if format == "aro_attribution":
        return frozenset(kind for kind, count in counts.items() if count >= _LEAST_OF_KIND)
    return frozenset(counts)
