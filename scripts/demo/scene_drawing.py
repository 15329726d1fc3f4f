"""Drawing: backgrounds with names, real emoji as objects, and the letters of signs, in integer arithmetic only.

A background is painted by a function of (image size, random generator) as an (S, S, 3) array.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scene_rng import DeterministicRng

DATA = Path(__file__).parent / "data"
Rgb = tuple[int, int, int]
Pixels = np.ndarray
Painter = Callable[[int, DeterministicRng], Pixels]
TwoTone = tuple[str, str]

OBJECT_COLORS: dict[str, Rgb] = {
    "red": (214, 40, 57),
    "orange": (244, 140, 20),
    "yellow": (252, 208, 50),
    "green": (76, 165, 62),
    "blue": (58, 120, 216),
    "purple": (136, 80, 190),
    "pink": (246, 130, 180),
}
"""The colors that a paintable object may have."""
PLAIN_COLORS: dict[str, Rgb] = {
    "white": (244, 244, 240),
    "grey": (158, 160, 164),
    "black": (36, 36, 40),
    "red": (190, 58, 58),
    "orange": (240, 168, 84),
    "yellow": (248, 226, 130),
    "green": (120, 184, 110),
    "dark green": (38, 92, 58),
    "light blue": (168, 212, 242),
    "blue": (84, 132, 204),
    "dark blue": (30, 44, 96),
    "purple": (150, 116, 190),
    "pink": (248, 188, 206),
    "brown": (140, 98, 66),
}
"""The colors of plain and patterned backgrounds."""

# ---------------------------------------------------------------- backgrounds


@dataclasses.dataclass(frozen=True)
class Background:
    """A named background.

    Args:
        name: short name, unique: "blue background", "beach".
        where: a phrase that follows a noun: "on a plain blue background", "on a sandy beach".
        description: a noun phrase with its article: "a plain blue background".
        style: plain, gradient, stripes, checks, dots, texture or landscape.
        color: the single color name of a plain or textured background, else None.
        colors: RGB of its main areas; a visible object differs from them.
        paint: paints it.
    """

    name: str
    where: str
    description: str
    style: str
    color: str | None
    colors: tuple[Rgb, ...]
    paint: Painter


def paint_background(background: Background, size: int, rng: DeterministicRng) -> Pixels:
    """Return a random variant of the background as an (S, S, 3) array of bytes."""
    pixels = background.paint(size, rng)
    return np.clip(pixels * rng.between(940, 1060) // 1000, 0, 255).astype(np.uint8)


def _rgb(color: Rgb) -> Pixels:
    return np.asarray(color, dtype=np.int32)


def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Return row and column of each pixel in 1/1024 of the image size, (S, 1) and (1, S)."""
    steps = np.arange(size, dtype=np.int32) * 1024 // size
    return steps[:, None], steps[None, :]


def _two_tone(mask: Pixels, size: int, first: Rgb, second: Rgb) -> Pixels:
    chosen = np.broadcast_to(mask, (size, size))[..., None]
    return np.where(chosen, _rgb(first), _rgb(second))


