"""How the LaTeX table is set: its intervals and marks, and the float and font size into which it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clips.ranges import PositiveFloat

_COLUMN = 236.0  # pt: a column of the usual two-column classes
_SIZES = {r"\small": 9.0, r"\footnotesize": 8.0, r"\scriptsize": 7.0}  # of a document of 10 pt; nothing is smaller
COLUMN_GAP = 3.0  # \tabcolsep, in pt
_EM_PER_CHARACTER = 0.58  # digits of Computer Modern at 7 pt have 0.57


@dataclass(frozen=True, kw_only=True)
class LatexStyle:
    """The style of the LaTeX table.

    Args:
        intervals: the 95 % intervals: ``inline`` next to the values, or ``none``, for a narrower table.
        marks: ``tests``: bold is significantly different from all others, underlined is tied at the top; ``ranks``:
            bold is the highest number and underlined the second highest, as printed (equal numbers share a mark), and
            ≈ is not significantly different from the highest.
        text_width: of a page, in pt: 490 with two columns, 345 in the one column of ``article``.
    """

    intervals: Literal["inline", "none"] = "inline"
    marks: Literal["tests", "ranks"] = "tests"
    text_width: PositiveFloat = 490.0


def fit_float(texts: Sequence[Sequence[str]], parts: Sequence[Sequence[int]], text_width: float) -> tuple[str, str]:
    """The narrowest float and largest size that all parts of a table fit; 7 pt if one is too wide.

    Args:
        texts: of each column, header included, as printed.
        parts: see `split_columns`.
        text_width: see `LatexStyle`.
    """
    for environment, room in (("table", _COLUMN), ("table*", text_width)):
        for size, points in _SIZES.items():
            first, *others = (_width(column, points) for column in texts)
            if all(first + sum(others[index] for index in columns) <= room for columns in parts):
                return environment, size
    return environment, size


def _width(texts: Sequence[str], points: float) -> float:
    return max(map(len, texts)) * _EM_PER_CHARACTER * points + 2 * COLUMN_GAP


def split_columns(texts: Sequence[Sequence[str]], text_width: float) -> list[list[int]]:
    """Groups of consecutive columns that each fit a page at 7 pt together with the first column; without the first."""
    first, *others = (_width(column, min(_SIZES.values())) for column in texts)
    parts: list[list[int]] = [[]]
    used = first
    for index, width in enumerate(others):
        if parts[-1] and used + width > text_width:
            parts.append([])
            used = first
        parts[-1].append(index)
        used += width
    return parts
