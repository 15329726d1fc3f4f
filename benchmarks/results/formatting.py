"""How numbers, durations and lists are put into words, the same wherever they are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clips.sanitize import strip_control_chars as strip_control_chars  # where the wording of a report is looked for

MAX_TEXT_CHARS = 600
_MOST_PLACES = 9
_MOST_NAMED = 6


def shorten_name(name: str, longest: int = 28) -> str:
    """A row's name for a figure, its middle omitted where it is long: names differ at their ends most often."""
    clean = strip_control_chars(name)
    half = (longest - 1) // 2
    return clean if len(clean) <= longest else f"{clean[:half]}…{clean[-half:]}"


def format_number(value: float | None, places: int, *, sign: bool = False) -> str:
    """A value as text with a real minus sign; an em dash for None and NaN."""
    if value is None or value != value:
        return "—"
    text = f"{value:+,.{places}f}" if sign else f"{value:,.{places}f}"
    if not any(digit in text for digit in "123456789"):
        text = ("±" if sign else "") + text.lstrip("+-")
    return text.replace("-", "−").replace(",", "\N{NARROW NO-BREAK SPACE}")


def decimals_needed(value: float | None, places: int) -> int:
    """``places``, or as many as it takes until a value that is not 0 does not look like 0."""
    if value is None or not math.isfinite(value) or value == 0 or float(f"{value:.{places}f}") != 0:
        return places
    return min(-math.floor(math.log10(abs(value))), _MOST_PLACES)


def difference_ci_text(low: float, high: float, places: int) -> str:
    """The 95 % interval of a difference, ``−1.2 to +3.4``; an em dash without one."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return format_number(None, places)
    places = decimals_needed(high - low, places)
    return f"{format_number(low, places, sign=True)} to {format_number(high, places, sign=True)}"


def join_with_and(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def finite_or_none(value: float | None) -> float | None:
    """``value`` where it is a number to be written down; None of an infinite one and of none."""
    return value if value is not None and math.isfinite(value) else None


def commit_text(git: Mapping[str, Any]) -> str:
    """A commit in short, and whether there were changes besides; empty where none is recorded."""
    return str(git["commit"])[:12] + (" (changed)" if git.get("dirty") else "") if git.get("commit") else ""


def join_row_names(names: Sequence[str]) -> str:
    """``a, b and c``, or the first of many and ``4 other models``."""
    more = len(names) - _MOST_NAMED
    return join_with_and(names) if more < 2 else f"{', '.join(names[:_MOST_NAMED])} and {more} other models"


def join_or_count(words: Sequence[str], what: str) -> str:
    """``a, b and c``, or ``12 measures`` where a sentence would drown in them."""
    return f"{len(words)} {what}" if len(words) > _MOST_NAMED else join_with_and(words)


def format_duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``3 h 12 min``."""
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
