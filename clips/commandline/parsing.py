"""A config dataclass from YAML files and dotted flags, with one-line errors, and its ``--help`` from docstrings.

Flags may have hyphens, lists may be separated by commas, and positional fields need no flag, nor does a YAML file.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from clips.errors import UserError
from clips.text_files import parse_yaml, read_yaml
from clips.typed_data import (
    describe_type,
    field_types,
    from_plain,
    is_config,
    options_of,
    to_plain,
    to_yaml,
    without_range,
)

MAX_HELP_LINES = 40


def parse_config(
    config_class: type,
    arguments: Sequence[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
    rest: str | None = None,
    common: Sequence[str] = (),
    examples: Sequence[str] = (),
) -> Any | None:
    """Build ``config_class`` from ``--config FILE`` and dotted flags; later ones override earlier ones.

    Args:
        config_class: the dataclass.
        arguments: words of the command line.
        prog: the command, for usage and messages.
        positional, rest, common, examples: see `clips.commandline.commands.Command`.

    Returns:
        The config; None if help or the config (``--print_config``) was printed instead.

    Raises:
        UserError: an unknown key (with the close match), a wrong type, a missing field or file.
    """
    if (help_of_items := list_item_help(config_class, arguments)) is not None:
        print(help_of_items)
        return None
    if {"-h", "--help"} & set(arguments):
        text = help_text(config_class, prog, positional, rest, examples)
        if "all" not in arguments and text.count("\n") >= MAX_HELP_LINES:
            text = brief_help_text(config_class, prog, positional, rest, common, examples)
        print(text)
        return None
    try:
        values, print_only = _read(config_class, arguments, positional, rest)
    except UserError as error:
        raise UserError(f"{prog}: {error}") from None
    config: Any = from_plain(config_class, values, what=prog)
    if print_only:
        print(to_yaml(to_plain(config)), end="")
    return None if print_only else config


def _read(
    config_class: type, arguments: Sequence[str], positional: Sequence[str], rest: str | None
) -> tuple[dict[str, Any], bool]:
    """The values of files and flags, as plain data, and whether to only print the config."""
    values: dict[str, Any] = {}
    names, remaining, print_only = list(positional), list(arguments), False
    while remaining:
        word = remaining.pop(0)
        flag, equals, text = word.partition("=")
        if not word.startswith("-") and names:
            name = names.pop(0)
            values[name] = _typed(word, typing.get_type_hints(config_class)[name])
            continue
        if not word.startswith("-") and rest:
            values[rest] = [*values.get(rest, ()), word]
            continue
        if not flag.startswith("--") or flag == "--":
            if word.endswith((".yaml", ".yml")):
                values = _merged(values, _read_config_file(word), config_class)
                continue
            raise UserError(f"unrecognized argument: {word}")
        path, kind = _field(config_class, flag.removeprefix("--"))
        if path == ["print_config"]:
            print_only = True
            continue
        has_value = bool(remaining) and not remaining[0].startswith("--")
        if not equals and not has_value and kind is not bool:
            raise UserError(f"{'.'.join(path)}: expected a value")
        if not equals:
            text = remaining.pop(0) if has_value else "true"
        if path == ["config"]:
            values = _merged(values, _read_config_file(text), config_class)
        else:
            *outer, last = path
            holder = values
            for part in outer:
                if not isinstance(holder.get(part), dict):
                    holder[part] = {}
                holder = holder[part]
            holder[last] = _typed(text, kind)
    return values, print_only


def _read_config_file(path: str) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config: {path}: expected YAML, a mapping of field names to values, got {content!r:.80}")
    return content


def _field(config_class: type, dotted: str) -> tuple[list[str], Any]:
    """Path and type of a flag's field; hyphens become underscores, except in keys of mappings."""
    path: list[str] = []
    kind: Any = config_class
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        config = next((option for option in options_of(kind) if is_config(option)), None)
        if config is not None:
            path.append(part.replace("-", "_"))
            kind = typing.get_type_hints(config).get(path[-1], Any)
            continue
        origin = typing.get_origin(kind)
        is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
        value = typing.get_args(kind)[1] if is_mapping else Any
        if not is_config(value) or depth == len(parts) - 1:
            return [*path, ".".join(parts[depth:])], value
        path, kind = [*path, part], value
    return path, kind


def _typed(text: str, kind: Any) -> Any:
    """A word of the command line as a value of a field: a string, a list separated by commas, else YAML."""
    options, hints = options_of(kind), typing.get_args(kind)
    if text == "null" and type(None) in hints:
        return None
    is_bracketed = text.lstrip().startswith("[")
    list_type = next((option for option in options if typing.get_origin(option) in {list, tuple}), None)
    literals = [each for option in options if typing.get_origin(option) is Literal for each in typing.get_args(option)]
    if text in literals or (str in options and not (list_type and is_bracketed)):
        return text
    item = typing.get_args(list_type)[0] if list_type else None
    splits = item in {str, int} or typing.get_origin(item) is Literal
    if splits and not is_bracketed and (len(options) == 1 or "," in text):
        return [_typed(part.strip(), item) for part in text.split(",") if part.strip()]
    try:
        return parse_yaml(text)
    except UserError:
        return text  # the check of the field's type reports it


