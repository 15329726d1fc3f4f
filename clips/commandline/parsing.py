"""A config dataclass from YAML files and dotted flags; errors are one line.

Flags may be written with hyphens, lists with commas, and a command's positional fields without a flag.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from clips.commandline.help_text import help_text, list_item_help
from clips.errors import UserError
from clips.serialization import to_plain, to_yaml
from clips.typed_data import from_plain, is_config, options_of
from clips.yaml_files import parse_yaml, read_yaml


def parse_config(
    config_class: type,
    arguments: Sequence[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
    rest: str | None = None,
) -> Any | None:
    """Build ``config_class`` from ``--config FILE`` and dotted flags, of which later ones override earlier ones.

    Args:
        config_class: the dataclass.
        arguments: words of the command line.
        prog: the command, for usage and messages.
        positional, rest: of its fields, see `clips.commandline.commands.Command`.

    Returns:
        The config; None where help or the config (``--print_config``) was printed instead.

    Raises:
        UserError: an unknown key (with the close match), a wrong type, a missing field or file.
    """
    if (printed := list_item_help(config_class, arguments)) is not None:
        print(printed)
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
    """The values of files and flags, as plain data, and whether to print the config only."""
    values: dict[str, Any] = {}
    names, left, print_only = list(positional), list(arguments), False
    while left:
        word = left.pop(0)
        flag, equals, text = word.partition("=")
        if not word.startswith("-") and (names or rest):
            name = names.pop(0) if names else None
            if name is None:
                values[str(rest)] = [*values.get(str(rest), ()), word]
            else:
                values[name] = _typed(word, typing.get_type_hints(config_class)[name])
            continue
        if not flag.startswith("--") or flag == "--":
            raise UserError(f"unrecognized argument: {word}")
        path, kind = _field(config_class, flag.removeprefix("--"))
        if path == ["print_config"]:
            print_only = True
            continue
        followed = bool(left) and not left[0].startswith("--")
        if not equals and not followed and kind is not bool:
            raise UserError(f"{'.'.join(path)}: expected a value")
        text = text if equals else left.pop(0) if followed else "true"
        if path == ["config"]:
            values = _merged(values, _mapping(text), config_class)
        else:
            _put(values, path, _typed(text, kind))
    return values, print_only


def _mapping(path: str) -> dict[str, Any]:
    """The content of a file that ``--config`` names."""
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config: {path}: expected YAML, a mapping of field names to values, got {content!r:.80}")
    return content


def _field(config_class: type, dotted: str) -> tuple[list[str], Any]:
    """Path and type of the field that a flag names; hyphens are underscores but in keys that users choose."""
    path: list[str] = []
    kind: Any = config_class
    parts = dotted.split(".")
    for number, part in enumerate(parts):
        config = next((option for option in options_of(kind) if is_config(option)), None)
        if config is not None:
            path.append(part.replace("-", "_"))
            kind = typing.get_type_hints(config).get(path[-1], Any)
        else:
            inner = typing.get_args(kind)
            return [*path, ".".join(parts[number:])], inner[1] if _is_mapping(kind) else Any
    return path, kind


def _is_mapping(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _typed(text: str, kind: Any) -> Any:
    """A word of the command line as a value of a field: YAML, but where the field takes strings or a list."""
    options, hints = options_of(kind), typing.get_args(kind)
    if text == "null" and type(None) in hints:
        return None
    listed = next((option for option in options if typing.get_origin(option) in {list, tuple}), None)
    literals = [each for option in options if typing.get_origin(option) is Literal for each in typing.get_args(option)]
    if text in literals or (str in options and not (listed and text.lstrip().startswith("["))):
        return text
    inner = typing.get_args(listed)[0] if listed else None
    if (
        (inner in {str, int} or typing.get_origin(inner) is Literal)
        and not text.lstrip().startswith("[")
        and (len(options) == 1 or "," in text)
    ):
        return [_typed(part.strip(), inner) for part in text.split(",") if part.strip()]
    try:
        return parse_yaml(text)
    except UserError:
        return text  # of the wrong type, as the field's check reports


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *outer, last = path
    for part in outer:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


def _merged(below: Mapping[str, Any], above: Mapping[Any, Any], kind: Any) -> dict[str, Any]:
    """``above`` over ``below``: nested configs field by field, everything else replaced."""
    hints = typing.get_type_hints(kind)
    merged = dict(below)
    for key, value in above.items():
        inner = next((option for option in options_of(hints.get(key)) if is_config(option)), None)
        both = inner and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value, inner) if both else value
    return merged
