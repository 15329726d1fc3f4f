"""Subcommands whose options are the fields of a frozen dataclass.

Each command is a function of one config: ``def train(config: TrainConfig) -> None``. Its YAML file
(``--config FILE``) is the record of a run, dotted flags (``--optim.lr 1e-3``) override it,
``--print_config`` shows what would run. The module of a command is imported when that command is
called, so ``clips --help`` is quick although training needs torch; what is wrong with a config is
told before that, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import inspect
import json
import operator
import os
import re
import sys
import time
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.commandline.complaints import describe_type, field_types, one_line
from clips.commandline.configfile import check_config_files
from clips.commandline.helptext import add_help, item_help, summary
from clips.commandline.lean_imports import evaluate_annotations
from clips.errors import UserError
from clips.secrets import alike, without_secrets
from clips.visible import visible

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_LAUNCHER_FLAG = re.compile(r"--local[_-]rank=\d+")  # the deepspeed launcher adds it; the environment says the same
_LAUNCHER_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for what a process has to say of its end
_HELP = {"-h", "--help", "help"}
_FLAG = re.compile(r"--\w[\w.-]*")
_TEXTS = (tuple[str, ...], list[str])
_LISTS = (*_TEXTS, tuple[int, ...], tuple[int, ...] | None)  # fields that may be written ``a,b``
_ALONE = ("--help", "--print_config")  # flags without a value
_DISK_FULL = ("No space left on device", "Disk quota exceeded")  # safetensors raises no OSError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand.

    Args:
        help: one line for the list of commands.
        target: ``module:function``; the function takes one config dataclass, which its annotation names.
        config: ``module:Class`` of that dataclass where a module without torch holds it and the function's does not:
            what is wrong with a config is then told at once.
        positional: fields of the config that may be given without a flag, in this order.
        rest: a list field that takes all further words without a flag.
    """

    help: str
    target: str
    config: str | None = None
    positional: tuple[str, ...] = ()
    rest: str | None = None

    def function(self) -> Any:
        """The function that ``target`` names; imports its module."""
        return _named(self.target)

    def config_class(self) -> type:
        """The dataclass that the function takes."""
        return config_type(self.function()) if self.config is None else _named(self.config)


def _named(reference: str) -> Any:
    """What ``module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def run_commands(program: str, about: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Dispatch ``argv`` to one of ``commands`` and return the exit status (2 for the user's mistakes)."""
    given = [word for word in (sys.argv[1:] if argv is None else argv) if not _LAUNCHER_FLAG.fullmatch(word)]
    try:
        return _dispatch(program, about, commands, given)
    except UserError as error:
        return _complain(program, str(error))
    except BrokenPipeError:  # the reader of our output has gone (`clips … | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PermissionError as error:
        return _complain(program, f"{error.filename}: permission denied")
    except Exception as error:
        if any(sign in str(error) for sign in _DISK_FULL):
            where = getattr(error, "filename", None) or "output"
            return _complain(program, f"{where}: the disk is full; free some space and run the same command again")
        raise
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


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


def _dispatch(program: str, about: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    if not arguments or arguments[0] in _HELP:
        print(_overview(program, about, commands))
        return 0 if arguments else EXIT_USER_ERROR
    if arguments[0] == "--version":
        print(f"{program} {importlib.metadata.version('clips-suite')}")
        return 0
    family = _family(commands, arguments[0])
    if family and arguments[1:] and arguments[1] in _HELP:
        print(_overview(program, about, family))
        return 0
    name = _command_name(commands, arguments)
    command = commands[name]
    rest = arguments[len(name.split()) :]
    config = parse_config(
        command.config_class(), rest, prog=f"{program} {name}", positional=command.positional, rest=command.rest
    )
    if config is not None:
        command.function()(config)
    return 0


def _command_name(commands: Mapping[str, Command], arguments: Sequence[str]) -> str:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in commands:
            return name
    near = difflib.get_close_matches(
        " ".join(arguments[:2]), [name for name in commands if " " in name], n=1, cutoff=0.8
    )
    if near and arguments[1:]:
        raise UserError(f"unknown command '{' '.join(arguments[:2])}'; did you mean '{near[0]}'?")
    if family := _family(commands, arguments[0]):
        raise UserError(f"'{arguments[0]}' needs one of: {', '.join(name.split()[1] for name in family)}")
    near = difflib.get_close_matches(arguments[0], commands, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(f"unknown command '{arguments[0]}'{hint} (known: {', '.join(commands)})")


def _family(commands: Mapping[str, Command], word: str) -> dict[str, Command]:
    """The commands of two words of which ``word`` is the first."""
    return {name: command for name, command in commands.items() if name.split()[0] == word != name}


def _overview(program: str, about: str, commands: Mapping[str, Command]) -> str:
    width = max(len(name) for name in commands)
    lines = [f"usage: {program} COMMAND [--config FILE] [--FIELD VALUE ...]", "", about.strip(), "", "commands:"]
    lines += [f"  {name:<{width}}  {command.help}" for name, command in commands.items()]
    lines += ["", f"`{program} COMMAND --help` lists a command's fields, `--print_config` shows what would run."]
    return "\n".join(lines)


def config_type(function: Any) -> type:
    """The dataclass that the only parameter of ``function`` is annotated with."""
    (parameter,) = inspect.signature(function).parameters
    return typing.get_type_hints(function)[parameter]


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
    parser = _parser(config_class, prog, positional, rest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            named = _name_positionals(arguments, positional, rest)
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
        parser = _parser(config_class, what, ())
        parsed = parser.parse_object(dict(values))
        _check_groups(parsed, config_class)
        built = parser.instantiate(parsed)
        return config_class(**{field.name: built[field.name] for field in dataclasses.fields(config_class)})
    except jsonargparse.ArgumentError as error:
        raise UserError(f"{what}: {one_line(str(error), config_class, values.get)}") from None
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


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


def _parser(config_class: type, prog: str, positional: Sequence[str], rest: str | None = None) -> Any:
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


def to_yaml(config: Any) -> str:
    """A config dataclass as the YAML text that ``--config`` reads back."""
    import yaml

    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=100)


def plain(value: Any) -> Any:
    """``value`` with dataclasses as dicts, tuples as lists and paths as text: what JSON and YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested plain data."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def difference(there: Mapping[str, Any], here: Mapping[str, Any], *, masked: bool = True) -> str | None:
    """How two mappings differ, in words: the first name with both values, and how many more; None if they do not.

    Args:
        there: as recorded.
        here: as it is now.
        masked: whether secrets were taken out of either: ``***`` then stands for any.
    """
    same = alike if masked else operator.eq
    differing = sorted(name for name in there.keys() | here.keys() if not same(there.get(name), here.get(name)))
    if not differing:
        return None
    name, more = differing[0], f" and {len(differing) - 1} more" if len(differing) > 1 else ""
    return f"{name} is {there.get(name)!r} there and {here.get(name)!r} now{more}"


def _complain(program: str, message: str) -> int:
    line = visible(
        without_secrets(" ".join((message if message.startswith(program) else f"{program}: {message}").splitlines()))
    )
    sys.stderr.write(line + "\n")  # at one go: under a launcher others write there too
    if file := os.environ.get(_LAUNCHER_FILE):  # torchrun's last lines, behind its own traceback, are then ours
        with contextlib.suppress(OSError):
            told = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": told}), encoding="utf-8")
    return EXIT_USER_ERROR
