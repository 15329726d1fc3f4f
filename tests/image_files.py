"""Random image files in many formats, each with the pixels that a viewer shows on a white page."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from PIL import Image

ORIENTATION = 0x0112
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # of PNG's color types
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_MODES = {
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
}


@dataclasses.dataclass(frozen=True)
class DrawnFile:
    """An image file; ``shown`` (H, W, 3) is None where it has no colors in 8 bits: one channel of 16 or 32 bits."""

    content: bytes
    about: str
    shown: np.ndarray | None


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The upright pixels of a file with an EXIF orientation."""
    ways: dict[int, Callable[[], np.ndarray]] = {
        2: lambda: pixels[:, ::-1],
        3: lambda: pixels[::-1, ::-1],
        4: lambda: pixels[::-1],
        5: lambda: pixels.swapaxes(0, 1),
        6: lambda: np.rot90(pixels, -1),
        7: lambda: pixels[::-1, ::-1].swapaxes(0, 1),
        8: lambda: np.rot90(pixels, 1),
    }
    return ways.get(orientation, lambda: pixels)()


def on_white(rgba: np.ndarray) -> np.ndarray:
    """(H, W, 4) colors and opacity of 0 to 255 → (H, W, 3) on a white page."""
    opacity = rgba[..., 3:] / 255
    return rgba[..., :3] * opacity + 255 * (1 - opacity)


@st.composite
def image_files(draw: st.DrawFn) -> DrawnFile:
    """Any of them."""
    return draw(st.one_of(_png_files(), _png_files(), _pillow_files()))


@st.composite
def _png_files(draw: st.DrawFn) -> DrawnFile:
    # written here bit by bit: Pillow writes neither two and four bits of gray nor 16 bits of color
    color_type = draw(st.sampled_from(sorted(_DEPTHS)))
    depth = draw(st.sampled_from(_DEPTHS[color_type]))
    width, height = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    colors = min(2**depth, 6) if draw(st.booleans()) else 2**depth
    values = rng.integers(0, colors, (height, width, _CHANNELS[color_type]))
    most, extra = 2**depth - 1, b""
    eight = (values >> 8 if depth == 16 else values * 255 // most).astype(float)
    opacity = np.full((height, width, 1), 255.0)
    if color_type == 3:
        palette = rng.integers(0, 256, (2**depth, 3))
        extra, eight = _chunk(b"PLTE", palette.astype(np.uint8).tobytes()), palette[values[..., 0]].astype(float)
        if draw(st.booleans()):
            alphas = rng.integers(0, 256, draw(st.integers(1, 2**depth)))
            extra += _chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
            opacity = np.append(alphas, [255] * (2**depth - len(alphas)))[values].astype(float)
    elif color_type in (0, 2) and draw(st.booleans()):
        hidden = values[rng.integers(height), rng.integers(width)]
        extra = _chunk(b"tRNS", struct.pack(f">{len(hidden)}H", *hidden))
        opacity = np.where((values == hidden).all(axis=2, keepdims=True), 0.0, 255.0)
    if color_type in (4, 6):
        eight, opacity = eight[..., :-1], eight[..., -1:]
    color = np.broadcast_to(eight, (height, width, 3))
    orientation = draw(st.integers(1, 8)) if draw(st.booleans()) else 1
    if orientation > 1:
        extra += _chunk(b"eXIf", _exif(orientation).tobytes().removeprefix(b"Exif\0\0"))
    bits = values.astype(">u2").view(np.uint8).reshape(height, -1)
    bits = np.unpackbits(bits, axis=1).reshape(height, -1, 16)[:, :, 16 - depth :].reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    head = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + extra + _chunk(b"IDAT", zlib.compress(rows))
    shown = turned(on_white(np.concatenate([color, opacity], axis=2)), orientation)
    about = f"PNG {color_type=} {depth=} orientation={orientation} tRNS={b'tRNS' in extra}"
    # of 16 bits of color, 8 are read, which do not tell the transparent color from its neighbors
    unread = (color_type, depth) == (0, 16) or ((color_type, depth) == (2, 16) and b"tRNS" in extra)
    return DrawnFile(content + _chunk(b"IEND", b""), about, None if unread else shown)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


@st.composite
def _pillow_files(draw: st.DrawFn) -> DrawnFile:
    kind = draw(st.sampled_from(sorted(_MODES)))
    mode = draw(st.sampled_from(_MODES[kind]))
    frames = draw(st.integers(1, 3)) if kind in ("GIF", "WEBP", "TIFF") else 1
    width, height = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    first, *others = [_image(mode, width, height, rng) for _ in range(frames)]
    options: dict[str, object] = {"save_all": True, "append_images": others} if others else {}
    orientation = draw(st.integers(1, 8)) if kind in ("JPEG", "WEBP", "TIFF") and draw(st.booleans()) else 1
    if orientation > 1:
        options["exif"] = _exif(orientation)
    options |= {"JPEG": {"quality": draw(st.integers(5, 95)), "progressive": draw(st.booleans())}}.get(kind, {})
    options |= {"WEBP": {"lossless": draw(st.booleans()), "exact": True}}.get(kind, {})
    if kind == "GIF" and mode in ("L", "P") and draw(st.booleans()):
        options["transparency"] = 0
    stream = io.BytesIO()
    first.save(stream, kind, **options)
    about = f"{kind} {mode=} frames={frames} orientation={orientation} {sorted(options)}"
    with Image.open(io.BytesIO(stream.getvalue())) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            return DrawnFile(stream.getvalue(), about, None)
        rgba = np.asarray(image.convert("RGBA"), dtype=float)
    # Pillow turns a TIFF itself
    return DrawnFile(stream.getvalue(), about, turned(on_white(rgba), 1 if kind == "TIFF" else orientation))


def _image(mode: str, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    if mode in ("I;16", "I", "F"):
        values = rng.integers(0, 2**16, (height, width))
        return Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    if mode == "LAB":
        return Image.frombytes("LAB", (width, height), rng.bytes(width * height * 3))
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode in ("P", "PA"):
        return rgba.convert("RGB").quantize(8).convert(mode)
    return rgba.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr") else rgba.convert(mode)
