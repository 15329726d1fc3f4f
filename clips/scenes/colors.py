"""Color names: the usual name of an RGB value, and the paints of objects and backgrounds."""

from __future__ import annotations

Rgb = tuple[int, int, int]

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


def nearest_color_name(red: int, green: int, blue: int) -> str:
    """Return one of eleven basic color names for an 8-bit RGB value."""
    high, low = max(red, green, blue), min(red, green, blue)
    chroma = high - low
    if chroma * 100 < 22 * max(high, 1):
        return "white" if high > 224 else "black" if high < 75 else "grey"
    if high < 75:
        return "black"
    degrees = hue(red, green, blue)
    if (degrees < 12 or degrees >= 335) and high > 200 and low > 95:
        return "pink"
    dull = high < 205 or (high < 226 and chroma * 100 < 55 * high)
    if degrees < 45 and dull and not (degrees < 12 and chroma > 110):
        return "brown"
    for limit, name in ((14, "red"), (38, "orange"), (64, "yellow"), (165, "green"), (250, "blue"), (292, "purple")):
        if degrees < limit:
            return name
    return "pink" if degrees < 340 and high > 150 else "red"


def hue(red: int, green: int, blue: int) -> int:
    """Return the hue in whole degrees, 0 to 359; 0 for grays."""
    high, low = max(red, green, blue), min(red, green, blue)
    chroma = high - low
    if chroma == 0:
        return 0
    if high == red:
        return (60 * (green - blue) // chroma) % 360
    if high == green:
        return 120 + 60 * (blue - red) // chroma
    return 240 + 60 * (red - green) // chroma
