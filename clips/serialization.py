"""Configs and records as plain data, the values of JSON and YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def to_plain(value: Any) -> Any:
    """``value`` with dataclasses as dicts, tuples as lists and paths as strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_yaml(config: Any) -> str:
    """A config dataclass as the YAML text that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True, width=100)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested plain data."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
