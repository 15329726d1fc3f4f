"""Parameter sweeps: ``sweep`` lists settings and their values, and every combination becomes an entry.

    partial:
      sweep: {recipe.caption_strategy: [truncate, block], recipe.caption_tokens: [8, 16]}
      recipe: {positives: [partial]}

becomes partial.truncate.8, partial.truncate.16, partial.block.8 and partial.block.16. A figure of the report can show a
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
"""Fields of a command's config; the command checks them."""
Point = dict[str, Any]
"""Dotted field → its value, for one combination."""


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One combination of a sweep: the entry with ``sweep``, and dotted field → value."""

    entry: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FigureSpec:
    """A figure of the report: a score against a setting, one curve for each combination of the other settings.

    Args:
        benchmark: whose primary metrics are drawn, one panel each.
        encoders: the entry with ``sweep`` whose encoders are the points.
        x: the setting of the horizontal axis, one of the sweep's, with numbers as values.
        reference_lines: names of encoders drawn as horizontal lines.
        title: of the figure; by default the entry's name.
        label: of the axis; by default the setting's name.
    """

    benchmark: str
    encoders: str
    x: str
    reference_lines: tuple[str, ...] = ()
    title: str = ""
    label: str = ""


def deep_merge(defaults: Settings, overrides: Settings) -> dict[str, Any]:
    """``defaults`` updated with ``overrides``: mappings are merged recursively, all other values are replaced."""
    result = dict(defaults)
    for key, value in overrides.items():
        are_mappings = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = deep_merge(result[key], value) if are_mappings else value
    return result


def expand_sweeps(entries: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, SweepPoint]]:
    """The entries with every sweep replaced by its combinations, and name → sweep point of these.

    Raises:
        UserError: an invalid sweep, or one that creates a name twice; the message names the study's field ``where``.
    """
    expanded: dict[str, Any] = {}
    points: dict[str, SweepPoint] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or SWEEP not in entry:
            created = {name: entry}
        else:
            common = {key: value for key, value in entry.items() if key != SWEEP}
            named = {f"{name}.{suffix}": point for suffix, point in sweep_points(entry, f"{where}.{name}").items()}
            created = {full: deep_merge(common, unflatten(point)) for full, point in named.items()}
            points |= {full: SweepPoint(entry=name, settings=point) for full, point in named.items()}
        if duplicates := created.keys() & expanded.keys():
            raise UserError(f"{where}.{name}: its '{SWEEP}' makes {min(duplicates)}, which already exists")
        expanded |= created
    return expanded, points


def sweep_points(entry: Mapping[str, Any], where: str) -> dict[str, Point]:
    """Suffix of the name → values, for every combination of an entry's ``sweep``.

    Raises:
        UserError: naming the field: no list of values, or a value that cannot be part of a name.
    """
    axes = entry[SWEEP]
    if not isinstance(axes, Mapping) or not axes:
        raise UserError(
            f"{where}.{SWEEP}: expected a mapping from settings (such as recipe.caption_strategy) to lists of values"
        )
    for setting, values in axes.items():
        is_list = isinstance(values, list) and values and len(set(map(str, values))) == len(values)
        if not isinstance(setting, str) or not is_list:
            raise UserError(f"{where}.{SWEEP}.{setting}: expected a list of different values")
        for value in values:
            if not isinstance(value, str | int | float) or not _PART.fullmatch(_word(value)):
                raise UserError(f"{where}.{SWEEP}.{setting}: expected names or numbers, got {value!r:.80}")
    combinations = itertools.product(*axes.values())
    return {".".join(map(_word, values)): dict(zip(axes, values, strict=True)) for values in combinations}


def _word(value: str | int | float) -> str:
    """A value as part of a name. Hyphens separate the parts of names, so that 2e-5 is written 0.00002."""
    if isinstance(value, str | bool):
        return str(value).lower() if isinstance(value, bool) else value
    if not math.isfinite(value):
        return "?"  # an invalid name
    return f"{Decimal(str(value)):f}".replace("-", "minus")


def unflatten(point: Point) -> dict[str, Any]:
    """Dotted fields as nested mappings."""
    settings: dict[str, Any] = {}
    for field, value in point.items():
        *outer, last = field.split(".")
        inner = settings
        for name in outer:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return settings
