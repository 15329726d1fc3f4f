"""The settings of the LaTeX table; apart, so that the command's help does not import what renders it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LatexStyle:
    """The style of the LaTeX table.

    Args:
        intervals: the 95 % intervals: ``inline`` next to the values, or ``none``, for a narrower table.
        marks: ``tests``: bold is significantly different from all others, underlined is tied at the top; ``ranks``:
            bold is the highest number and underlined the second highest, as printed (equal numbers share a mark), and
            ≈ is not significantly different from the highest.
    """

    intervals: Literal["inline", "none"] = "inline"
    marks: Literal["tests", "ranks"] = "tests"
