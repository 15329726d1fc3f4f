"""CPU cores that feed GPUs: images per second of the steps, over those that a core of this machine reads."""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from clips.data.augment import read_crop
from clips.data.loader import TrainDataset, shared_memory
from clips.data.remote_files import is_remote
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

    These are the first samples of the data, or a generated photo without captions if they are not local, invalid or,
    after the first epoch, in ``cache_images``.
    """
    data = _open_local(stage)
    if data is not None:
        with contextlib.suppress(UserError):  # training reports it
            return _rate(data.__getitems__), "the first samples"
    content, rng = _photo(), np.random.default_rng(0)
    return _rate(lambda numbers: [read_crop(content, size, stage.data.augment, rng) for _ in numbers]), _PHOTO


def _open_local(stage: EncoderTrainConfig) -> TrainDataset | None:
    if stage.data.cache_images or any(is_remote(source.path) or source.streaming for source in stage.data.sources):
        return None
    try:
        return open_train_dataset(stage)
    except UserError:
        return None


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
