"""Samples of a source with decoded images and prompts; a window is read while the one before is captioned."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from clips.data.images import InvalidImageError, decode_image
from clips.data.sources import InvalidSampleError, Source
from clips.recaption.captioning import PromptedImage
from clips.recaption.recaption_config import WEB_CAPTION_PLACEHOLDER, RecaptionConfig


def read_ahead(
    windows: Sequence[range], source: Source, config: RecaptionConfig
) -> Iterator[tuple[range, dict[int, PromptedImage | str]]]:
    """Each window with its samples, or the reasons why they are invalid; the next window is read meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(config.num_workers, thread_name_prefix="reader") as executor:

        def submit(window: range) -> list[concurrent.futures.Future[PromptedImage | str]]:
            return [executor.submit(read_image, source, index, config) for index in window]

        try:
            pending = submit(windows[0])
            for window, following in itertools.zip_longest(windows, windows[1:], fillvalue=range(0)):
                submitted = submit(following)
                yield window, {index: future.result() for index, future in zip(window, pending, strict=True)}
                pending = submitted
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def read_image(source: Source, index: int, config: RecaptionConfig) -> PromptedImage | str:
    """A sample with its image and prompt; the reason if it is invalid."""
    try:
        sample = source.read(index, np.random.default_rng([config.seed, index]))
        image = decode_image(sample.image, at_least=config.max_image_size)
    except (InvalidSampleError, InvalidImageError) as error:
        return str(error)
    image.thumbnail((config.max_image_size, config.max_image_size))
    return PromptedImage(index, sample, image, config.prompt.replace(WEB_CAPTION_PLACEHOLDER, sample.web))
