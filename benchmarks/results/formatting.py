"""Text of numbers, durations and lists, the same in all outputs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clips.safe_text import strip_control_chars as strip_control_chars  # used by the report

MAX_TEXT_CHARS = 600
_MAX_DECIMALS = 9
_MAX_LISTED = 6
_SEED = re.compile(r"(.*) \(seed (\d+)\)")  # a row of a study with several seeds


def shorten_name(name: str, longest: int = 28) -> str:
    """A model's name for a figure; a long one loses its middle, because names differ mostly at their ends."""
    clean = strip_control_chars(name)
    half = (longest - 1) // 2
    return clean if len(clean) <= longest else f"{clean[:half]}…{clean[-half:]}"


def format_number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """A value as text with a real minus sign; an em dash for None and NaN."""
    if value is None or value != value:
        return "—"
    text = f"{value:+,.{decimals}f}" if sign else f"{value:,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        text = ("±" if sign else "") + text.lstrip("+-")
    return text.replace("-", "−").replace(",", "\N{NARROW NO-BREAK SPACE}")


def decimals_needed(value: float | None, decimals: int) -> int:
    """``decimals``, or more if a nonzero value would otherwise be shown as 0; smaller ones are rounding errors."""
    if value is None or not math.isfinite(value) or value == 0 or float(f"{value:.{decimals}f}") != 0:
        return decimals
    needed = -math.floor(math.log10(abs(value)))
    return needed if needed <= _MAX_DECIMALS else decimals


def difference_ci_text(low: float, high: float, decimals: int) -> str:
    """The 95 % interval of a difference, ``−1.2 to +3.4``; an em dash without one."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return format_number(None, decimals)
    decimals = decimals_needed((high - low) / 2, decimals)  # so that not both ends are shown as 0
    return f"{format_number(low, decimals, sign=True)} to {format_number(high, decimals, sign=True)}"


def join_with_and(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def finite_or_none(value: float | None) -> float | None:
    """``value``, or None if it is infinite or NaN."""
    return value if value is not None and math.isfinite(value) else None


def commit_text(git: Mapping[str, Any]) -> str:
    """The abbreviated commit, marked if there were uncommitted changes; empty if none is recorded."""
    return str(git["commit"])[:12] + (" (changed)" if git.get("dirty") else "") if git.get("commit") else ""


def join_row_names(names: Iterable[str]) -> str:
    """``a, b (seed 1) and c (seeds 1, 2)``; of many names the first ones and ``4 other models``."""
    seeds: dict[str, list[str]] = {}  # of each model, none if it has one row
    for name in names:
        seed = _SEED.fullmatch(name)
        seeds.setdefault(seed[1] if seed else name, []).extend([seed[2]] if seed else [])
    words = [f"{model} (seed{'s' * (len(own) > 1)} {', '.join(own)})" if own else model for model, own in seeds.items()]
    more = len(words) - _MAX_LISTED
    return join_with_and(words) if more < 2 else f"{', '.join(words[:_MAX_LISTED])} and {more} other models"


def join_or_count(words: Sequence[str], what: str) -> str:
    """``a, b and c``, or ``12 measures`` if there are many."""
    return f"{len(words)} {what}" if len(words) > _MAX_LISTED else join_with_and(words)


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
