"""How the LaTeX table is set: its intervals and marks, and the float and font size into which it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_COLUMN, _PAGE = 236.0, 490.0  # pt: a column, and both columns, of the usual two-column classes
_SIZES = {r"\small": 9.0, r"\footnotesize": 8.0, r"\scriptsize": 7.0}  # of a document of 10 pt; nothing is smaller
COLUMN_GAP = 3.0  # \tabcolsep, in pt
_EM_PER_CHARACTER = 0.58  # digits of Computer Modern at 7 pt have 0.57


@dataclass(frozen=True, kw_only=True)
class LatexStyle:
    """The style of the LaTeX table.

    Args:
        intervals: the 95 % intervals: ``inline`` next to the values, ``separate`` in a second table, ``none``, or
            ``auto``: inline if the table then fits a page at 7 pt, else separate.
        marks: ``tests``: bold is significantly different from all others, underlined is tied at the top; ``ranks``:
            bold is the highest number and underlined the second highest, as printed (equal numbers share a mark), and
            a circle is not significantly different from the highest.
    """

    intervals: Literal["auto", "inline", "separate", "none"] = "auto"
    marks: Literal["tests", "ranks"] = "tests"


def fit_float(texts: Sequence[Sequence[str]]) -> tuple[str, str] | None:
    """The narrowest float and largest size for a table; None if it is too wide at 7 pt.

    Args:
        texts: of each column, header included, as printed.
    """
    for environment, room in (("table", _COLUMN), ("table*", _PAGE)):
        for size, points in _SIZES.items():
            if sum(_width(column, points) for column in texts) <= room:
                return environment, size
    return None


def _width(texts: Sequence[str], points: float) -> float:
    return max(map(len, texts)) * _EM_PER_CHARACTER * points + 2 * COLUMN_GAP


def split_columns(texts: Sequence[Sequence[str]]) -> list[list[int]]:
    """Groups of consecutive columns that each fit a page at 7 pt together with the first column; without the first."""
    first, *others = (_width(column, min(_SIZES.values())) for column in texts)
    parts: list[list[int]] = [[]]
    used = first
    for index, width in enumerate(others):
        if parts[-1] and used + width > _PAGE:
            parts.append([])
            used = first
        parts[-1].append(index)
        used += width
    return parts
