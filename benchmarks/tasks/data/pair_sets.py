"""Images with matching captions and hard negatives: the data of compositional benchmarks."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clips.data.formats import DatasetSpec, read_dataset
from clips.data.formats.dataset_format import ImageRegion, Pair
from clips.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


_NAMES = """
adjusting, around, attached to, beside, between, bigger than, biting, boarding, brushing, by, chewing, cleaning,
climbing, close to, coming from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from,
driving, driving down, driving on, eating from, eating in, enclosing, exiting, facing, filled with, floating in,
floating on, flying, flying above, flying in, flying over, flying through, full of, going down, going into, going
through, grazing in, growing in, growing on, guiding, hanging from, hanging in, hanging off, hanging over, higher
than, holding onto, hugging, in between, jumping off, jumping on, jumping over, kept in, larger than, leading,
leaning over, leaving, licking, longer than, looking in, looking into, looking out, looking over, looking through,
lying next to, lying on top of, making, mixed with, mounted on, moving, near, next to, of, on the back of, on the
edge of, on the front of, on the other side of, on the side of, opening, painted on, parked at, parked beside,
parked by, parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing,
playing in, playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running in, running
on, running through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near,
sitting next to, sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing,
sprinkled on, stacked on, standing against, standing around, standing behind, standing beside, standing in front of,
standing near, standing next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with,
touching, traveling down, traveling on, tying, typing on, underneath, wading in, waiting for, walking across,
walking by, walking down, walking next to, walking through, with, working in, working on, worn on, wrapped around,
wrapped in
"""
SYMMETRIC = frozenset(_NAMES.replace("\n", " ").strip().split(", "))


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Items and their images."""

    root: Path  # the path that was read, for messages
    cases: Sequence[Pair]  # at least one; all have the same number of images
    averaged: frozenset[str]  # the categories that enter the mean over categories
    by_category: bool  # whether its authors report that mean instead of the accuracy over all items
    available: int  # number of items without ``limit``

    @functools.cached_property
    def images(self) -> list[ImageRegion]:
        """The distinct images, in the order of the cases."""
        return list(dict.fromkeys(image for case in self.cases for image in case.images))

    def open(self, region: ImageRegion) -> Image:
        """An image, or its region, as RGB."""
        image = region.image.open()
        return image if region.box is None else image.crop(region.box)

    @functools.cached_property
    def contents(self) -> dict[ImageRegion, tuple[str, Any]]:
        """Each of `images` → its content: SHA-256 of the file, and the box."""
        files = dict.fromkeys(region.image for region in self.images)
        hashes = {file: hashlib.sha256(file.read()).hexdigest() for file in files}
        return {region: (hashes[region.image], region.box) for region in self.images}

    @functools.cached_property
    def images_hash(self) -> str:
        """SHA-256 of the images' contents, in order."""
        return hashlib.sha256("".join(map(json.dumps, self.contents.values())).encode()).hexdigest()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the captions, categories and images, independent of file locations and names."""
        digest = hashlib.sha256()
        for case in self.cases:
            shown = [self.contents[image] for image in case.images]
            digest.update(json.dumps([case.kind, case.captions, shown], ensure_ascii=False).encode())
        return digest.hexdigest()


def load_pair_set(data: str, format: str, *, images: str | None = None, limit: int | None = None) -> PairSet:
    """Read a compositional benchmark.

    Args:
        data: its file, or the directory of its files.
        format: a name in :data:`clips.data.formats.FORMATS` that yields pairs.
        images: directory of the images; by default ``images`` next to the file, or the file's directory.
        limit: keep the first N items.

    Raises:
        UserError: missing or malformed, the message names the file.
    """
    records = list(read_dataset(DatasetSpec(path=data, format=format, image_root=images), "pairs").records)
    cases = records[:limit]
    if not cases:
        raise UserError(f"{data}: contains no pair of captions")
    counts = Counter(case.kind for case in cases if case.kind)
    averaged = frozenset(counts)
    if format == "aro_relation":
        averaged -= SYMMETRIC
    elif format == "aro_attribution":  # without rare pairs of attributes, as its authors do
        averaged = frozenset(category for category, count in counts.items() if count >= 25)
    return PairSet(
        root=Path(data),
        cases=cases,
        averaged=averaged,
        by_category=format in {"aro_relation", "aro_attribution"},
        available=len(records),
    )