def _merged(values: Mapping[str, Any], overrides: Mapping[Any, Any], kind: Any) -> dict[str, Any]:
    """``values`` with ``overrides``: nested configs are merged field by field, everything else is replaced."""
    hints = typing.get_type_hints(kind)
    merged = dict(values)
    for key, value in overrides.items():
        config = next((option for option in options_of(hints.get(key)) if is_config(option)), None)
        is_nested = config and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value, config) if is_nested else value
    return merged


# ---------------------------------------------------------------- help


def help_text(
    config_class: type, prog: str, positional: Sequence[str], rest: str | None, examples: Sequence[str] = ()
) -> str:
    """The output of ``--help all``: usage, the description, and each field with its meaning, type and default."""
    lines = [*_about(config_class, prog, positional, rest, examples), *field_lines(config_class, "--"), ""]
    for flag, text in (
        ("--config FILE", "a YAML file of these fields; later files and flags override it."),
        ("--print_config", "print the config, defaults included, and exit."),
        ("-h, --help", "print this help and exit."),
    ):
        lines += [f"  {flag}", f"      {text}"]
    return "\n".join(lines)


def brief_help_text(
    config_class: type,
    prog: str,
    positional: Sequence[str],
    rest: str | None,
    common: Sequence[str],
    examples: Sequence[str],
) -> str:
    """The output of ``--help`` of a command with many fields: examples, and a sentence for each common field."""
    texts, hints, lines = dict(field_help(config_class)), dict(field_types(config_class)), list[str]()
    names = _required_first(config_class, [*common] or [field.name for field in dataclasses.fields(config_class)])
    width = max(map(len, names)) + 6
    for name in names:
        sentence, kind = _first_sentence(texts[name]), without_range(hints.get(name))
        value = default_of(config_class, name)
        shown = "required" if value is dataclasses.MISSING else json.dumps(to_plain(value), ensure_ascii=False)
        if typing.get_origin(kind) is Literal:
            shown = f"one of {', '.join(map(str, typing.get_args(kind)))}; {shown}"
        if not is_config(kind) and shown not in {"null", "[]"}:
            sentence += f" ({shown})"
        first, indent = f"  --{name}".ljust(width), " " * width
        lines += textwrap.wrap(sentence, 100, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    more = f", {len(texts) - len(names)} more" if len(texts) > len(names) else ""
    last = f"`{prog} --help all` describes every field{more}; `--print_config` prints the config."
    return "\n".join([*_about(config_class, prog, positional, rest, examples), *lines, "", last])


def _required_first(config_class: type, names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: default_of(config_class, name) is not dataclasses.MISSING)


def _first_sentence(text: str) -> str:
    """Without its remarks in long parentheses; one ends at a semicolon, too."""
    text = re.sub(r" \([^()]{60,}\)", "", text)
    return re.split(r"[.;:] (?![^(]*\))", text)[0].removesuffix(".")


def default_of(config_class: type, name: str) -> Any:
    """The default of a dotted field; ``dataclasses.MISSING`` if it is required."""
    head, _, tail = name.partition(".")
    field = next(field for field in dataclasses.fields(config_class) if field.name == head)
    if tail:
        hint = typing.get_type_hints(config_class)[head]
        return default_of(next(option for option in options_of(hint) if is_config(option)), tail)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _about(
    config_class: type, prog: str, positional: Sequence[str], rest: str | None, examples: Sequence[str]
) -> list[str]:
    arguments = "".join(f" {name.upper()}" for name in positional) + (f" {rest.upper()} …" if rest else "")
    usage = f"usage: {prog}{arguments} [--config FILE] [--FIELD VALUE ...]"
    shown = ["examples:", *(f"  {example}" for example in examples), ""] if examples else []
    return [usage, "", docstring_summary(config_class), "", *shown]


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
    lists = {name for name, _ in list_item_classes(config_class)}
    inherited = {field.name for field in dataclasses.fields(without)} if without else set()
    nested = []
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for name in _required_first(config_class, [*fields]):
        field = fields[name]
        if name in inherited:
            continue
        inner = next((option for option in options_of(hints[field.name]) if is_config(option)), None)
        if inner is not None:
            nested.append((field, inner))
        if inner is None or inner is not hints[field.name]:
            value, default = default_of(config_class, field.name), "required"
            if value is not dataclasses.MISSING:
                default = f"default: {json.dumps(to_plain(value), ensure_ascii=False)}"
            text = f"{texts.get(field.name, '')} ({describe_type(hints[field.name])}; {default})"
            item_hint = f"  (an item: {prefix}{field.name}.help)" if field.name in lists and prefix else ""
            yield f"  {prefix}{field.name}{item_hint}"
            yield from textwrap.wrap(text, 90, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for field, inner in nested:
        yield from ("", f"{prefix}{field.name}: {texts.get(field.name, '')}")
        yield from field_lines(inner, f"{prefix}{field.name}.")


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
        entries = re.finditer(r"^    (\w+): (.*(?:\n {8,}.*)*)", arguments, re.MULTILINE)
        if is_config(kind):
            yield from ((prefix + match[1], " ".join(match[2].split())) for match in entries)
    for name, hint in typing.get_type_hints(config_class).items():
        for kind in options_of(hint):
            if is_config(kind):
                yield from field_help(kind, f"{prefix}{name}.")
