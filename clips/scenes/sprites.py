"""Images of objects: a sheet of real emoji sprites with names, and the letters of signs."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import json
from typing import Any

import numpy as np
from PIL import Image

from clips.errors import UserError, unknown_name_error
from clips.scenes.colors import OBJECT_COLORS, Rgb

SPRITE_SETS: dict[str, str] = {"twemoji": "twemoji"}
"""Sprite set → the stem of its sheet and index in ``data/``."""

_HUE_REACH = 32
_COLORFUL = 50
_RESAMPLING = Image.Resampling.BICUBIC  # polynomial weights: no libm, so the same on every machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectClass:
    """An object class.

    Args:
        number: its position in the sheet; the first N classes are a balanced mixture.
        name: its name, a singular noun phrase.
        plural: its plural.
        category: animal, food, vehicle, …
        color: the dominant basic color of the sprite, measured from its pixels; None if there is none.
        paint_hue: for objects that may have any color, the hue (degrees) that paint replaces; else None.
        mean_rgb: mean color of the sprite as drawn.
        keywords: CLDR's English keywords.
    """

    number: int
    name: str
    plural: str
    category: str
    color: str | None
    paint_hue: int | None
    mean_rgb: Rgb
    keywords: tuple[str, ...]


class Sprites:
    """A sheet of one sprite set. ``Sprites.load`` caches one per process."""

    def __init__(self, sprite_set: str) -> None:
        if sprite_set not in SPRITE_SETS:
            raise unknown_name_error(sprite_set, SPRITE_SETS, "sprite set")
        data = importlib.resources.files("clips.scenes") / "data"
        index: dict[str, Any] = json.loads((data / f"{SPRITE_SETS[sprite_set]}.json").read_text(encoding="utf-8"))
        self.cell: int = index["cell"]
        self._columns: int = index["columns"]
        self._letters: dict[str, list[int]] = index["letters"]
        with (data / f"{SPRITE_SETS[sprite_set]}.webp").open("rb") as stream:
            self._sheet = Image.open(stream).convert("RGBA")
        with (data / "letters.png").open("rb") as stream:
            self._alphabet = Image.open(stream).convert("L")
        self.kinds = tuple(
            ObjectClass(
                number=number,
                name=entry["name"],
                plural=entry["plural"],
                category=entry["category"],
                color=entry["color"],
                paint_hue=entry["paint_hue"],
                mean_rgb=tuple(entry["mean_rgb"]),
                keywords=tuple(entry["keywords"]),
            )
            for number, entry in enumerate(index["kinds"])
        )
        self.by_name = {kind.name: kind for kind in self.kinds}
        self._resized: dict[tuple[int, str | None, int], Image.Image] = {}
        self._words: dict[tuple[str, int], Image.Image] = {}

    @staticmethod
    @functools.cache
    def load(sprite_set: str) -> Sprites:
        """Load the sheet of a sprite set.

        Raises:
            UserError: no such sprite set.
        """
        return Sprites(sprite_set)

    def sprite(self, kind: ObjectClass, paint: str | None, side: int) -> Image.Image:
        """Return the sprite as RGBA of ``side`` × ``side`` pixels, in its own colors or painted."""
        key = (kind.number, paint, side)
        if key not in self._resized:
            row, column = divmod(kind.number, self._columns)
            left, top = column * self.cell, row * self.cell
            image = self._sheet.crop((left, top, left + self.cell, top + self.cell))
            if paint is not None:
                image = recolor(image, kind, OBJECT_COLORS[paint])
            self._resized[key] = image.resize((side, side), _RESAMPLING)
        return self._resized[key]

    def word(self, text: str, height: int) -> Image.Image:
        """Return capital letters as a gray mask of ``height`` pixels."""
        key = (text, height)
        if key not in self._words:
            boxes = [self._letters[letter] for letter in text]
            alphabet_height = self._alphabet.height
            mask = Image.new("L", (sum(width for _, width in boxes) + 3 * (len(boxes) - 1), alphabet_height))
            left = 0
            for start, width in boxes:
                mask.paste(self._alphabet.crop((start, 0, start + width, alphabet_height)), (left, 0))
                left += width + 3
            word_width = max(1, mask.width * height // alphabet_height)
            self._words[key] = mask.resize((word_width, height), _RESAMPLING)
        return self._words[key]


def recolor(sprite: Image.Image, kind: ObjectClass, paint: Rgb) -> Image.Image:
    """Repaint the pixels of ``sprite`` near the class's main hue; shades stay dark and tints stay pale."""
    if kind.paint_hue is None:
        raise UserError(f"{kind.name}: expected an object class that can be painted")
    pixels = np.asarray(sprite).astype(np.int32)
    rgb = pixels[..., :3]
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    chroma = high - low
    distance = np.abs((_hues(rgb, high, chroma) - kind.paint_hue + 180) % 360 - 180)
    chosen = (distance <= _HUE_REACH) & (chroma > _COLORFUL)
    strongest = max(int(high[chosen].max()), 1) if chosen.any() else 1
    shade = np.asarray(paint, dtype=np.int32) * (high[..., None] + strongest) // (2 * strongest)
    wash = np.maximum(low[..., None] - 60, 0) * (255 - np.asarray(paint, dtype=np.int32)) // 510
    pixels[..., :3] = np.where(chosen[..., None], np.minimum(shade + wash, 255), rgb)
    return Image.fromarray(pixels.astype(np.uint8), "RGBA")


def _hues(rgb: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Return the hue in whole degrees, (H, W); as ``colors.hue`` for one pixel."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    safe = np.maximum(chroma, 1)
    of_red = (60 * (green - blue) // safe) % 360
    of_green = 120 + 60 * (blue - red) // safe
    of_blue = 240 + 60 * (red - green) // safe
    return np.where(high == red, of_red, np.where(high == green, of_green, of_blue))
