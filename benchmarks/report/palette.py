"""The colors of figures: the names that ``style.css`` gives them, and what is given to matplotlib for each."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SERIES_COLORS = 8
_STYLE = Path(__file__).parent / "templates" / "style.css"
COLOR_NAMES = (
    "ink",
    "ink-soft",
    "line",
    "sheet",
    "gain",
    "loss",
    *(f"series-{place}" for place in range(SERIES_COLORS)),
)


@dataclass(frozen=True)
class Palette:
    """Name of a color in ``style.css`` → what to give to matplotlib for it."""

    colors: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.colors[name]

    def series(self, place: int) -> str:
        """The color of a row's place in the table."""
        return self.colors[f"series-{place % SERIES_COLORS}"]


PLACEHOLDER_PALETTE = Palette({name: f"#0a0b{number:02x}" for number, name in enumerate(COLOR_NAMES)})


@functools.cache
def light_palette() -> Palette:
    """The colors of the page in its light scheme."""
    found = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}),", _STYLE.read_text(encoding="utf-8")))
    return Palette({name: found[name] for name in COLOR_NAMES})
