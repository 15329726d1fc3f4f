"""Untrusted text made safe for a terminal or for Markdown: no control characters, no markup."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def strip_control_chars(text: str, longest: int | None = None) -> str:
    """``text`` with a replacement character for each control or direction character, cut to ``longest`` characters.

    Line ends and tabs stay.
    """
    clean = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if longest is None or len(clean) <= longest else clean[: longest - 1].rstrip() + "…"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    special = {character: f"\\{character}" for character in "\\`*_{}[]|#~$!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "".join(special.get(character, character) for character in strip_control_chars(" ".join(text.split())))


def jinja_finalize(value: Any) -> Any:
    """What a template is to show of a value, for Jinja's ``finalize``: text as `visible` has it, markup as it is."""
    return strip_control_chars(value) if type(value) is str else value  # Markup is a str, but not of that very type
