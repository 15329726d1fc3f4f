"""Backgrounds of scenes: plain colors, patterns, textures and simple landscapes, each with a name.

A background is a function of (image size, random generator) that paints an (S, S, 3) array of bytes with integer
arithmetic only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from clips.scenes.colors import Rgb
from clips.scenes.rng import DeterministicRng, random_bytes

Pixels = np.ndarray
Painter = Callable[[int, DeterministicRng], Pixels]

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


@dataclasses.dataclass(frozen=True, kw_only=True)
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


def _rgb(color: Rgb) -> Pixels:
    return np.asarray(color, dtype=np.int32)


def _grid(size: int) -> tuple[Pixels, Pixels]:
    """Return row and column of each pixel in 1/1024 of the image size, (S, 1) and (1, S)."""
    steps = np.arange(size, dtype=np.int32) * 1024 // size
    return steps[:, None], steps[None, :]


def _two_tone(mask: Pixels, size: int, first: Rgb, second: Rgb) -> Pixels:
    chosen = np.broadcast_to(mask, (size, size))[..., None]
    return np.where(chosen, _rgb(first), _rgb(second))


def _plain(color: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        return np.broadcast_to(_rgb(color) + rng.between(-8, 8), (size, size, 3)).copy()

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


def _texture(color: Rgb, depth: int) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        return _rgb(color) + _grain(size, rng, depth)

    return paint


def _grain(size: int, rng: DeterministicRng, depth: int) -> Pixels:
    """Return gray noise of ± depth, in grains of 1/64 of the image size, (S, S, 1)."""
    grains = np.frombuffer(random_bytes(64 * 64, rng.below(1 << 30)), dtype=np.uint8).astype(np.int32).reshape(64, 64)
    at = np.arange(size) * 64 // size
    return ((grains[at[:, None], at[None, :]] - 128) * depth // 128)[..., None]


def _land(sky: Rgb, ground: Rgb, *, sky_end: Rgb | None = None, grain: int = 10, stars: bool = False) -> Painter:
    """Paint sky above ground: a horizon at a random height, a gradient in the sky, grain on the ground."""

    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        horizon = rng.between(460, 660)
        light = _rgb(sky) + (_rgb(sky_end or sky) - _rgb(sky)) * rows[..., None] // horizon
        light = np.broadcast_to(light, (size, size, 3))
        if stars:
            speckle = _grain(size, rng, 128) > 124
            light = np.where(speckle, _rgb((250, 250, 220)), light)
        earth = _rgb(ground) + _grain(size, rng, grain)
        hill = horizon + (columns * rng.between(-90, 90) >> 10)
        return np.where((rows < hill)[..., None], light, earth)

    return paint


def _bricks(brick: Rgb, mortar: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        course = rows // 128
        seams = (rows % 128 < 20) | ((columns + course % 2 * 128) % 256 < 20)
        return _two_tone(seams, size, mortar, brick) + _grain(size, rng, 8)

    return paint


def _planks(light: Rgb, dark: Rgb) -> Painter:
    def paint(size: int, rng: DeterministicRng) -> Pixels:
        rows, columns = _grid(size)
        seams = (rows % 205 < 20) | ((columns + rows // 205 * 397) % 1024 < 18)
        return _two_tone(seams, size, dark, light) + _grain(size, rng, 7)

    return paint


_SKY, _GRASS, _SAND, _SEA, _SNOW = (150, 206, 246), (108, 176, 80), (234, 208, 150), (52, 126, 190), (238, 242, 248)
_LANDSCAPES: tuple[tuple[str, str, str, tuple[Rgb, ...], Painter], ...] = (
    ("meadow", "on a green meadow", "a green meadow under a blue sky", (_SKY, _GRASS), _land(_SKY, _GRASS)),
    ("beach", "on a sandy beach", "a sandy beach by the blue sea", (_SEA, _SAND), _land(_SEA, _SAND)),
    (
        "desert",
        "in the desert",
        "a yellow desert under a pale sky",
        ((250, 236, 200), (222, 168, 92)),
        _land((250, 236, 200), (222, 168, 92), grain=14),
    ),
    (
        "night sky",
        "at night",
        "a dark night sky full of stars",
        ((16, 20, 56), (34, 52, 48)),
        _land((16, 20, 56), (34, 52, 48), stars=True),
    ),
    (
        "snowy field",
        "in the snow",
        "a snowy field under a grey sky",
        ((150, 164, 184), _SNOW),
        _land((150, 164, 184), _SNOW, grain=6),
    ),
    (
        "sunset",
        "at sunset",
        "a purple and orange sunset over dark land",
        ((128, 84, 150), (250, 160, 90), (58, 48, 58)),
        _land((128, 84, 150), (58, 48, 58), sky_end=(250, 160, 90)),
    ),
    (
        "sea",
        "at sea",
        "the open sea under a light sky",
        ((214, 234, 246), _SEA),
        _land((214, 234, 246), _SEA, grain=12),
    ),
    ("road", "on a road", "a grey road under a blue sky", (_SKY, (112, 112, 118)), _land(_SKY, (112, 112, 118))),
    (
        "brick wall",
        "in front of a brick wall",
        "a red brick wall",
        ((172, 84, 66),),
        _bricks((172, 84, 66), (214, 200, 186)),
    ),
    (
        "wooden floor",
        "on a wooden floor",
        "a brown wooden floor",
        ((186, 140, 92),),
        _planks((186, 140, 92), (132, 92, 56)),
    ),
)

_PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "gradient": (
        ("white", "blue"),
        ("yellow", "orange"),
        ("pink", "purple"),
        ("light blue", "green"),
        ("grey", "black"),
        ("dark blue", "purple"),
    ),
    "stripes": (
        ("red", "white"),
        ("light blue", "white"),
        ("yellow", "grey"),
        ("green", "white"),
        ("pink", "purple"),
        ("blue", "dark blue"),
    ),
    "checks": (
        ("black", "white"),
        ("red", "white"),
        ("light blue", "blue"),
        ("yellow", "orange"),
        ("green", "dark green"),
    ),
    "dots": (("white", "pink"), ("white", "red"), ("yellow", "green"), ("white", "dark blue"), ("grey", "white")),
}
_PATTERN: dict[str, tuple[Callable[[Rgb, Rgb], Painter], str, str]] = {
    "gradient": (_gradient, "{a} and {b} gradient", "a smooth gradient of {a} and {b}"),
    "stripes": (_stripes, "{a} and {b} stripes", "a pattern of {a} and {b} stripes"),
    "checks": (_checks, "{a} and {b} checks", "a {a} and {b} checkered pattern"),
    "dots": (_dots, "{a} dots on {b}", "a {b} background with {a} dots"),
}


@functools.cache
def all_backgrounds() -> tuple[Background, ...]:
    """Return all backgrounds, in a fixed order."""
    return (*_plain_ones(), *_patterned_ones(), *_textured_ones(), *_landscapes())


@functools.cache
def find_background(name: str) -> Background:
    """Return the background with this name."""
    return next(background for background in all_backgrounds() if background.name == name)


def _plain_ones() -> list[Background]:
    return [
        Background(
            name=f"{color} background",
            where=f"on {_a(color)} background",
            description=f"a plain {color} background",
            style="plain",
            color=color,
            colors=(rgb,),
            paint=_plain(rgb),
        )
        for color, rgb in PLAIN_COLORS.items()
    ]


def _patterned_ones() -> list[Background]:
    made = []
    for style, pairs in _PAIRS.items():
        build, name, description = _PATTERN[style]
        for a, b in pairs:
            short = name.format(a=a, b=b)
            made.append(
                Background(
                    name=short,
                    where=f"on {_a(short)}" if style == "gradient" else f"on {short}",
                    description=description.format(a=a, b=b),
                    style=style,
                    color=None,
                    colors=(PLAIN_COLORS[a], PLAIN_COLORS[b]),
                    paint=build(PLAIN_COLORS[a], PLAIN_COLORS[b]),
                )
            )
    return made


def _textured_ones() -> list[Background]:
    return [
        Background(
            name=f"rough {color} surface",
            where=f"on a rough {color} surface",
            description=f"a rough {color} surface with a grainy texture",
            style="texture",
            color=color,
            colors=(PLAIN_COLORS[color],),
            paint=_texture(PLAIN_COLORS[color], 26),
        )
        for color in ("grey", "brown", "green", "blue", "pink", "white")
    ]


def _landscapes() -> list[Background]:
    return [
        Background(
            name=name, where=where, description=description, style="landscape", color=None, colors=colors, paint=paint
        )
        for name, where, description, colors, paint in _LANDSCAPES
    ]


def _a(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def paint_background(background: Background, size: int, rng: DeterministicRng) -> Pixels:
    """Return a random variant of the background as an (S, S, 3) array of bytes."""
    pixels = background.paint(size, rng)
    return np.clip(pixels * rng.between(940, 1060) // 1000, 0, 255).astype(np.uint8)