def _grain(size: int, rng: DeterministicRng, depth: int) -> Pixels:
    """Return gray noise of ± depth, in grains of 1/64 of the image size, (S, S, 1)."""
    noise = hashlib.shake_256(str(rng.below(1 << 30)).encode()).digest(64 * 64)
    grains = np.frombuffer(noise, dtype=np.uint8).astype(np.int32).reshape(64, 64)
    at = np.arange(size) * 64 // size
    return ((grains[at[:, None], at[None, :]] - 128) * depth // 128)[..., None]


def _plain(color: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        return np.broadcast_to(_rgb(color) + rng.between(-8, 8), (size, size, 3)).copy()

    return paint


def _texture(color: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        return _rgb(color) + _grain(size, rng, 26)

    return paint


def _gradient(first: Rgb, second: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        ramp = [rows + 0 * columns, columns + 0 * rows, (rows + columns) // 2][rng.below(3)]
        if rng.chance(500):
            ramp = 1023 - ramp
        return _rgb(first) + (_rgb(second) - _rgb(first)) * ramp[..., None] // 1023

    return paint


def _stripes(first: Rgb, second: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        across = [rows + 0 * columns, columns + 0 * rows, (rows + columns) * 3 // 4][rng.below(3)]
        return _two_tone((across + rng.below(256)) // 128 % 2 == 0, size, first, second)

    return paint


def _checks(first: Rgb, second: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        side = rng.choice((128, 171, 256))
        return _two_tone((rows // side + columns // side) % 2 == 0, size, first, second)

    return paint


def _dots(first: Rgb, second: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        step, shift = rng.choice((171, 205, 256)), rng.below(128)
        y, x = (rows + shift) % step - step // 2, (columns + shift) % step - step // 2
        return _two_tone(y * y + x * x < (step * step) // 14, size, first, second)

    return paint


def _land(sky: Rgb, ground: Rgb, *, sky_end: Rgb | None = None, grain: int = 10, stars: bool = False) -> Painter:
    """Paint sky above ground: a horizon at a random height, a gradient in the sky, grain on the ground."""

    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        horizon = rng.between(460, 660)
        light = _rgb(sky) + (_rgb(sky_end or sky) - _rgb(sky)) * rows[..., None] // horizon
        light = np.broadcast_to(light, (size, size, 3))
        if stars:
            light = np.where(_grain(size, rng, 128) > 124, _rgb((250, 250, 220)), light)
        earth = _rgb(ground) + _grain(size, rng, grain)
        hill = horizon + (columns * rng.between(-90, 90) >> 10)
        return np.where((rows < hill)[..., None], light, earth)

    return paint


def _bricks(brick: Rgb, mortar: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        seams = (rows % 128 < 20) | ((columns + rows // 128 % 2 * 128) % 256 < 20)
        return _two_tone(seams, size, mortar, brick) + _grain(size, rng, 8)

    return paint


def _planks(light: Rgb, dark: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        seams = (rows % 205 < 20) | ((columns + rows // 205 * 397) % 1024 < 18)
        return _two_tone(seams, size, dark, light) + _grain(size, rng, 7)

    return paint


_SKY, _GRASS, _SAND, _SEA, _SNOW = (150, 206, 246), (108, 176, 80), (234, 208, 150), (52, 126, 190), (238, 242, 248)
_PALE, _DUNE, _NIGHT, _DARK, _CLOUD = (250, 236, 200), (222, 168, 92), (16, 20, 56), (34, 52, 48), (150, 164, 184)
_DUSK, _GLOW, _SHADOW, _HAZE, _ASPHALT = (128, 84, 150), (250, 160, 90), (58, 48, 58), (214, 234, 246), (112, 112, 118)
_BRICK, _WOOD = (172, 84, 66), (186, 140, 92)
_LANDSCAPES: tuple[tuple[str, str, str, tuple[Rgb, ...], Painter], ...] = (
    ("meadow", "on a green meadow", "a green meadow under a blue sky", (_SKY, _GRASS), _land(_SKY, _GRASS)),
    ("beach", "on a sandy beach", "a sandy beach by the blue sea", (_SEA, _SAND), _land(_SEA, _SAND)),
    ("desert", "in the desert", "a yellow desert under a pale sky", (_PALE, _DUNE), _land(_PALE, _DUNE, grain=14)),
    ("night sky", "at night", "a dark night sky full of stars", (_NIGHT, _DARK), _land(_NIGHT, _DARK, stars=True)),
    ("snowy field", "in the snow", "a snowy field under a grey sky", (_CLOUD, _SNOW), _land(_CLOUD, _SNOW, grain=6)),
    ("sunset", "at sunset", "a purple and orange sunset over dark land", (_DUSK, _GLOW, _SHADOW),
     _land(_DUSK, _SHADOW, sky_end=_GLOW)),
    ("sea", "at sea", "the open sea under a light sky", (_HAZE, _SEA), _land(_HAZE, _SEA, grain=12)),
    ("road", "on a road", "a grey road under a blue sky", (_SKY, _ASPHALT), _land(_SKY, _ASPHALT)),
    ("brick wall", "in front of a brick wall", "a red brick wall", (_BRICK,), _bricks(_BRICK, (214, 200, 186))),
    ("wooden floor", "on a wooden floor", "a brown wooden floor", (_WOOD,), _planks(_WOOD, (132, 92, 56))),
)  # fmt: skip
_PATTERNS: dict[str, tuple[Callable[[Rgb, Rgb], Painter], str, str, tuple[TwoTone, ...]]] = {
    "gradient": (
        _gradient, "{a} and {b} gradient", "a smooth gradient of {a} and {b}",
        (("white", "blue"), ("yellow", "orange"), ("pink", "purple"), ("light blue", "green"), ("grey", "black"),
         ("dark blue", "purple")),
    ),
    "stripes": (
        _stripes, "{a} and {b} stripes", "a pattern of {a} and {b} stripes",
        (("red", "white"), ("light blue", "white"), ("yellow", "grey"), ("green", "white"), ("pink", "purple"),
         ("blue", "dark blue")),
    ),
    "checks": (
        _checks, "{a} and {b} checks", "a {a} and {b} checkered pattern",
        (("black", "white"), ("red", "white"), ("light blue", "blue"), ("yellow", "orange"), ("green", "dark green")),
    ),
    "dots": (
        _dots, "{a} dots on {b}", "a {b} background with {a} dots",
        (("white", "pink"), ("white", "red"), ("yellow", "green"), ("white", "dark blue"), ("grey", "white")),
    ),
}  # fmt: skip
"""Style → painter, name, description, pairs of colors."""


@functools.cache
def all_backgrounds() -> tuple[Background, ...]:
    """Return all backgrounds, in a fixed order."""
    made = []
    colors: tuple[Rgb, ...]
    for color, rgb in PLAIN_COLORS.items():
        where, description = f"on {_a(color)} background", f"a plain {color} background"
        made.append(Background(f"{color} background", where, description, "plain", color, (rgb,), _plain(rgb)))
    for style, (build, name, description, pairs) in _PATTERNS.items():
        for a, b in pairs:
            short, colors = name.format(a=a, b=b), (PLAIN_COLORS[a], PLAIN_COLORS[b])
            where = f"on {_a(short)}" if style == "gradient" else f"on {short}"
            made.append(Background(short, where, description.format(a=a, b=b), style, None, colors, build(*colors)))
    for color in ("grey", "brown", "green", "blue", "pink", "white"):
        short, rgb = f"rough {color} surface", PLAIN_COLORS[color]
        description = f"a {short} with a grainy texture"
        made.append(Background(short, f"on a {short}", description, "texture", color, (rgb,), _texture(rgb)))
    for name, where, description, colors, paint in _LANDSCAPES:
        made.append(Background(name, where, description, "landscape", None, colors, paint))
    return tuple(made)


@functools.cache
def find_background(name: str) -> Background:
    """Return the background with this name."""
    return next(background for background in all_backgrounds() if background.name == name)


def _a(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


# ---------------------------------------------------------------- objects and letters

_HUE_REACH = 32
_COLORFUL = 50
_RESAMPLING = Image.Resampling.BICUBIC  # polynomial weights: no libm, so the same on every machine


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectClass:
    """An object class, one object for each.

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
    """The sheet of emoji and the alphabet; `Sprites.load` reads them once per process."""

    def __init__(self) -> None:
        index = json.loads((DATA / "twemoji.json").read_text(encoding="utf-8"))
        self._cell, self._columns = index["cell"], index["columns"]
        self._letters: dict[str, list[int]] = index["letters"]
        self._sheet = Image.open(DATA / "twemoji.webp").convert("RGBA")
        self._alphabet = Image.open(DATA / "letters.png").convert("L")
        self.classes = tuple(
            ObjectClass(
                number=number,
                mean_rgb=tuple(entry["mean_rgb"]),
                keywords=tuple(entry["keywords"]),
                **{name: entry[name] for name in ("name", "plural", "category", "color", "paint_hue")},
            )
            for number, entry in enumerate(index["kinds"])
        )
        self.by_name = {each.name: each for each in self.classes}

    @staticmethod
    @functools.cache
    def load() -> Sprites:
        """The one sheet of this process."""
        return Sprites()

    @functools.cache  # noqa: B019  (there is one sheet)
    def sprite(self, kind: ObjectClass, paint: str | None, side: int) -> Image.Image:
        """Return the sprite as RGBA of ``side`` × ``side`` pixels, in its own colors or painted."""
        row, column = divmod(kind.number, self._columns)
        left, top = column * self._cell, row * self._cell
        image = self._sheet.crop((left, top, left + self._cell, top + self._cell))
        if paint is not None:
            image = recolor(image, kind, OBJECT_COLORS[paint])
        return image.resize((side, side), _RESAMPLING)

    @functools.cache  # noqa: B019
    def word(self, text: str, height: int) -> Image.Image:
        """Return capital letters as a gray mask of ``height`` pixels."""
        boxes = [self._letters[letter] for letter in text]
        full = self._alphabet.height
        mask = Image.new("L", (sum(width for _, width in boxes) + 3 * (len(boxes) - 1), full))
        left = 0
        for start, width in boxes:
            mask.paste(self._alphabet.crop((start, 0, start + width, full)), (left, 0))
            left += width + 3
        return mask.resize((max(1, mask.width * height // full), height), _RESAMPLING)


def recolor(sprite: Image.Image, kind: ObjectClass, paint: Rgb) -> Image.Image:
    """Repaint the pixels of ``sprite`` near the class's main hue; shades stay dark and tints stay pale."""
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


def _hues(rgb: Pixels, high: Pixels, chroma: Pixels) -> Pixels:
    """Return the hue in whole degrees, (H, W)."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    safe = np.maximum(chroma, 1)
    of_red = (60 * (green - blue) // safe) % 360
    of_green = 120 + 60 * (blue - red) // safe
    of_blue = 240 + 60 * (red - green) // safe
    return np.where(high == red, of_red, np.where(high == green, of_green, of_blue))
