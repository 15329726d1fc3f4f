"""The exception for user errors, and error texts of other libraries formatted for a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_LISTED = 30  # names in one line
_MAX_REASON = 300  # characters of a library's message


class UserError(Exception):
    """A user error: an invalid config field, file or name.

    The message is one line that names the field or file and states the expected value. Every command ends with exit
    status 2 and that line alone, without a traceback.
    """


def error_reason(error: Exception) -> str:
    """A library's error message as part of one line; the exception type if the message is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[: _MAX_REASON - 1]}…"


def unknown_name_error(name: str, choices: Iterable[str], what: str) -> UserError:
    """The error for an unknown ``name`` of a ``what`` (for instance "recipe"), with the choices and close matches."""
    known = sorted(choices)
    longer = [each for each in known if name and each.startswith(name)]  # a100 for a100-80
    near = longer or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(known)
    if len(known) > _MAX_LISTED:
        listed = f"{', '.join(difflib.get_close_matches(name, known, n=5, cutoff=0.0))} and {len(known) - 5} more"
    return UserError(f"unknown {what} '{name}'{hint} (known: {listed})")
