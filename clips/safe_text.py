"""Text made safe to show or record: no control characters, no passwords in URLs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def strip_control_chars(text: str, max_length: int | None = None) -> str:
    """Replace control and direction characters, except newlines and tabs; truncate to ``max_length`` characters."""
    clean = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if max_length is None or len(clean) <= max_length else clean[: max_length - 1].rstrip() + "…"


def escape_markdown(text: str) -> str:
    """Text that Markdown renders literally, on one line."""
    special = {character: f"\\{character}" for character in "\\`*_{}[]|#~$!"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "".join(special.get(character, character) for character in strip_control_chars(" ".join(text.split())))


def jinja_finalize(value: Any) -> Any:
    """For Jinja's ``finalize``: strings without control characters, other values and markup unchanged."""
    return strip_control_chars(value) if type(value) is str else value  # Markup is a subclass of str


REDACTED = "***"
_USER_AND_PASSWORD = re.compile(r"(://)[^/\s\"'@\\:]*:[^/\s\"'\\]*@")


def redact(value: Any) -> Any:
    """Plain data or a string with ``***`` in place of ``user:password`` in URLs; no other secret is recognized."""
    if isinstance(value, str):
        return _USER_AND_PASSWORD.sub(rf"\1{REDACTED}@", value)
    if isinstance(value, Mapping):
        return {redact(name): redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


num_lines = 0
"""Lines that `log_info` has printed in this process."""


def log_info(message: str) -> None:
    """Print one log line to standard error, without control characters and secrets."""
    global num_lines
    num_lines += 1
    print(strip_control_chars(redact(message)), file=sys.stderr, flush=True)
