"""Subcommands whose options are the fields of a frozen dataclass.

Each command is a function of one config: ``def train(config: TrainConfig) -> None``. Its YAML file
(``--config FILE``) is the record of a run, dotted flags (``--optim.lr 1e-3``) override it,
``--print_config`` shows what would run. The module of a command is imported when that command is
called, so ``clips --help`` is quick although training needs torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib
import inspect
import os
import re
import sys
import textwrap
import typing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand.

    Args:
        help: one line for the list of commands.
        target: ``module:function``; the function takes one config dataclass, which its annotation names.
        positional: fields of the config that may be given without a flag, in this order.
    """

    help: str
    target: str
    positional: tuple[str, ...] = ()

    def function(self) -> Any:
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


def run_commands(
    program: str, about: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None
) -> int:
    """Dispatch ``argv`` to one of ``commands`` and return the exit status (2 for the user's mistakes)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(program, about, commands, arguments)
    except UserError as error:
        return _complain(program, str(error))
    except BrokenPipeError:  # the reader of our output has gone (`clips … | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            where = error.filename or "the output directory"
            return _complain(program, f"{where}: the disk is full; free some space and run the same command again")
        raise
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _dispatch(program: str, about: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview(program, about, commands))
        return 0 if arguments else EXIT_USER_ERROR
    name = _command_name(commands, arguments)
    command = commands[name]
    rest = arguments[len(name.split()) :]
    function = command.function()
    config = parse_config(config_type(function), rest, prog=f"{program} {name}", positional=command.positional)
    if config is not None:
        function(config)
    return 0


def _command_name(commands: Mapping[str, Command], arguments: Sequence[str]) -> str:
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in commands:
            return name
    family = [name for name in commands if name.split()[0] == arguments[0]]
    if family:
        raise UserError(f"'{arguments[0]}' needs one of: {', '.join(name.split()[1] for name in family)}")
    near = difflib.get_close_matches(arguments[0], commands, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(f"unknown command '{arguments[0]}'{hint} (known: {', '.join(commands)})")


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
    config_class: type, arguments: Sequence[str], *, prog: str, positional: Sequence[str] = ()
) -> Any | None:
    """Build ``config_class`` from ``--config FILE`` and dotted flags; None where help was printed instead.

    Raises:
        UserError: an unknown key (with the near miss), a wrong type, a missing field or file.
    """
    import jsonargparse

    parser = _parser(config_class, prog, positional)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            built = parser.instantiate(parser.parse_args(_name_positionals(arguments, positional)))
            return config_class(**{field.name: built[field.name] for field in dataclasses.fields(config_class)})
    except jsonargparse.ArgumentError as error:
        raise UserError(f"{prog}: {_one_line(str(error), config_class)}") from None
    except SystemExit as stop:  # --help and --print_config
        if stop.code in {0, None}:
            return None
        raise


def _parser(config_class: type, prog: str, positional: Sequence[str]) -> Any:
    import jsonargparse

    words = "".join(f" {name.upper()}" for name in positional)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"{prog}{words} [--config FILE] [--FIELD VALUE ...]",
        description=textwrap.dedent(config_class.__doc__ or "").strip().split("\n\n")[0],
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="a YAML file of these fields; flags after it override it")
    parser.add_class_arguments(config_class, None)
    return parser


def _name_positionals(arguments: Sequence[str], positional: Sequence[str]) -> list[str]:
    """``[DIR, --x, 1]`` becomes ``[--dir, DIR, --x, 1]`` for ``positional == ("dir",)``."""
    named: list[str] = []
    rest = list(arguments)
    for name in positional:
        if not rest or rest[0].startswith("-"):
            break
        named += [f"--{name}", rest.pop(0)]
    return named + rest


_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: --(?P<flag>[\w.]+)"
    r"|Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'"
    r"|(?:Key|Option) '(?P<key>[\w.]+)' is not (?:expected|accepted)"
)


def _one_line(message: str, config_class: type) -> str:
    """jsonargparse's message on one line; an unknown key is answered with the nearest field."""
    unknown = _UNKNOWN_KEY.search(message)
    if unknown:
        key = unknown["flag"] or unknown["key"] or f"{unknown['group']}.{unknown['option']}"
        near = difflib.get_close_matches(key, list(field_names(config_class)), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"unknown key '{key}'{hint}"
    return re.sub(r"\s*\n\s*", " ", message.strip()).replace("typing.Literal", "one of ")


def field_names(config_class: type, prefix: str = "") -> typing.Iterator[str]:
    """The dotted names of a config's fields, those of nested configs included."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        yield prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from field_names(hints[field.name], f"{prefix}{field.name}.")


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


def _complain(program: str, message: str) -> int:
    line = message if message.startswith(program) else f"{program}: {message}"
    print(line, file=sys.stderr)
    return EXIT_USER_ERROR
