"""Of what kind a value in a study file is: each check names the field and what was expected there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from clips.errors import UserError, suggest


def known_keys(content: Mapping[Any, Any], names: Iterable[str], prefix: str) -> None:
    """Refuse a key that is not among ``names``, with the near miss."""
    names = list(names)
    for key in content:
        if key not in names:
            raise suggest(f"{prefix}{key}", [f"{prefix}{name}" for name in names], "key")


def expect(fields: Mapping[str, Any], name: str, kind: type, words: str, prefix: str = "") -> None:
    """Refuse a field that is there and of another kind; ``words`` say what was expected."""
    value = fields.get(name)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise UserError(f"{prefix}{name}: expected {words}, got {kind_of(value)}")


def list_of(value: Any, where: str, kind: type, words: str) -> list[Any]:
    """A list whose items are all of one kind; empty where there is none."""
    items = [] if value is None else value
    if not isinstance(items, list):
        raise UserError(f"{where}: expected a list, got {kind_of(items)}")
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise UserError(f"{where}: expected {words} in the list, got {kind_of(item)}")
    return items


def kind_of(value: Any) -> str:
    """What a reader of YAML calls a value."""
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return "a number" if type(value) in {int, float} else names.get(type(value), type(value).__name__)
