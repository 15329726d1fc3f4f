"""What jsonargparse complains of, as one line that names the field and says what was expected."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --(?P<flag>[\w.]+)"
    r"|Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'"
    r"|(?:Key|Option) '(?P<key>[\w.]+)' is not (?:expected|accepted)"
)
_FIELD = re.compile(r'Parser key "(?P<key>[\w.]+)"')
_ABSENT = re.compile(r"File does not exist: '(?P<file>.*)'")
_MISSING = re.compile(r"arguments are required: (?P<names>.*)", re.DOTALL)
_VALUE = re.compile(r"(?:Got value|Given value): (?P<value>.*)", re.DOTALL)
_ODD_KEY = re.compile(r"Empty nested key: .*|Spaces not allowed in keys: .*|(?:Option|Key) '.*' is not .*", re.DOTALL)
_PLAIN_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


def one_line(message: str, config_class: type, given: Callable[[str], Any] = lambda field: None) -> str:
    """jsonargparse's ``message`` about ``config_class`` in our words, or its own on one line.

    Args:
        message: what it said.
        config_class: what was to be built.
        given: a field's name → what the user gave for it, to tell which item of a list is meant; None if not known.
    """
    field = _FIELD.search(message)
    if absent := _ABSENT.search(message):
        return f"--config: no such file: {absent['file']}"
    if field and field["key"] == "config":
        return f"--config: {_last_part(message)}"
    if "Problems parsing config" in message or "Unexpected config" in message:
        return f"--config: expected YAML, a mapping of field names to values ({_last_part(message)})"
    if unknown := _UNKNOWN_KEY.search(message):
        return _unknown_key(
            unknown["flag"] or unknown["key"] or f"{unknown['group']}.{unknown['option']}", config_class
        )
    where = f"{field['key']}: " if field else ""
    if missing := _MISSING.search(message):
        names = missing["names"].strip()
        return f"{field['key']}{_lacking(given(field['key']), names)}: missing {names}" if field else f"missing {names}"
    kinds = dict(field_types(config_class))
    if field and field["key"] in kinds:
        value = _VALUE.search(message)
        got = f", got {_squeeze(value['value'])}" if value else f" ({_last_part(message)})"
        return f"{where}expected {describe_type(kinds[field['key']])}{got}"
    if odd := _ODD_KEY.search(message):
        return f"--config: expected names of fields as keys ({_squeeze(odd[0])})"
    return _squeeze(message)


def _lacking(items: Any, names: str) -> str:
    """``[2]``, the first of the ``items`` that lacks one of ``names``; nothing where none can be told."""
    wanted = set(names.replace(",", " ").split())
    for number, item in enumerate(items if isinstance(items, list) else (), 1):
        if isinstance(item, dict) and not wanted <= item.keys():
            return f"[{number}]"
    return ""


def _unknown_key(key: str, config_class: type) -> str:
    names = list(dict(field_types(config_class)))
    if "." not in key:  # an item of a list is named without what it stands in
        names += [name.rpartition(".")[2] for name in names if "[]" in name]
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown key '{key}'{hint}"


def field_types(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and types of a config's fields, nested ones too; those of a list's items as ``list[].name``."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        yield prefix + field.name, kind
        for inner in (kind, *typing.get_args(kind)):
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                mark = "[]" if typing.get_origin(kind) in {list, tuple} else ""
                yield from field_types(inner, f"{prefix}{field.name}{mark}.")


def describe_type(kind: Any) -> str:
    """A field's type in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN_NAMES:
        return _PLAIN_NAMES[kind]
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(describe_type(part) for part in inner)
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: " + ", ".join(describe_type(part) for part in inner)
    if origin in {list, tuple}:
        return f"a list, each item {describe_type(inner[0])}"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return "a mapping of " + ", ".join(field.name for field in dataclasses.fields(kind))
    if origin is dict:
        return f"a mapping of names to {describe_type(inner[1])}"
    return str(kind)


def _last_part(message: str) -> str:
    """The end of a chain of messages, where the cause stands."""
    chain = r'Parser key "[\w.]+": |Problems parsing config: |Unexpected config: '
    return re.split(chain, _squeeze(message))[-1]


def _squeeze(text: str) -> str:
    return " ".join(text.split())
