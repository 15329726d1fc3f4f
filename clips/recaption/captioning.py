"""Captions of windows of samples: read, captioned by a local model or a server, and filtered.

A window of samples is read while the one before is captioned.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from clips.commandline.progress import log_estimate
from clips.core.artifact import log_info
from clips.data.images import InvalidImageError, decode_image
from clips.data.sources import InvalidSampleError, Sample, Source
from clips.errors import UserError
from clips.recaption.recaption_config import WEB_CAPTION_PLACEHOLDER, RecaptionConfig

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)(?!.*[.!?][\"'”’)\]]*\s)", re.DOTALL)
CaptionsByIndex = dict[int, "list[GeneratedCaption] | str"]
"""Index of a sample → its captions, or the reason why there are none."""


@dataclasses.dataclass(frozen=True)
class GeneratedCaption:
    """The model's output for an image: its text, number of tokens, and whether it ends with EOS."""

    text: str
    tokens: int
    ended: bool


@dataclasses.dataclass(frozen=True)
class PromptedImage:
    """A valid sample of the source with its decoded image and the text of its prompt."""

    index: int
    sample: Sample
    image: Image.Image
    text: str


class Captioner(Protocol):
    """Writes captions for windows of samples."""

    windows_ahead: int
    """Number of windows to submit before the first one's captions are awaited."""

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of all prompts so far, images included."""

    def submit(self, window: range, images: Sequence[PromptedImage]) -> Callable[[], CaptionsByIndex]:
        """Begin the captions of a window's valid samples; the function that is returned waits for them."""

    def identity(self) -> Mapping[str, Any]:
        """The manifest entry of the model."""


def caption_windows(
    windows: Sequence[range], source: Source, captioner: Captioner, config: RecaptionConfig
) -> Iterator[tuple[range, dict[int, PromptedImage | str], CaptionsByIndex]]:
    """Each window with its samples and their captions, or the reasons why there are none."""
    pending: deque[tuple[range, dict[int, PromptedImage | str], Callable[[], CaptionsByIndex]]] = deque()

    def finish_oldest() -> tuple[range, dict[int, PromptedImage | str], CaptionsByIndex]:
        window, samples, captions = pending.popleft()
        invalid = {index: sample for index, sample in samples.items() if isinstance(sample, str)}
        return window, samples, captions() | invalid

    for window, samples in _read_ahead(windows, source, config):
        valid = [sample for sample in samples.values() if isinstance(sample, PromptedImage)]
        pending.append((window, samples, captioner.submit(window, valid)))
        if len(pending) > captioner.windows_ahead:
            yield finish_oldest()
    while pending:
        yield finish_oldest()


def _read_ahead(
    windows: Sequence[range], source: Source, config: RecaptionConfig
) -> Iterator[tuple[range, dict[int, PromptedImage | str]]]:
    with concurrent.futures.ThreadPoolExecutor(config.num_workers, thread_name_prefix="reader") as executor:

        def submit(window: range) -> list[concurrent.futures.Future[PromptedImage | str]]:
            return [executor.submit(_read_image, source, index, config) for index in window]

        try:
            pending = submit(windows[0])
            for window, following in itertools.zip_longest(windows, windows[1:], fillvalue=range(0)):
                submitted = submit(following)
                yield window, {index: future.result() for index, future in zip(window, pending, strict=True)}
                pending = submitted
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _read_image(source: Source, index: int, config: RecaptionConfig) -> PromptedImage | str:
    """A sample with its image and prompt; the reason if it is invalid."""
    try:
        sample = source.read(index, np.random.default_rng([config.seed, index]))
        image = decode_image(sample.image, at_least=config.max_image_size)
    except (InvalidSampleError, InvalidImageError) as error:
        return str(error)
    image.thumbnail((config.max_image_size, config.max_image_size))
    return PromptedImage(index, sample, image, config.prompt.replace(WEB_CAPTION_PLACEHOLDER, sample.web))


def filter_captions(generated: Sequence[GeneratedCaption], config: RecaptionConfig) -> tuple[list[str], str]:
    """The cleaned, distinct captions of allowed length, and the reason if there are none."""
    captions, reason = list[str](), "no caption written"
    for output in generated:
        text = clean_caption(output, drop_incomplete_sentence=config.drop_incomplete_sentence)
        words = len(text.split())
        if not words:
            continue
        if words < config.min_words:
            reason = "caption too short"
        elif config.max_words is not None and words > config.max_words:
            reason = "caption too long"
        elif text not in captions:
            captions.append(text)
    return captions, reason


def clean_caption(generated: GeneratedCaption, *, drop_incomplete_sentence: bool) -> str:
    """Collapse whitespace; drop the incomplete last sentence of a truncated text if a complete one precedes it."""
    text = " ".join(generated.text.split())
    if drop_incomplete_sentence and not generated.ended and (end := _SENTENCE_END.search(f"{text} ")):
        return text[: end.end()]
    return text


def print_estimate(config: RecaptionConfig, source: Source, captioner: Captioner) -> None:
    """Caption ``config.estimate`` images, evenly spaced in the source, and print time, tokens and cost of all of them.

    Raises:
        UserError: none of the images can be captioned.
    """
    total = len(source)
    indices = sorted({number * total // config.estimate for number in range(min(config.estimate, total))})
    with concurrent.futures.ThreadPoolExecutor(config.num_workers) as executor:
        samples = list(executor.map(lambda index: _read_image(source, index, config), indices))
    images = [sample for sample in samples if isinstance(sample, PromptedImage)]
    started = time.monotonic()
    captions = captioner.submit(range(total), images)()
    seconds = time.monotonic() - started
    found = [generated for generated in captions.values() if not isinstance(generated, str)]
    if not found:
        reason = next(str(each) for each in (*samples, *captions.values()) if isinstance(each, str))
        raise UserError(f"estimate: none of {len(indices):,} images could be captioned: {reason}")
    written = sum(caption.tokens for generated in found for caption in generated)
    log_info(f"{len(found):,} of {len(indices):,} images captioned in {seconds:.1f} s")
    field = "requests_in_flight" if config.endpoint else "batch_size"
    log_estimate(
        part=len(indices),
        total=total,
        seconds=seconds,
        tokens=(captioner.prompt_tokens, written),
        prices=config.token_prices,
        concurrent=(field, getattr(config, field)),
        processes=config.share()[1],
    )
