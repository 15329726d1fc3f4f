"""How much of each data source an epoch has, and whether all of its pictures are there."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from clips.errors import UserError
from llava_bridge.data.samples import Sample

_AT_ONCE = 32
_SECONDS_BETWEEN_LINES = 20.0
Item = TypeVar("Item")


def weighted(items: Sequence[Item], weight: float, seed: int) -> list[Item]:
    """As many of ``items`` as an epoch has: each ``weight`` times, rounded down, and some of them once more.

    Args:
        items: all of them.
        weight: 1 gives them as they are, 0.5 half of them, 1.5 each once and half of them twice.
        seed: of the draw of those that come once more.
    """
    whole, part = divmod(weight, 1)
    drawn = random.Random(seed).sample(range(len(items)), round(part * len(items)))
    return [*itertools.chain.from_iterable([items] * int(whole)), *(items[index] for index in sorted(drawn))]


def refuse_missing(samples: Iterable[Sample], path: str, say: Callable[[str], None]) -> None:
    """Look for the file of every picture.

    Args:
        samples: those of a source.
        path: the source's, for messages.
        say: is told every now and then how far it is.

    Raises:
        UserError: naming the first that is missing, and how many are.
    """
    pictures = list({str(picture): picture for sample in samples for picture in sample.images}.values())
    missing, told = [], time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = threads.map(lambda picture: picture.is_there(), pictures)
        for done, (picture, is_there) in enumerate(zip(pictures, found, strict=True), 1):
            if not is_there:
                missing.append(picture)
            if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                say(f"{path}: looked for {done:,} of {len(pictures):,} pictures")
    if missing:
        raise UserError(
            f"data.missing_images: {len(missing):,} of {len(pictures):,} pictures of {path} are missing; "
            f"the first: {missing[0]}"
        )
