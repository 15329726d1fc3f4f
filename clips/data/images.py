"""Safe decoding of untrusted images as RGB; `clips.data.lazy_images` finds and reads their files."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from clips.data.tar_index import is_clutter

if TYPE_CHECKING:
    import numpy as np
    import torch

MAX_PIXELS = 100_000_000
MAX_ASPECT_RATIO = 200
"""Longer side over shorter side. 1 × 100,000 pixels would take 34 GB in encoders that resize before they crop."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the accepted formats; for others, such as EPS, it starts a program on the file."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
"""In lower case: they identify images among other files in a directory or shard (`is_image_name`)."""
_ORIENTATION = 0x0112


def is_image_name(name: str) -> bool:
    """Whether a file of a directory or shard is an image, by its extension in any case."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not is_clutter(name)


class InvalidImageError(Exception):
    """An invalid image; the message is one of a few short reasons."""


class InvalidSampleError(Exception):
    """A sample without a usable image or caption; the message is one of a few short reasons."""


def decode_image(content: bytes, *, at_least: int | None = None) -> Image.Image:
    """Decode an image in one of ``FORMATS`` to RGB: upright, on white, the first frame of an animation.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, with no side below ``at_least`` pixels.

    Raises:
        InvalidImageError: not an image, truncated, above ``MAX_PIXELS`` or above ``MAX_ASPECT_RATIO``.
    """
    image = read_header(content)
    return load_rgb(image, 1.0 if at_least is None else min(image.size) / at_least)


def read_header(content: bytes) -> Image.Image:
    """The image of a file, for `load_rgb`: the size is checked, no pixel is decoded. Raises InvalidImageError."""
    with _short_reasons():
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise InvalidImageError("image too large")
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise InvalidImageError("image too long and narrow")
        return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the result of `read_header` once it is upright."""
    with _short_reasons():
        if image.format == "PNG":  # whose EXIF block may follow the pixels
            _load(image)
        # Pillow's TIFF plugin swaps width and height itself.
        turned = image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def load_rgb(image: Image.Image, reduction: float = 1.0) -> Image.Image:
    """Decode the result of `read_header` as `decode_image` does; a JPEG at 1/2, 1/4 or 1/8 from that reduction on."""
    factor = reduction_factor(reduction)
    if factor > 1:
        with _short_reasons():
            image.draft("RGB", (image.width // factor, image.height // factor))
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as everything here sees it: upright, RGB, on white; itself if it is that already.

    Raises:
        InvalidImageError: truncated; 16 bits or more in a channel of its only color, or of its transparent color.
    """
    with _short_reasons():
        _load(image)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:  # also RGB with one transparent color, of a PNG
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            return Image.alpha_composite(white, layer).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def has_unknown_range(image: Image.Image) -> bool:
    """Whether an opened image has one channel of 16 bits or more, or a transparent color of 16 bits.

    The latter may be that of other pixels, too, once these have 8 bits.
    """
    return (
        image.mode == "F"
        or image.mode.startswith("I")
        or (_stored_mode(image) == "RGB;16B" and "transparency" in image.info)
    )


def _stored_mode(image: Image.Image) -> str:
    """Pillow's name of the pixels in a PNG that is not decoded yet; empty otherwise."""
    if isinstance(image, PngImagePlugin.PngImageFile) and image.tile:
        return str(image.tile[0].args)
    return ""


def _load(image: Image.Image) -> None:
    """Decode the pixels of an opened image, and the transparent color of a PNG as its pixels.

    Pillow scales the pixels of PNGs with 2 or 4 bits to 8 bits, but not their transparent color.
    """
    if has_unknown_range(image):
        raise InvalidImageError("not an 8-bit image")
    stored = _stored_mode(image)
    image.load()
    color = image.info.get("transparency")
    if stored in {"L;2", "L;4"} and color is not None:
        image.info["transparency"] = color * {"L;2": 85, "L;4": 17}[stored]


def load_jpeg(image: Image.Image, content: bytes, reduction: float) -> np.ndarray | None:
    """The pixels of `load_rgb`, (height, width, 3) uint8, by simplejpeg in less time.

    None if simplejpeg is not installed, or for a file that `load_rgb` has to judge: all but intact RGB JPEGs.
    """
    decode, factor = fast_decoder(), reduction_factor(reduction)
    if decode is None or image.format != "JPEG" or image.mode != "RGB" or image.getexif().get(_ORIENTATION, 1) != 1:
        return None
    try:
        return decode(content, min_height=math.ceil(image.height / factor), min_width=math.ceil(image.width / factor))
    except ValueError:  # its errors, and its warnings
        return None


@functools.cache
def fast_decoder() -> Callable[..., np.ndarray] | None:
    """simplejpeg's decoder; None if it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg.decode_jpeg


def reduction_factor(reduction: float) -> int:
    """The factor, a power of two up to 8, by which a JPEG is reduced that may be reduced by ``reduction``."""
    return next((factor for factor in (8, 4, 2) if factor <= reduction), 1)


@contextlib.contextmanager
def _short_reasons() -> Iterator[None]:
    try:
        with _decoder_settings:
            yield
    except InvalidImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, at about twice this one
        raise InvalidImageError("image too large") from error
    except Exception as error:  # decoders raise any exception for an invalid file
        is_truncated = isinstance(error, OSError) and "truncated" in str(error)
        raise InvalidImageError("truncated image" if is_truncated else "undecodable image") from error


class _DecoderSettings:
    # Settings of the whole process while any thread decodes an image. Pillow rejects truncated images, which other
    # libraries, such as lmms-eval, let it accept. Of warnings, oversized images are rejected, others concern metadata.

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the threads, which a forked process does not have."""
        self.lock, self.num_threads, self.before = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if not self.num_threads:
                self.before.enter_context(warnings.catch_warnings(action="ignore"))
                self.before.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self.num_threads += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.num_threads -= 1
            if not self.num_threads:
                self.before.close()


_decoder_settings = _DecoderSettings()
os.register_at_fork(after_in_child=_decoder_settings.clear)


def normalize(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (B, 3, H, W) as normalized floats, channels last in memory."""
    import torch

    return (images.contiguous(memory_format=torch.channels_last).float() / 255 - mean) / std
