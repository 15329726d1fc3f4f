"""Text made safe to show or record: no control characters, no passwords, keys or signatures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
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
_NAME = r"(?:token|api[_-]?key|access[_-]?key(?:[_-]?id)?|key|secret|signature|sig|password|passwd|credential)"
_PATTERNS = (
    (re.compile(r"(://)[^/\s\"'@\\:]*:[^/\s\"'\\]*@"), rf"\1{REDACTED}@"),  # user:password in a URL
    (re.compile(r"(\bcurl\b[^\n]{0,500}?\s(?:-u|--user)[ =]?)[^\s\"'\\]+"), rf"\1{REDACTED}"),
    (re.compile(rf"(?i)([?&;](?:[\w.%-]{{0,80}}[_.-])?{_NAME}=)[^&;#\s\"'\\]+"), rf"\1{REDACTED}"),  # in its query
    (re.compile(rf"(?i)((?:^|\s)--(?:[\w.-]{{0,80}}[_.-])?{_NAME}[ =])[^\s\"'\\]+"), rf"\1{REDACTED}"),  # a flag
    (re.compile(rf"\b((?:[A-Z0-9_]{{0,80}}_)?{_NAME.upper()}=)[^\s\"'\\]+"), rf"\1{REDACTED}"),  # set for a command
    # in a header; or anywhere, unless it is a word, as in "a basic comparison"
    (re.compile(r"(?i)(authorization[\"']?\s{0,9}[:=]\s{0,9}[\"']?(?:[\w-]{1,40}\s+)?)[^\s\"'\\]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(\bx-[\w-]{0,80}(?:key|token|secret)[\"']?\s{0,9}:\s{0,9}[\"']?)[^\s\"'\\]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)(?=[\w.~+/-]*[\d=])[\w.~+/=-]{8,}"), rf"\1{REDACTED}"),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|AIza[\w-]{30,}"
            r"|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abps]-[\w-]{10,})"
        ),
        REDACTED,
    ),
)
_ENVIRONMENT = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD)$")
_STARS = re.compile(r"\*{3,}")
_MIN_LENGTH = 8  # of a redacted environment value; "true" or "1" is no secret


def redact(value: Any) -> Any:
    """Plain data or a string with ``***`` in place of likely secrets.

    These are user and password in a URL, keys and signatures in its query, flags and environment variables with names
    like ``token``, bearer tokens, and tokens of known formats.
    """
    if isinstance(value, str):
        return _redact_text(value)
    if isinstance(value, Mapping):
        return {redact(name): redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def equal_up_to_redaction(one: Any, other: Any) -> bool:
    """Whether two values may be equal, except for the redacted parts of either.

    The environments in which they were recorded may have different secrets.
    """
    if isinstance(one, str) and isinstance(other, str):
        return one == other or _matches(one, other) or _matches(other, one)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal_up_to_redaction(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal_up_to_redaction, one, other))
    return one == other


def _matches(redacted: str, text: str) -> bool:
    """Whether ``redacted`` is ``text`` with ``***`` for parts that are long enough for secrets, or also redacted."""
    first, *others = _STARS.split(redacted)
    if not others or not text.startswith(first):
        return False
    position = len(first)
    for number, piece in enumerate(others, 1):
        min_length = len(REDACTED) if text.startswith(REDACTED, position) else _MIN_LENGTH
        find = text.rfind if number == len(others) else text.find
        found = find(piece, position + min_length)
        if found < 0:
            return False
        position = found + len(piece)
    return position == len(text)


def _is_path(value: str) -> bool:
    """Whether a variable has the path of a key, which is no secret (``SSH_KEY=/home/me/.ssh/id``)."""
    try:
        return Path(value).is_absolute() and Path(value).exists()
    except (OSError, ValueError):
        return False


def _redact_text(text: str) -> str:
    for name, value in os.environ.items():
        if len(value) >= _MIN_LENGTH and value in text and _ENVIRONMENT.search(name) and not _is_path(value):
            text = text.replace(value, REDACTED)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
