"""The CPU time of a training image, from the bytes of its file to the tensor: decoders side by side, and stages.

    python scripts/bench/decode.py --photos shard.tar --side 630 --size 224

Each side reads the same photos and draws the same crops. `Pillow, full size` is the usual pipeline. `… for any crop`
decodes at a fraction that suffices for the smallest possible crop, and resizes by Pillow too: this suite's earlier
pipeline. `suite` decodes at a fraction that suffices for the crop at hand, and resizes by torch; with simplejpeg, if
that is installed. `torchvision` decodes at full size. The sides alternate; the table has medians, and quartiles of the
ratios to the first row of its block.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import io
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from loader import read_photos
from measure import table
from PIL import Image

from clips.data import augment
from clips.data.augment import read_crop
from clips.data.data_config import AugmentConfig
from clips.data.images import load_jpeg, load_rgb, read_header

Read = Callable[[bytes, np.random.Generator], Any]


def pillow(content: bytes, rng: np.random.Generator, *, size: int, config: AugmentConfig, draft: bool) -> torch.Tensor:
    image = read_header(content)
    least = math.ceil(size / math.sqrt(config.crop_scale_min))
    image = load_rgb(image, min(image.size) / least if draft else 1)
    box = augment._random_box(*image.size, config.crop_scale_min, rng)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if config.horizontal_flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def torchvision_crop(content: bytes, rng: np.random.Generator, *, size: int, config: AugmentConfig) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels = decode_jpeg(encoded, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    box = augment._random_box(pixels.shape[1], pixels.shape[0], config.crop_scale_min, rng)
    return augment._finish(augment._cut(pixels, box), (size, size), size, config, rng)


def suite(content: bytes, rng: np.random.Generator, *, size: int, config: AugmentConfig, fast: bool) -> torch.Tensor:
    if fast:
        return read_crop(content, size, config, rng)
    with mock.patch.object(augment, "load_jpeg", new=_not_installed):  # a mock of its own would take as long as a crop
        return read_crop(content, size, config, rng)


def _not_installed(*_: object) -> None:
    pass


def pipelines(size: int, config: AugmentConfig) -> dict[str, Read]:
    options: dict[str, Any] = {"size": size, "config": config}
    sides: dict[str, Read] = {
        "Pillow, full size": functools.partial(pillow, **options, draft=False),
        "Pillow, a fraction for any crop": functools.partial(pillow, **options, draft=True),
        "suite, Pillow": functools.partial(suite, **options, fast=False),
    }
    if importlib.util.find_spec("simplejpeg"):
        sides["suite, simplejpeg"] = functools.partial(suite, **options, fast=True)
    if importlib.util.find_spec("torchvision"):
        sides["torchvision, full size"] = functools.partial(torchvision_crop, **options)
    return sides


def stages(size: int, config: AugmentConfig, photo: bytes) -> dict[str, Read]:
    image = load_rgb(read_header(photo))
    pixels, square = np.array(image), (size, size)
    colors = AugmentConfig(crop_scale_min=1, color_jitter=1e-9)
    steps: dict[str, Read] = {
        "decode by Pillow": lambda content, _: load_rgb(read_header(content)),
        "header": lambda content, _: read_header(content),
        "decode by Pillow at 1/2": lambda content, _: load_rgb(read_header(content), 2),
        "crop to an array": lambda _, rng: augment._cut(image, augment._random_box(*image.size, 0.4, rng)),
        "resize by torch": lambda _, rng: augment._finish(pixels, (size, size), size, AugmentConfig(), rng),
        "resize by Pillow": lambda *_: image.resize(square, Image.Resampling.BILINEAR, reducing_gap=2.0),
        "resize by torch and color jitter": lambda _, rng: augment._finish(pixels, (size, size), size, colors, rng),
    }
    if importlib.util.find_spec("simplejpeg"):
        steps["decode by simplejpeg"] = lambda content, _: load_jpeg(read_header(content), content, 1)
        steps["decode by simplejpeg at 1/2"] = lambda content, _: load_jpeg(read_header(content), content, 2)
    return steps


def compare(sides: dict[str, Read], photos: list[bytes], rounds: int) -> list[list[str]]:
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            rng, began = np.random.default_rng(number), time.process_time()
            for photo in photos:
                sides[name](photo, rng)
            if number:  # the first round warms caches up
                found[name].append(1e3 * (time.process_time() - began) / len(photos))
    first, rows = found[next(iter(sides))], []
    for name, times in found.items():
        ratios = [one / other for one, other in zip(first, times, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        taken = statistics.median(times)
        rows.append([name, f"{taken:.2f}", f"{1e3 / taken:.0f}", f"{middle:.2f}", f"{low:.2f}–{high:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="a tar with, or a folder of, .jpg files")
    parser.add_argument("--side", type=int, help="scale photos to this longer side first, JPEG quality 90")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = 3 * read_photos(arguments.photos, arguments.side)
    sides = statistics.mean(max(Image.open(io.BytesIO(photo)).size) for photo in photos)
    print(f"photos of {sides:.0f} pixels and {statistics.mean(map(len, photos)) / 1024:.0f} KiB to {arguments.size}\n")
    config = AugmentConfig(horizontal_flip=True)
    for measured in (pipelines(arguments.size, config), stages(arguments.size, config, photos[0])):
        rows = compare(measured, photos, arguments.rounds)
        print(table(["CPU time", "ms", "images/s of a core", "× the first row's speed", "quartiles"], rows) + "\n")


if __name__ == "__main__":
    main()
