"""The colors of figures: their names in ``style.css``, and their values for matplotlib."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SERIES_COLORS = 8
_STYLE = Path(__file__).parent / "templates" / "style.css"
_SERIES = (f"series-{index}" for index in range(SERIES_COLORS))
COLOR_NAMES = ("ink", "ink-soft", "line", "sheet", "gain", "loss", *_SERIES)


@dataclass(frozen=True)
class Palette:
    """Name of a color in ``style.css`` → hexadecimal color."""

    colors: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.colors[name]

    def series(self, index: int) -> str:
        """The color of the model at an index of the table."""
        return self.colors[f"series-{index % SERIES_COLORS}"]


PLACEHOLDER_PALETTE = Palette({name: f"#0a0b{index:02x}" for index, name in enumerate(COLOR_NAMES)})


@functools.cache
def light_palette() -> Palette:
    """The colors of the page in its light scheme."""
    colors = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}),", _STYLE.read_text(encoding="utf-8")))
    return Palette({name: colors[name] for name in COLOR_NAMES})
