"""The colours of figures: the names that ``style.css`` gives them, and what is given to matplotlib for each."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SERIES_COLOURS = 8
_STYLE = Path(__file__).parent / "templates" / "style.css"
NAMES = ("ink", "ink-soft", "line", "sheet", "gain", "loss", *(f"series-{place}" for place in range(SERIES_COLOURS)))


@dataclass(frozen=True)
class Inks:
    """Name of a colour in ``style.css`` → what to give to matplotlib for it."""

    colours: Mapping[str, str]

    def __getitem__(self, name: str) -> str:
        return self.colours[name]

    def series(self, place: int) -> str:
        """The colour of a row's place in the table."""
        return self.colours[f"series-{place % SERIES_COLOURS}"]


STAND_INS = Inks({name: f"#0a0b{number:02x}" for number, name in enumerate(NAMES)})


@functools.cache
def light_inks() -> Inks:
    """The colours of the page in its light scheme."""
    found = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}),", _STYLE.read_text(encoding="utf-8")))
    return Inks({name: found[name] for name in NAMES})
