"""CPU cores that feed GPUs: images per second of the steps, over those that a core of this machine reads."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clips.data.augment import read_crop
from clips.data.loader import shared_memory
from clips.data.remote_files import expand_brace_ranges, is_remote
from clips.data.sources import InvalidSampleError, Source
from clips.errors import UserError
from clips.training.setup import open_train_dataset
from clips.training.train_config import EncoderTrainConfig

_SAMPLES, _ROUNDS = 16, 5
_WIDTH, _HEIGHT, _SMOOTH = 630, 472, 14
_PHOTO = f"a generated photo of {_WIDTH} px"


def feeding(
    stage: EncoderTrainConfig, size: int, images_per_second: float, *, gpus: int, batch_size: int
) -> dict[str, str]:
    """Return, by name, what a node needs so that its GPUs do not wait for data.

    Args:
        stage: with the number of workers.
        size: pixels of a side of the model's images.
        images_per_second: of the node.
        gpus: of the node.
        batch_size: samples in a GPU's step.
    """
    rate, basis = measure_core(stage, size)
    cores, workers = math.ceil(images_per_second / rate), stage.data.num_workers
    needed = math.ceil(images_per_second / rate / gpus)
    few = "" if workers >= needed else f" of the {needed} that it needs"
    shared = gpus * shared_memory(workers, batch_size, size) / 1e9
    return {
        "loader": f"{cores:,} CPU cores for {gpus} GPUs: {images_per_second:,.0f} images/s, {rate:,.0f} of a core",
        "": f"of this machine, measured on {basis}",
        "workers": f"{workers} for each GPU{few}; {shared:,.1f} GB of /dev/shm for images",
    }


def measure_core(stage: EncoderTrainConfig, size: int) -> tuple[float, str]:
    """Return the images that a core of this machine reads per second, and what it read.

    These are the first samples of the data, or a generated photo without captions if they are invalid, streamed
    or, after the first epoch, in ``cache_images``, or not local: nothing is downloaded.
    """
    data, basis = None, _PHOTO
    if _is_remote(stage):
        basis = f"{_PHOTO}: the images are remote, and not measured"
    elif not (stage.data.cache_images or any(source.streaming for source in stage.data.sources)):
        with contextlib.suppress(UserError):
            data = open_train_dataset(stage)
            if any(_has_urls(source) for source in data.parts):
                data, basis = None, f"{_PHOTO}: the images are at URLs, and not measured"
    if data is not None:
        with contextlib.suppress(UserError):  # training reports it
            return _rate(data.__getitems__), "the first samples"
    content, rng = _photo(), np.random.default_rng(0)
    return _rate(lambda numbers: [read_crop(content, size, stage.data.augment, rng) for _ in numbers]), basis


def _is_remote(stage: EncoderTrainConfig) -> bool:
    """Whether data would be downloaded: remote shards or tables, or a dataset of the Hub."""
    paths = [path for source in stage.data.sources for path in expand_brace_ranges(source.path)[:1]]
    return any(is_remote(path) or not Path(path).exists() for path in paths)


def _has_urls(source: Source) -> bool:
    """Whether the first row of a table names its image by an address."""
    with contextlib.suppress(InvalidSampleError):
        return is_remote(source.record(0).reference or "")
    return False


def _rate(read: Callable[[range], Any]) -> float:
    """Return the median rate of reading in CPU time, which other processes do not count into."""
    read(range(_SAMPLES))
    rates = []
    for start in range(_SAMPLES, _SAMPLES * (_ROUNDS + 1), _SAMPLES):
        began = time.process_time()
        read(range(start, start + _SAMPLES))
        rates.append(_SAMPLES / (time.process_time() - began))
    return statistics.median(rates)


def _photo() -> bytes:
    """Return a JPEG of random smooth colors: 64 KB, decoded in about the time of photos of its size."""
    rng, stream = np.random.default_rng(0), io.BytesIO()
    coarse = rng.integers(0, 256, (_HEIGHT // _SMOOTH, _WIDTH // _SMOOTH, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()
