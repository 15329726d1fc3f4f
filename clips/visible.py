"""Text from files that others wrote, made fit for a terminal: it may not move the cursor, or hide what it says."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def visible(text: str, longest: int | None = None) -> str:
    """``text`` with a replacement character for each control or direction character, cut to ``longest`` characters.

    Line ends and tabs stay.
    """
    clean = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if longest is None or len(clean) <= longest else clean[: longest - 1].rstrip() + "…"
