"""Redaction of passwords, keys and signatures from records: manifests, results, logs and reports are passed on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REDACTED = "***"
_NAME = r"(?:token|api[_-]?key|access[_-]?key(?:[_-]?id)?|key|secret|signature|sig|password|passwd|credential)"
_SHAPES = (
    (re.compile(r"(://)[^/\s\"'@\\:]*:[^/\s\"'\\]*@"), rf"\1{REDACTED}@"),  # user:password in an address
    (re.compile(r"(\bcurl\b[^\n]{0,500}?\s(?:-u|--user)[ =]?)[^\s\"'\\]+"), rf"\1{REDACTED}"),
    (re.compile(rf"(?i)([?&;](?:[\w.%-]{{0,80}}[_.-])?{_NAME}=)[^&;#\s\"'\\]+"), rf"\1{REDACTED}"),  # in its query
    (re.compile(rf"(?i)((?:^|\s)--(?:[\w.-]{{0,80}}[_.-])?{_NAME}[ =])[^\s\"'\\]+"), rf"\1{REDACTED}"),  # a flag
    (re.compile(rf"\b((?:[A-Z0-9_]{{0,80}}_)?{_NAME.upper()}=)[^\s\"'\\]+"), rf"\1{REDACTED}"),  # set for a command
    # in a header; or anywhere, if it is no word: "a basic comparison" is none of our business
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
_SHORTEST = 8  # of an environment value to be redacted; "true" or "1" is no secret


def redact(value: Any) -> Any:
    """Plain data or a string with ``***`` in place of likely secrets.

    These are: user and password in a URL, keys and signatures in its query, values of flags and variables with such
    names, bearer tokens, tokens of known formats, and the environment's values under such names.
    """
    if isinstance(value, str):
        return _masked(value)
    if isinstance(value, Mapping):
        return {redact(name): redact(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return value


def equal_up_to_redaction(one: Any, other: Any) -> bool:
    """Whether two values may be equal, except for the masked parts of either.

    A value recorded in one environment is compared in another, which may know fewer secrets, or more.
    """
    if isinstance(one, str) and isinstance(other, str):
        return one == other or _represents(one, other) or _represents(other, one)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal_up_to_redaction(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal_up_to_redaction, one, other))
    return one == other


def _represents(masked: str, text: str) -> bool:
    """Whether ``masked`` is ``text`` with ``***`` for parts that are long enough for secrets, or also masked."""
    first, *others = _STARS.split(masked)
    if not others or not text.startswith(first):
        return False
    place = len(first)
    for number, piece in enumerate(others, 1):
        shortest = len(REDACTED) if text.startswith(REDACTED, place) else _SHORTEST
        find = text.rfind if number == len(others) else text.find
        found = find(piece, place + shortest)
        if found < 0:
            return False
        place = found + len(piece)
    return place == len(text)


def _is_place(value: str) -> bool:
    """Whether a variable holds the path of a key, which is no secret itself (``SSH_KEY=/home/me/.ssh/id``)."""
    try:
        return Path(value).is_absolute() and Path(value).exists()
    except (OSError, ValueError):
        return False


def _masked(text: str) -> str:
    for name, known in os.environ.items():
        if len(known) >= _SHORTEST and known in text and _ENVIRONMENT.search(name) and not _is_place(known):
            text = text.replace(known, REDACTED)
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return text
