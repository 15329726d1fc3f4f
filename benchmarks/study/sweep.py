"""Many rows from one entry: ``sweep`` names settings and their values, every combination is one entry.

    partial:
      sweep: {recipe.caption_strategy: [truncate, block], recipe.caption_tokens: [8, 16]}
      recipe: {texts: [partial]}

makes partial.truncate.8, partial.truncate.16, partial.block.8 and partial.block.16. A figure of the report can show a
score against one of these settings.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from clips.errors import UserError

SWEEP = "sweep"
_PART = re.compile(r"[A-Za-z0-9_.]+")
Settings = Mapping[str, Any]
"""Fields of a command's own config; that command checks them."""
Point = dict[str, Any]
"""Dotted field → its value, for one encoder of an entry."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """What ``sweep`` made: the entry that it comes from, and its own values (dotted field → value)."""

    entry: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """A figure of the report: a score against a setting, one curve for each combination of the other settings.

    Args:
        benchmark: whose primary metrics are drawn, one panel each.
        encoders: the entry with ``sweep`` whose encoders are the points.
        x: the setting along the axis, one that the entry varies, with numbers for values.
        reference_lines: encoders drawn as level lines, by name.
        title: above the panels; the entry's name where empty.
        label: of the axis; the setting's name where empty.
    """

    benchmark: str
    encoders: str
    x: str
    reference_lines: tuple[str, ...] = ()
    title: str = ""
    label: str = ""


def deep_merge(below: Settings, above: Settings) -> dict[str, Any]:
    """``above`` laid over ``below``: mappings are merged key by key, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = deep_merge(result[key], value) if both else value
    return result


def expand_sweeps(entries: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, SweepPoint]]:
    """The entries, what ``sweep`` makes of one in its place, and where these come from.

    Args:
        entries: encoders, LLMs or LLaVA variants by name.
        where: the study's field.
    """
    expanded: dict[str, Any] = {}
    varied: dict[str, SweepPoint] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or SWEEP not in entry:
            made = {name: entry}
        else:
            common = {key: value for key, value in entry.items() if key != SWEEP}
            found = {f"{name}.{rest}": point for rest, point in sweep_points(entry, f"{where}.{name}").items()}
            made = {full: deep_merge(common, unflatten(point)) for full, point in found.items()}
            varied |= {full: SweepPoint(entry=name, settings=point) for full, point in found.items()}
        if twice := made.keys() & expanded.keys():
            raise UserError(f"{where}.{name}: its '{SWEEP}' makes {min(twice)}, which is there already")
        expanded |= made
    return expanded, varied


def sweep_points(entry: Mapping[str, Any], where: str) -> dict[str, Point]:
    """What an entry with ``sweep`` makes: what is added to its name → the values that it has.

    Raises:
        UserError: naming the field: no list of values, or one that makes no name.
    """
    axes = entry[SWEEP]
    if not isinstance(axes, Mapping) or not axes:
        raise UserError(
            f"{where}.{SWEEP}: expected a mapping from settings (such as recipe.caption_strategy) to lists of values"
        )
    for setting, values in axes.items():
        listed = isinstance(values, list) and values and len(set(map(str, values))) == len(values)
        if not isinstance(setting, str) or not listed:
            raise UserError(f"{where}.{SWEEP}.{setting}: expected a list of different values")
        for value in values:
            if not isinstance(value, str | int | float) or not _PART.fullmatch(_word(value)):
                raise UserError(f"{where}.{SWEEP}.{setting}: expected names or numbers, got {value!r:.80}")
    chosen = itertools.product(*axes.values())
    return {".".join(map(_word, values)): dict(zip(axes, values, strict=True)) for values in chosen}


def _word(value: str | int | float) -> str:
    """A value as a part of a name, in which a hyphen would be taken for the end of a part: 2e-5 is 0.00002."""
    if isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    if not math.isfinite(value):
        return "?"  # no name
    return f"{Decimal(str(value)):f}".replace("-", "minus")


def unflatten(point: Point) -> dict[str, Any]:
    """Dotted fields as mappings within mappings."""
    settings: dict[str, Any] = {}
    for field, value in point.items():
        *outer, last = field.split(".")
        inner = settings
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return settings
