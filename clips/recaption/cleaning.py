"""Cleaning of model outputs into captions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clips.recaption.recaption_config import RecaptionConfig

if TYPE_CHECKING:
    from clips.recaption.caption_model import GeneratedCaption

_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)(?!.*[.!?][\"'”’)\]]*\s)", re.DOTALL)


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
