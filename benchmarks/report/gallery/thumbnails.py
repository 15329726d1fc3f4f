"""Images on the page: small JPEGs that the evaluation kept, each written once however often it is shown."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pandas as pd
from markupsafe import Markup

from benchmarks.results.formatting import strip_control_chars

MAX_SECTION_BYTES = 2_000_000
"""What the images of one gallery may take of the page, which is to stay below 15 MB."""

_JPEG, _LARGEST_THUMBNAIL = b"\xff\xd8\xff", 100_000
_LARGEST_SIDE = 1000
_LONGEST_NAME = 80


class _HasPictures(Protocol):
    def thumbnails(self) -> Iterable[Thumbnail | None]: ...


_Card = TypeVar("_Card", bound=_HasPictures)


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A thumbnail, and the words that stand for it where it cannot be seen.

    Args:
        content: a JPEG's bytes.
        width: in pixels.
        height: in pixels.
        alt: the words.
    """

    content: bytes
    width: int
    height: int
    alt: str

    @functools.cached_property
    def id(self) -> str:
        """The same for the same content: its anchor in the page."""
        return "image-" + hashlib.sha256(self.content).hexdigest()[:16]


def make_thumbnail(content: object, alt: str) -> Thumbnail | None:
    """A kept thumbnail; None for anything but a small JPEG, which is all that the evaluation writes."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(content, bytes) or not content.startswith(_JPEG) or len(content) > _LARGEST_THUMBNAIL:
        return None
    try:
        width, height = Image.open(io.BytesIO(content), formats=["JPEG"]).size  # of the header: nothing is decoded
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    if max(width, height) > _LARGEST_SIDE:
        return None
    return Thumbnail(content=content, width=width, height=height, alt=strip_control_chars(alt, _LONGEST_NAME))


def thumbnails_of(tables: Iterable[pd.DataFrame]) -> dict[str, Thumbnail]:
    """Reference → thumbnail, of all images that some row kept."""
    found: dict[str, Thumbnail] = {}
    for table in tables:
        for image, thumbnail in zip(table["image"], table["thumbnail"], strict=True):
            if str(image) not in found and (known := make_thumbnail(thumbnail, f"image {image}")) is not None:
                found[str(image)] = known
    return found


class ImageDeduplicator:
    """Writes images into one page: where one comes again, the page refers to its first place."""

    def __init__(self) -> None:
        self._written: set[str] = set()

    def tag(self, shown: Thumbnail, words: str = "") -> Markup:
        """The image as SVG, for that alone can be referred to; ``words`` are before its own alternative text."""
        first = shown.id not in self._written
        self._written.add(shown.id)
        content = (
            Markup('<image id="{}" href="{}" width="{}" height="{}"/>').format(
                shown.id, data_uri(shown.content), shown.width, shown.height
            )
            if first
            else Markup('<use href="#{}"/>').format(shown.id)
        )
        return Markup('<svg class="image" role="img" aria-label="{}{}" viewBox="0 0 {} {}">{}</svg>').format(
            words, shown.alt, shown.width, shown.height, content
        )


def data_uri(content: bytes) -> str:
    """A JPEG as a ``data:`` URI."""
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def take_within_budget(cards: Sequence[_Card], most: int) -> tuple[tuple[_Card, ...], int]:
    """The first cards whose different images take no more than ``most`` bytes in the page, and how many are omitted.

    Args:
        cards: in the order in which they are shown.
        most: bytes, as base64 takes them.
    """
    size, seen = 0, set[str]()
    for number, card in enumerate(cards):
        new = {shown.id: shown for shown in card.thumbnails() if shown is not None and shown.id not in seen}
        size += sum(len(shown.content) * 4 // 3 for shown in new.values())
        if size > most:
            return tuple(cards[:number]), len(cards) - number
        seen |= new.keys()
    return tuple(cards), 0
