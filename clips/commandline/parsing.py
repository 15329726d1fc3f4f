"""A config dataclass from its YAML file and dotted flags, or from plain data; what is wrong is told in one line.

Flags may be written with hyphens, lists with commas, and fields that a command names positional without a flag.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.commandline.complaints import describe_type, field_types, one_line
from clips.commandline.configfile import check_config_files
from clips.commandline.helptext import add_help, item_help, summary
from clips.commandline.lean_imports import evaluate_annotations
from clips.errors import UserError

_FLAG = re.compile(r"--\w[\w.-]*")
_TEXTS = (tuple[str, ...], list[str])
_LISTS = (*_TEXTS, tuple[int, ...], tuple[int, ...] | None)  # fields that may be written ``a,b``
_ALONE = ("--help", "--print_config")  # flags without a value


def parse_config(
    config_class: type,
    arguments: Sequence[str],
    *,
    prog: str,
    positional: Sequence[str] = (),
    rest: str | None = None,
) -> Any | None:
    """Build ``config_class`` from ``--config FILE`` and dotted flags; None where help was printed instead.

    Raises:
        UserError: an unknown key (with the near miss), a wrong type, a missing field or file.
    """
    import jsonargparse

    arguments = [_underscored(word, config_class) for word in arguments]
    if (told := item_help(config_class, arguments)) is not None:
        print(told)
        return None
    check_config_files(arguments, prog)
    parser = parser_of(config_class, prog, positional, rest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            named = _name_positionals(_switched(arguments, config_class), positional, rest)
            parsed = parser.parse_args(_listed(named, config_class))
            _check_groups(parsed, config_class)
            built = parser.instantiate(parsed)
            return config_class(**{field.name: built[field.name] for field in dataclasses.fields(config_class)})
    except jsonargparse.ArgumentError as error:
        _check_items(config_class, arguments, prog, str(error))
        raise UserError(
            f"{prog}: {one_line(str(error), config_class, lambda field: _given(arguments, field))}"
        ) from None
    except SystemExit as stop:  # --help and --print_config
        if stop.code in {0, None}:
            return None
        raise


def from_plain(config_class: type, values: Mapping[str, Any], *, what: str) -> Any:
    """Build ``config_class`` from plain data, checked as a file's would be.

    Args:
        config_class: the dataclass.
        values: field → value, nested.
        what: what the values are, for messages.

    Raises:
        UserError: an unknown key (with the near miss), a wrong type, a missing field.
    """
    import jsonargparse

    try:
        parser = parser_of(config_class, what, ())
        parsed = parser.parse_object(dict(values))
        _check_groups(parsed, config_class)
        built = parser.instantiate(parsed)
        return config_class(**{field.name: built[field.name] for field in dataclasses.fields(config_class)})
    except jsonargparse.ArgumentError as error:
        raise UserError(f"{what}: {one_line(str(error), config_class, values.get)}") from None
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def parser_of(config_class: type, prog: str, positional: Sequence[str], rest: str | None = None) -> Any:
    """A parser of the fields of ``config_class``.

    Args:
        config_class: the dataclass.
        prog: the command, for usage and messages.
        positional, rest: of its fields, see `clips.commandline.commands.Command`.
    """
    import jsonargparse

    evaluate_annotations(config_class)
    words = "".join(f" {name.upper()}" for name in positional) + (f" {rest.upper()} …" if rest else "")
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog}{words} [--config FILE] [--FIELD VALUE ...]",
        description=summary(config_class),
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of these fields; flags after it override it")
    parser.add_class_arguments(config_class, None)
    add_help(parser, config_class)
    return parser


def _underscored(word: str, config_class: type) -> str:
    """``--batch-size=8`` is ``--batch_size=8``; what is no field, such as a key that users choose, stays as it is."""
    flag = _FLAG.match(word)
    if flag is None:
        return word
    parts, kind = flag[0].removeprefix("--").split("."), config_class
    for number, part in enumerate(parts):
        fields = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if not fields:
            break
        parts[number] = part.replace("-", "_")
        kind = fields.get(parts[number], object)
    return f"--{'.'.join(parts)}{word[flag.end() :]}"


def _switched(arguments: Sequence[str], config_class: type) -> list[str]:
    """``--yes`` at the end, or before another flag, is ``--yes true``."""
    switches = {f"--{name}" for name, kind in field_types(config_class) if kind is bool}
    written = list[str]()
    for word, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        written += [word, "true"] if word in switches and following.startswith("--") else [word]
    return written


def _check_groups(parsed: Any, config_class: type) -> None:
    """Refuse what jsonargparse lets pass in nested configs: null where none is allowed, or no mapping at all."""
    for name, kind in field_types(config_class):
        value = parsed.get(name, ...)
        if "[]" in name or value is ... or kind is Any:
            continue
        allowed = typing.get_args(kind) or (kind,)
        wrong_null = value is None and type(None) not in allowed
        no_group = isinstance(value, list | int | float | str) and dataclasses.is_dataclass(kind)
        if wrong_null or no_group:
            got = "null" if value is None else f"{value!r:.80}"
            raise UserError(f"{name}: expected {describe_type(kind)}, got {got}")


def _check_items(config_class: type, arguments: Sequence[str], prog: str, complaint: str) -> None:
    """Raise UserError naming the first item, of a list of configs that is complained of, which cannot be built.

    jsonargparse refuses such a list as a whole.
    """
    for name, kind in typing.get_type_hints(config_class).items():
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) in {list, tuple} else None
        if not dataclasses.is_dataclass(inner) or f'Parser key "{name}"' not in complaint:
            continue
        items = _given(arguments, name)
        for number, item in enumerate(items if isinstance(items, list) else (), 1):
            if isinstance(item, dict):
                from_plain(typing.cast(type, inner), item, what=f"{prog}: {name}[{number}]")
            else:
                raise UserError(
                    f"{prog}: {name}[{number}]: expected a mapping of field names to values, got {item!r:.80}"
                )


def _given(arguments: Sequence[str], field: str) -> Any:
    """What flags and ``--config`` files say of a field, the last of them; None where they say nothing."""
    import yaml

    found = None
    for number, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        value = value or next(iter(arguments[number + 1 :]), "")
        with contextlib.suppress(yaml.YAMLError, OSError, ValueError, RecursionError):
            if flag == f"--{field}":
                found = yaml.safe_load(value)
            elif flag == "--config":
                file = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
                found = file.get(field, found) if isinstance(file, dict) else found
    return found


def _name_positionals(arguments: Sequence[str], positional: Sequence[str], rest: str | None = None) -> list[str]:
    """``[DIR, --x, 1]`` becomes ``[--dir, DIR, --x, 1]`` for ``positional == ("dir",)``; flags may stand before too.

    Words for which there are no more names become one list, that of ``rest``.
    """
    named, further = list[str](), list[str]()
    names, left = list(positional), list(arguments)
    while left:
        word = left.pop(0)
        if word.startswith("-"):
            takes_value = word.startswith("--") and "=" not in word and not word.startswith(_ALONE)
            named += [word, *([left.pop(0)] if takes_value and left else [])]
        elif names:
            named += [f"--{names.pop(0)}", word]
        else:
            further.append(word)
    if rest and further:
        return [*named, f"--{rest}", json.dumps(further)]
    return named + further


def _listed(arguments: Sequence[str], config_class: type) -> list[str]:
    """``[--only, a,b]`` becomes ``[--only, ["a", "b"]]``: lists of texts and whole numbers may have commas alone."""
    lists = {f"--{name}": kind for name, kind in field_types(config_class) if kind in _LISTS}
    written = list[str]()
    for place, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if equals and flag in lists:
            written.append(f"{flag}={_as_list(value, lists[flag])}")
        else:
            kind = lists.get(arguments[place - 1]) if place else None
            written.append(_as_list(word, kind) if kind else word)
    return written


def _as_list(text: str, kind: Any) -> str:
    names = [each.strip() for each in text.split(",")]
    if text.lstrip().startswith("[") or (kind not in _TEXTS and not all(map(str.isdecimal, names))):
        return text
    return json.dumps([name if kind in _TEXTS else int(name) for name in names if name])
