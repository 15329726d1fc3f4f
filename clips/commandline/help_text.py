"""The ``--help`` text of a config, from the docstrings of its dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from clips.typed_data import describe_type, field_types, is_config, options_of, to_plain, without_range

_SPECIAL = (
    ("--config FILE", "a YAML file of these fields; later files and flags override it."),
    ("--print_config", "print the config, defaults included, and exit."),
    ("-h, --help", "print this help and exit."),
)


def help_text(config_class: type, prog: str, positional: Sequence[str], rest: str | None) -> str:
    """The output of ``--help``: usage, the command's description, and each field with its meaning, type and default."""
    arguments = "".join(f" {name.upper()}" for name in positional) + (f" {rest.upper()} …" if rest else "")
    lines = [f"usage: {prog}{arguments} [--config FILE] [--FIELD VALUE ...]", "", docstring_summary(config_class), ""]
    for flag, text in _SPECIAL:
        lines += [f"  {flag}", f"      {text}"]
    return "\n".join([*lines, *field_lines(config_class, "--")])


def list_item_help(config_class: type, arguments: Sequence[str]) -> str | None:
    """The output of ``--LIST.help``: the fields of an item of that list; None if it is not requested."""
    for name, kind in list_item_classes(config_class):
        if f"--{name}.help" in arguments:
            lines = [f"Each item of {name} is a mapping. {docstring_summary(kind)}", "", *field_lines(kind)]
            for heading, variant, parent, inherited in item_variants(kind):
                heading += f", in addition to those of {inherited}" if inherited else ""
                lines += ["", *textwrap.wrap(f"of {heading}:", 90), *field_lines(variant, without=parent)]
            return "\n".join(lines)
    return None


def item_variants(kind: type) -> Iterator[tuple[str, type, type, str]]:
    """The subclasses that a list's items may have, if ``kind`` has a method ``variants``: heading → subclass.

    Each with its heading, and the nearest one before it whose fields it inherits with that one's heading.
    """
    earlier = {kind: ""}
    for heading, variant in getattr(kind, "variants", dict)().items():
        parent = next(each for each in reversed(earlier) if issubclass(variant, each))
        yield heading, variant, parent, earlier[parent]
        earlier[variant] = heading


def field_lines(config_class: type, prefix: str = "", without: type | None = None) -> Iterator[str]:
    """Each field on a line, followed by its description; nested configs follow under a heading.

    The fields of the class ``without`` are omitted.
    """
    texts, hints = dict(field_help(config_class)), typing.get_type_hints(config_class, include_extras=True)
    nested = []
    inherited = {field.name for field in dataclasses.fields(without)} if without else set()
    for field in dataclasses.fields(config_class):
        if field.name in inherited:
            continue
        inner = next((option for option in options_of(hints[field.name]) if is_config(option)), None)
        if inner is not None:
            nested.append((field, inner))
        if inner is None or inner is not hints[field.name]:
            text = f"{texts.get(field.name, '')} ({describe_type(hints[field.name])}; {_default(field)})"
            listed = any(name == field.name for name, _ in list_item_classes(config_class))
            yield f"  {prefix}{field.name}" + (f"  (an item: {prefix}{field.name}.help)" if listed and prefix else "")
            yield from textwrap.wrap(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for field, inner in nested:
        yield from ("", f"{prefix}{field.name}: {texts.get(field.name, '')}")
        yield from field_lines(inner, f"{prefix}{field.name}.")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "required" if value is dataclasses.MISSING else f"default: {json.dumps(to_plain(value), ensure_ascii=False)}"


def list_item_classes(config_class: type) -> Iterator[tuple[str, type]]:
    """(dotted name, class of the items) of each field that is a list or a mapping of configs."""
    for name, ranged in field_types(config_class):
        kind = without_range(ranged)
        if typing.get_origin(kind) in {list, tuple, dict} and "[]" not in name:
            yield from ((name, inner) for inner in typing.get_args(kind) if is_config(inner))


def docstring_summary(config_class: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(config_class) or "").split("\n\n")[0].split())


def field_help(config_class: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names of the fields with their descriptions; inherited fields come first."""
    for kind in reversed(config_class.__mro__):
        _, _, arguments = (inspect.cleandoc(kind.__doc__ or "")).partition("Args:\n")
        found = re.finditer(r"^    (\w+): (.*(?:\n {8,}.*)*)", arguments, re.MULTILINE)
        if is_config(kind):
            yield from ((prefix + match[1], " ".join(match[2].split())) for match in found)
    for name, hint in typing.get_type_hints(config_class).items():
        for kind in options_of(hint):
            if is_config(kind):
                yield from field_help(kind, f"{prefix}{name}.")
