"""What ``--help`` tells of a config: the docstrings of its dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from clips.commandline.complaints import describe_type, field_types


def add_help(parser: Any, config_class: type) -> None:
    """Put what the docstrings say of each field, and of each nested config, into ``--help``."""
    texts = dict(field_help(config_class))
    items = dict(item_classes(config_class))
    for action in parser._actions:
        if action.dest in texts:
            action.help = texts[action.dest]
        listed, asked, _ = action.dest.partition(".help")
        if asked and listed in items:
            action.help = f"tell what an item of {listed} consists of, and exit"
    titles = {str(kind): kind for kind in _config_classes(config_class)}
    for group in parser._action_groups:
        if group.title in titles:
            group.title = summary(titles[group.title]).rstrip(".")


def item_help(config_class: type, arguments: Sequence[str]) -> str | None:
    """The answer to ``--LIST.help``: what an item of that list consists of; None where nobody asks."""
    for name, kind in item_classes(config_class):
        if f"--{name}.help" in arguments:
            return "\n".join([f"Each item of {name} is a mapping. {summary(kind)}", "", *_item_lines(kind)])
    return None


def _item_lines(kind: type) -> Iterator[str]:
    texts, kinds = dict(field_help(kind)), dict(field_types(kind))
    for field in dataclasses.fields(kind):
        text = f"{texts.get(field.name, '')} ({describe_type(kinds[field.name])}; {_default(field)})"
        yield f"  {field.name}"
        yield from textwrap.wrap(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "required" if made is dataclasses.MISSING else f"default: {json.dumps(made, default=str)}"


def item_classes(config_class: type) -> Iterator[tuple[str, type]]:
    """The lists of configs among the fields: dotted name and the class of the items."""
    for name, kind in field_types(config_class):
        if typing.get_origin(kind) in {list, tuple} and "[]" not in name:
            for inner in typing.get_args(kind):
                if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                    yield name, inner


def _config_classes(config_class: type) -> Iterator[type]:
    yield config_class
    for _, kind in field_types(config_class):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield kind


def summary(config_class: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(config_class) or "").split("\n\n")[0].split())


def field_help(config_class: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of the fields, each with what the docstring says of it; inherited fields come first."""
    for kind in reversed(config_class.__mro__):
        _, _, arguments = (inspect.cleandoc(kind.__doc__ or "")).partition("Args:\n")
        found = re.finditer(r"^    (\w+): (.*(?:\n {8,}.*)*)", arguments, re.MULTILINE)
        if dataclasses.is_dataclass(kind):
            yield from ((prefix + match[1], " ".join(match[2].split())) for match in found)
    for name, hint in typing.get_type_hints(config_class).items():
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for kind in options:
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield from field_help(kind, f"{prefix}{name}.")
