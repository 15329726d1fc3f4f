"""The one exception that means "the user can mend this", and text of others made fit for a terminal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 30  # more names than this are no help in one line


class UserError(Exception):
    """A mistake in what the user gave: a config field, a file, a name.

    The message is one line that names the field or file and says what was expected. Every command
    ends with exit status 2 and that line alone, without a traceback.
    """


def error_reason(error: Exception) -> str:
    """What a library complains of, as a part of one line; the kind of error where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def unknown_name_error(name: str, choices: Iterable[str], what: str) -> UserError:
    """The error for an unknown ``name``: says what the choices are and which of them is near.

    Args:
        name: what the user wrote.
        choices: an iterable of the names that exist.
        what: what is being named, for instance ``"recipe"``.
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(known)
    if len(known) > _LISTED:
        shown = f"{', '.join(difflib.get_close_matches(name, known, n=5, cutoff=0.0))} and {len(known) - 5} more"
    return UserError(f"unknown {what} '{name}'{hint} (known: {shown})")
