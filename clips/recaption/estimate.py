"""The time, tokens and cost of a recaptioning, from captions of a few images."""

from __future__ import annotations

import concurrent.futures
import time

from clips.core.artifact import log_info
from clips.data.sources import Source
from clips.errors import UserError
from clips.recaption.captioning import Captioner, PromptedImage
from clips.recaption.reading import read_image
from clips.recaption.recaption_config import RecaptionConfig


def print_estimate(config: RecaptionConfig, source: Source, captioner: Captioner) -> None:
    """Caption ``config.estimate`` images, evenly spaced in the source, and print what all of them would take.

    Raises:
        UserError: none of the images can be captioned.
    """
    total = len(source)
    indices = sorted({number * total // config.estimate for number in range(min(config.estimate, total))})
    with concurrent.futures.ThreadPoolExecutor(config.num_workers) as executor:
        samples = list(executor.map(lambda index: read_image(source, index, config), indices))
    images = [sample for sample in samples if isinstance(sample, PromptedImage)]
    started = time.monotonic()
    captions = captioner.submit(range(total), images)()
    seconds = time.monotonic() - started
    found = [generated for generated in captions.values() if not isinstance(generated, str)]
    if not found:
        raise UserError(f"estimate: none of {len(indices):,} images could be captioned: {_reason(samples, captions)}")
    written = sum(caption.tokens for generated in found for caption in generated)
    scale = total / len(indices)
    _, processes = config.share()
    log_info(f"{len(found):,} of {len(indices):,} images captioned in {seconds:.1f} s, of {total:,}")
    hours = seconds * scale / 3600
    log_info(f"time: {hours:.2f} h in one process, {hours / processes:.2f} h in {processes:,}")
    field = "requests_in_flight" if config.endpoint else "batch_size"
    if len(images) < (concurrent_images := getattr(config, field)):
        log_info(f"the time is too long: expected an estimate of {concurrent_images} images or more ({field})")
    log_info(f"tokens: {captioner.prompt_tokens * scale:,.0f} of prompts, {written * scale:,.0f} of captions")
    if config.token_prices:
        prices = zip(config.token_prices, (captioner.prompt_tokens, written), strict=True)
        log_info(f"cost: {sum(price * tokens for price, tokens in prices) * scale / 1e6:,.2f}")


def _reason(samples: list[PromptedImage | str], captions: dict) -> str:
    return next(str(each) for each in (*samples, *captions.values()) if isinstance(each, str))
