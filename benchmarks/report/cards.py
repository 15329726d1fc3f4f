"""The cards of examples: thumbnails, questions, and the answers of the models."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from benchmarks.results.formatting import strip_control_chars

if TYPE_CHECKING:
    import pandas as pd

MAX_SECTION_BYTES = 2_000_000
"""Limit for the images of one section, so that the page stays below 15 MB."""

_JPEG_MAGIC = b"\xff\xd8\xff"
_MAX_THUMBNAIL_BYTES = 100_000
_MAX_SIDE = 1000
_MAX_ALT_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A JPEG.

    Args:
        content: its bytes.
        width: in pixels.
        height: in pixels.
        alt: its alternative text.
    """

    content: bytes
    width: int
    height: int
    alt: str

    @functools.cached_property
    def id(self) -> str:
        """Its anchor on the page, derived from the content."""
        return "image-" + hashlib.sha256(self.content).hexdigest()[:16]


def make_thumbnail(content: object, alt: str) -> Thumbnail | None:
    """A saved thumbnail; None for anything but a small JPEG."""
    from PIL import Image, UnidentifiedImageError

    if not isinstance(content, bytes) or not content.startswith(_JPEG_MAGIC) or len(content) > _MAX_THUMBNAIL_BYTES:
        return None
    try:
        width, height = Image.open(io.BytesIO(content), formats=["JPEG"]).size  # reads only the header
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    if max(width, height) > _MAX_SIDE:
        return None
    return Thumbnail(content=content, width=width, height=height, alt=strip_control_chars(alt, _MAX_ALT_CHARS))


def thumbnails_of(tables: Iterable[pd.DataFrame]) -> dict[str, Thumbnail]:
    """Image name → thumbnail, of all models' items."""
    thumbnails: dict[str, Thumbnail] = {}
    for table in tables:
        saved = table[table["thumbnail"].notna()]
        for image, content in zip(saved["image"].map(str), saved["thumbnail"], strict=True):
            if image not in thumbnails and (thumbnail := make_thumbnail(content, f"image {image}")) is not None:
                thumbnails[image] = thumbnail
    return thumbnails


class ImageDeduplicator:
    """Embeds images into one page; further occurrences of an image refer to the first one."""

    def __init__(self) -> None:
        self._embedded: set[str] = set()

    def tag(self, image: Thumbnail, prefix: str = "") -> Markup:
        """The image as SVG, which allows references; ``prefix`` precedes its alternative text."""
        if image.id in self._embedded:
            content = Markup('<use href="#{}"/>').format(image.id)
        else:
            self._embedded.add(image.id)
            uri = "data:image/jpeg;base64," + base64.b64encode(image.content).decode()
            content = Markup('<image id="{}" href="{}" width="{}" height="{}"/>').format(
                image.id, uri, image.width, image.height
            )
        return Markup('<svg class="image" role="img" aria-label="{}{}" viewBox="0 0 {} {}">{}</svg>').format(
            prefix, image.alt, image.width, image.height, content
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A model's answer.

    Args:
        row: name of the model.
        text: the answer; empty for an image.
        thumbnail: the retrieved image.
        right: whether it is correct; None if unknown.
        score: its score as text.
    """

    row: str
    text: str = ""
    thumbnail: Thumbnail | None = None
    right: bool | None = None
    score: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One item with the answers of some models.

    Args:
        thumbnail: the item's image.
        question: a question or a caption.
        expected: the expected answer.
        answers: of the models.
    """

    thumbnail: Thumbnail | None
    question: str = ""
    expected: str = ""
    answers: tuple[Answer, ...] = ()

    def thumbnails(self) -> list[Thumbnail | None]:
        """All images of the card."""
        return [self.thumbnail, *(answer.thumbnail for answer in self.answers)]


def take_within_budget(cards: Sequence[Card], max_bytes: int) -> tuple[tuple[Card, ...], int]:
    """The first cards whose distinct images take at most ``max_bytes`` of the page, and the number of omitted cards.

    Args:
        cards: in the order of the page.
        max_bytes: in base64.
    """
    size, seen = 0, set[str]()
    for index, card in enumerate(cards):
        new = {image.id: image for image in card.thumbnails() if image is not None and image.id not in seen}
        size += sum(len(image.content) * 4 // 3 for image in new.values())
        if size > max_bytes:
            return tuple(cards[:index]), len(cards) - index
        seen |= new.keys()
    return tuple(cards), 0
