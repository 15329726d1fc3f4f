"""From what a model wrote to captions that are kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clips.recaption.recaption_config import RecaptionConfig

if TYPE_CHECKING:
    from clips.recaption.caption_model import GeneratedCaption

_LAST_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s)(?!.*[.!?][\"'”’)\]]*\s)", re.DOTALL)


def filter_captions(said: Sequence[GeneratedCaption], config: RecaptionConfig) -> tuple[list[str], str]:
    """The captions that fit, cleaned, and why there are none of them."""
    kept, reason = list[str](), "no caption written"
    for one in said:
        text = clean_caption(one, drop_incomplete_sentence=config.drop_incomplete_sentence)
        words = len(text.split())
        if not words:
            continue
        if words < config.min_words:
            reason = "caption too short"
        elif config.max_words is not None and words > config.max_words:
            reason = "caption too long"
        elif text not in kept:
            kept.append(text)
    return kept, reason


def clean_caption(said: GeneratedCaption, *, drop_incomplete_sentence: bool) -> str:
    """White space collapsed; the unfinished last sentence of a cut text dropped, where a whole one stands before it."""
    text = " ".join(said.text.split())
    if drop_incomplete_sentence and not said.ended and (end := _LAST_END.search(f"{text} ")):
        return text[: end.end()]
    return text
