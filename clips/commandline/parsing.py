"""Parsing of YAML files and dotted flags into a config dataclass, with one-line errors.

Flags may have hyphens, lists may be separated by commas, and positional fields need no flag, nor does a YAML file.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clips.commandline.help_text import help_text, list_item_help
from clips.errors import UserError
from clips.text_files import parse_yaml, read_yaml
from clips.typed_data import from_plain, is_config, options_of, to_plain, to_yaml


def parse_config(
    config_class: type,
    arguments: Sequence[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
    rest: str | None = None,
) -> Any | None:
    """Build ``config_class`` from ``--config FILE`` and dotted flags; later ones override earlier ones.

    Args:
        config_class: the dataclass.
        arguments: words of the command line.
        prog: the command, for usage and messages.
        positional, rest: see `clips.commandline.commands.Command`.

    Returns:
        The config; None if help or the config (``--print_config``) was printed instead.

    Raises:
        UserError: an unknown key (with the close match), a wrong type, a missing field or file.
    """
    if (help_of_items := list_item_help(config_class, arguments)) is not None:
        print(help_of_items)
        return None
    if {"-h", "--help"} & set(arguments):
        print(help_text(config_class, prog, positional, rest))
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
        if config is None:
            origin = typing.get_origin(kind)
            is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
            value = typing.get_args(kind)[1] if is_mapping else Any
            if not is_config(value) or depth == len(parts) - 1:
                return [*path, ".".join(parts[depth:])], value
            path, kind = [*path, part], value
            continue
        path.append(part.replace("-", "_"))
        kind = typing.get_type_hints(config).get(path[-1], Any)
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
