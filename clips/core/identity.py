"""What a run is: the settings that its result depends on. Runs of the same settings and inputs make the same.

A field that says how a run is carried out, and not what comes of it, is marked where it is declared:
``logging_steps: int = field(default=10, metadata=RUN_ONLY)``. An interrupted run may go on with other values of these.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from clips.plain import leaves

RUN_ONLY: Mapping[str, Any] = MappingProxyType({"run_only": True})
"""The metadata of such a field."""


@functools.cache
def run_only_fields(config_class: type) -> frozenset[str]:
    """Dotted names of the marked fields; below a list of configs they are called ``data.sources[].cache``."""
    hints, names = typing.get_type_hints(config_class), set()
    for field in dataclasses.fields(config_class):
        if field.metadata.get("run_only"):
            names.add(field.name)
            continue
        for part, is_item in _configs_in(hints[field.name], is_item=False):
            names |= {f"{field.name}{'[]' if is_item else ''}.{below}" for below in run_only_fields(part)}
    return frozenset(names)


def _configs_in(hint: Any, *, is_item: bool) -> Iterator[tuple[type, bool]]:
    """The config classes of a type, and whether they are items of a list."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint, is_item
    in_list = is_item or typing.get_origin(hint) in {list, tuple}
    for part in typing.get_args(hint):
        yield from _configs_in(part, is_item=in_list)


def result_settings(values: Mapping[str, Any], config_class: type, *, besides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Dotted names and values of the settings that the result depends on.

    Args:
        values: a config as plain data (`clips.plain.plain`), of today or as it was recorded.
        config_class: whose fields are marked.
        besides: dotted names that are left out as well, with all below them.
    """
    left_out = run_only_fields(config_class) | set(besides)
    return {
        name: _without(value, f"{name}[].", left_out)
        for name, value in leaves(values)
        if not any(name == each or name.startswith(f"{each}.") for each in left_out)
    }


def _without(value: Any, prefix: str, left_out: frozenset[str]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [
        {key: one for key, one in item.items() if f"{prefix}{key}" not in left_out}
        if isinstance(item, Mapping)
        else item
        for item in value
    ]
