"""Of what kind a value in a study file is: each check names the field and what was expected there."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from clips.errors import UserError, suggest

Record = TypeVar("Record")


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


def record_of(kind: type[Record], content: Mapping[Any, Any], where: str) -> Record:
    """A dataclass of plain values from a mapping of the study file.

    Args:
        kind: the dataclass. Its fields are int, float, bool, str, tuple[str, …], tuple[int, …], or a mapping from
            texts to texts and numbers; optional or not.
        content: field → value.
        where: the mapping's place, for messages.

    Raises:
        UserError: an unknown field, a value of another kind, or what the dataclass refuses itself.
    """
    hints = typing.get_type_hints(kind)
    known_keys(content, hints, f"{where}.")
    values: dict[str, Any] = {}
    for name, value in content.items():
        either = typing.get_origin(hints[name]) in {types.UnionType, typing.Union}
        wanted = set(typing.get_args(hints[name])) if either else {hints[name]}
        if value is None:
            continue
        if lists := wanted & {tuple[str, ...], tuple[int, ...]}:
            entry, words = (str, "a text") if tuple[str, ...] in lists else (int, "a whole number")
            value = tuple(list_of(value, f"{where}.{name}", entry, words))
        elif plain := next((each for each in (bool, int, str) if each in wanted), None):
            words = {bool: "true or false", int: "a whole number", str: "a text"}[plain]
            expect(content, name, plain, words, f"{where}.")
        elif float in wanted:
            expect(content, name, int if isinstance(value, int) else float, "a number", f"{where}.")
        elif not isinstance(value, Mapping) or not all(
            isinstance(key, str) and isinstance(item, str | int) for key, item in value.items()
        ):
            raise UserError(f"{where}.{name}: expected a mapping from names to texts and numbers")
        values[name] = value
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None
