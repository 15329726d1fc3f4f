"""Many encoders from one entry: ``vary`` names settings and their values, every combination is an encoder.

    partial:
      vary: {recipe.strategy: [truncate, block], recipe.target_tokens: [8, 16]}
      recipe: {texts: [partial]}

makes partial.truncate.8, partial.truncate.16, partial.block.8 and partial.block.16.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from clips.errors import UserError

VARY = "vary"
_PART = re.compile(r"[A-Za-z0-9_.]+")
Point = dict[str, Any]
"""Dotted field → its value, for one encoder of an entry."""


def points(entry: Mapping[str, Any], where: str) -> dict[str, Point]:
    """The encoders of an entry with ``vary``: what is added to its name → the values that it has.

    Raises:
        UserError: naming the field: no list of values, or one that makes no name.
    """
    axes = entry[VARY]
    if not isinstance(axes, Mapping) or not axes:
        raise UserError(
            f"{where}.{VARY}: expected a mapping from settings (such as recipe.strategy) to lists of values"
        )
    for setting, values in axes.items():
        listed = isinstance(values, list) and values and len(set(map(str, values))) == len(values)
        if not isinstance(setting, str) or not listed:
            raise UserError(f"{where}.{VARY}.{setting}: expected a list of different values")
        for value in values:
            if not isinstance(value, str | int | float) or not _PART.fullmatch(str(value)):
                raise UserError(f"{where}.{VARY}.{setting}: expected names or numbers, got {value!r:.80}")
    chosen = itertools.product(*axes.values())
    return {".".join(map(str, values)): dict(zip(axes, values, strict=True)) for values in chosen}


def nested(point: Point) -> dict[str, Any]:
    """Dotted fields as mappings within mappings."""
    settings: dict[str, Any] = {}
    for field, value in point.items():
        *outer, last = field.split(".")
        inner = settings
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return settings
