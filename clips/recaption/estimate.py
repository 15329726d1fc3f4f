"""The time, tokens and cost of a recaptioning, from captions of a few images."""

from __future__ import annotations

import concurrent.futures
import time

from clips.core.artifact import log_info
from clips.core.estimate import log_estimate
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


def _reason(samples: list[PromptedImage | str], captions: dict) -> str:
    return next(str(each) for each in (*samples, *captions.values()) if isinstance(each, str))
