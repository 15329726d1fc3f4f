"""How numbers, columns and gaps are put into words, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clips.visible import visible as visible  # where the wording of a report is looked for

if TYPE_CHECKING:
    from benchmarks.report.table import Cell, Column

LONGEST_TEXT = 600
_LOPSIDED = 0.25  # of an interval's width: how much longer one side may be before both are told
_LONGEST_REASON = 60
_MOST_PLACES = 9
_MOST_NAMED = 6


def short_name(name: str, longest: int = 28) -> str:
    """A row's name for a figure, its middle left out where it is long: names differ at their ends most often."""
    clean = visible(name)
    half = (longest - 1) // 2
    return clean if len(clean) <= longest else f"{clean[:half]}…{clean[-half:]}"


def decimals(column: Column) -> int:
    """Decimal places that a column's values are shown with: per cent and large numbers to a tenth, else a hundredth."""
    return 1 if column.scale == 100 or column.largest >= 10 else 2


def number(value: float | None, places: int, *, sign: bool = False) -> str:
    """A value as text with a real minus sign; an em dash for None and NaN."""
    if value is None or value != value:
        return "—"
    text = f"{value:+,.{places}f}" if sign else f"{value:,.{places}f}"
    if not any(digit in text for digit in "123456789"):
        text = ("±" if sign else "") + text.lstrip("+-")
    return text.replace("-", "−").replace(",", "\N{NARROW NO-BREAK SPACE}")


def enough(value: float | None, places: int) -> int:
    """``places``, or as many as it takes until a value that is not 0 does not look like 0."""
    if value is None or not math.isfinite(value) or value == 0 or float(f"{value:.{places}f}") != 0:
        return places
    return min(-math.floor(math.log10(abs(value))), _MOST_PLACES)


def column_title(column: Column) -> str:
    """The column named in a sentence: ``"pope F1"``; the benchmark is left out where the label names it."""
    label, benchmark = column.label, column.benchmark
    return label if benchmark.casefold() in label.casefold() else f"{benchmark} {label}"


def column_head(column: Column) -> str:
    """The column's title, with an arrow where lower is better."""
    return column_title(column) + (" ↓" if column.higher_is_better is False else "")


def margin(cell: Cell) -> str:
    """The 95 % interval beside its value: ``±1.2``, or ``+8.0/−0.0`` where it is lopsided; empty without one."""
    if cell.low is None or cell.high is None or cell.value is None:
        return ""
    places, above, below = decimals(cell.column), cell.high - cell.value, cell.value - cell.low
    if abs(above - below) <= _LOPSIDED * (above + below):
        half = (above + below) / 2
        return f"±{number(half, enough(half, places))}"
    return f"+{number(above, enough(above, places))}/\N{MINUS SIGN}{number(below, enough(below, places))}"


def score(cell: Cell) -> str:
    """A cell's value with its interval."""
    return f"{number(cell.value, decimals(cell.column))} {margin(cell)}".rstrip()


def ends(cell: Cell) -> str:
    """The 95 % interval by its ends, ``51.0 – 57.6``; empty without one."""
    if cell.low is None or cell.high is None:
        return ""
    places = enough(cell.high - cell.low, decimals(cell.column))
    return f"{number(cell.low, places)} – {number(cell.high, places)}"


def span(low: float, high: float, places: int) -> str:
    """The 95 % interval of a difference, ``−1.2 to +3.4``; an em dash without one."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return number(None, places)
    places = enough(high - low, places)
    return f"{number(low, places, sign=True)} to {number(high, places, sign=True)}"


def group_sign(cell: Cell) -> str:
    """A dagger for each step away from the column's main protocol."""
    return "†" * cell.group


def short_gap(cell: Cell) -> str:
    """What stands in a cell without a number; empty where there is one."""
    return "" if cell.gap is None else {"missing": "not run", "not applicable": "—"}.get(cell.gap.kind, cell.gap.kind)


def gap_words(cell: Cell) -> str:
    """As ``short_gap``, with the reason of a failure or of an invalid file, cut where it is long; the whole reason
    stands below the table."""
    if cell.gap is None or cell.gap.kind not in {"failed", "invalid"}:
        return short_gap(cell)
    reason = " ".join(cell.gap.reason.split())
    return (
        f"{cell.gap.kind}: {reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1].rstrip() + '…'}"
    )


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def finite(value: float | None) -> float | None:
    """``value`` where it is a number to be written down; None of an infinite one and of none."""
    return value if value is not None and math.isfinite(value) else None


def commit(git: Mapping[str, Any]) -> str:
    """A commit in short, and whether there were changes besides; empty where none is recorded."""
    return str(git["commit"])[:12] + (" (changed)" if git.get("dirty") else "") if git.get("commit") else ""


def rows_named(names: Sequence[str]) -> str:
    """``a, b and c``, or the first of many and ``4 other rows``."""
    more = len(names) - _MOST_NAMED
    return listed(names) if more < 2 else f"{', '.join(names[:_MOST_NAMED])} and {more} other rows"


def counted(words: Sequence[str], what: str) -> str:
    """``a, b and c``, or ``12 measures`` where a sentence would drown in them."""
    return f"{len(words)} {what}" if len(words) > _MOST_NAMED else listed(words)


def duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``3 h 12 min``."""
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
