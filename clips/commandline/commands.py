"""Subcommands, each a function of one config dataclass whose fields are its options.

A command's module is imported when it is called, so that ``clips --help`` does not import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import importlib.metadata
import inspect
import json
import os
import re
import signal
import sys
import time
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clips.commandline.parsing import parse_config
from clips.commandline.progress import log_if_slow
from clips.commandline.signals import EXIT_INTERRUPTED
from clips.core.parent_death import end_with_parent
from clips.errors import UserError
from clips.lazy_import import import_from_string
from clips.safe_text import redact, strip_control_chars

EXIT_USER_ERROR = 2
_LAUNCHER_FLAG = re.compile(r"--local[_-]rank=\d+")  # added by the deepspeed launcher, which also sets LOCAL_RANK
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # the last two are old names
_HELP = {"-h", "--help", "help"}
# Of a path that a user gives, or of the machine, but never of a mistake in the code.
_SYSTEM_ERRORS = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS}
_SYSTEM_ERRORS |= {errno.EIO, errno.EMFILE, errno.ENFILE, errno.EFBIG}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One subcommand.

    Args:
        help: one line for the list of commands.
        target: ``module:function``; the function's parameter is annotated with a config dataclass.
        config: ``module:Class`` of that dataclass if its module, other than the function's, does not import torch, so
            that errors in a config are reported fast.
        check: ``module:function`` that is called with the config before the function's module is imported, to report
            missing files fast.
        positional: fields of the config that may be given without a flag, in this order.
        rest: a list field that takes all further arguments without a flag.
        common: the fields that ``--help`` shows if it would be longer than a screen; ``--help all`` shows the others.
        examples: command lines that it shows before them.
        is_interactive: whether it waits for its user, or redraws a screen, so that no line says that it is loading.
    """

    help: str
    target: str
    config: str | None = None
    check: str | None = None
    positional: tuple[str, ...] = ()
    rest: str | None = None
    common: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    is_interactive: bool = False

    def function(self) -> Any:
        """The function that ``target`` names; imports its module."""
        return import_from_string(self.target)

    def config_class(self) -> type:
        """The dataclass that the function takes."""
        return config_class_of(self.function()) if self.config is None else import_from_string(self.config)


def dispatch(program: str, about: str, commands: Mapping[str, Command], argv: Sequence[str] | None = None) -> int:
    """Dispatch ``argv`` to one of ``commands`` and return the exit status (2 for user errors)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the shell (`2>&-`): the next opened file would get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8", closefd=False))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun's workers would outlive its kill -9, wait for each other and hold the run's lock
    arguments = [word for word in (sys.argv[1:] if argv is None else argv) if not _LAUNCHER_FLAG.fullmatch(word)]
    # torch's allocator grows its segments then: activations differ in size from batch to batch, so that fixed ones
    # leave gaps.
    if not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"
    try:
        return _dispatch(program, about, commands, arguments)
    except UserError as error:
        return report_error(program, str(error))
    except BrokenPipeError:  # the reader of the output has ended (`clips … | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # the same, of rich's console
            return 0
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS and error.filename is not None:
            return report_error(program, f"{error.filename!s:.250}: {os.strerror(error.errno).lower()}")
        if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of Path.resolve
            return report_error(program, str(error))
        # safetensors raises no OSError
        if any(message in str(error) for message in ("No space left on device", "Disk quota exceeded")):
            where = getattr(error, "filename", None) or "output"
            return report_error(program, f"{where}: the disk is full; free some space and run the same command again")
        # torch, and imports of compiled modules, raise no OSError
        if os.strerror(errno.EMFILE) in str(error):
            return report_error(program, "too many open files; allow more (ulimit -n 4096) and run the command again")
        raise
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _dispatch(program: str, about: str, commands: Mapping[str, Command], arguments: list[str]) -> int:
    for word in arguments:
        if not word.isascii() and word != (shown := word.encode("utf-8", "replace").decode()):
            raise UserError(f"'{shown:.250}': expected UTF-8 text")
    if not arguments or arguments[0] in _HELP:
        _print_overview(program, about, commands)
        return 0 if arguments else EXIT_USER_ERROR
    if arguments[0] == "--version":
        print(f"{program} {importlib.metadata.version('clips-suite')}")
        return 0
    one, two = arguments[0], " ".join(arguments[:2])
    family = {name: command for name, command in commands.items() if name.split()[0] == one != name}
    if family and one not in commands and arguments[1:] and arguments[1] in _HELP:
        _print_overview(program, about, family)
        return 0
    name = two if two in commands else one
    if name not in commands:
        near = difflib.get_close_matches(two, [name for name in commands if " " in name], n=1, cutoff=0.8)
        if near and arguments[1:]:
            raise UserError(f"unknown command '{two}'; did you mean '{near[0]}'?")
        if family:
            raise UserError(f"'{one}' needs one of: {', '.join(name.split()[1] for name in family)}")
        near = difflib.get_close_matches(one, commands, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"unknown command '{one}'{hint} (known: {', '.join(commands)})")
    command = commands[name]
    words, prog = arguments[len(name.split()) :], f"{program} {name}"
    config = parse_config(
        command.config_class(),
        words,
        prog=prog,
        positional=command.positional,
        rest=command.rest,
        common=command.common,
        examples=command.examples,
    )
    if config is not None:
        if command.check is not None:
            import_from_string(command.check)(config)
        is_quiet = command.is_interactive or os.environ.get("RANK", "0") != "0"
        with contextlib.nullcontext() if is_quiet else log_if_slow(f"{prog}: loading ..."):
            command.function()(config)  # which loads more libraries, and models
    return 0


def _print_overview(program: str, about: str, commands: Mapping[str, Command]) -> None:
    width = max(len(name) for name in commands)
    print(f"usage: {program} COMMAND [--config FILE] [--FIELD VALUE ...]", "", about.strip(), "", "commands:", sep="\n")
    print(*(f"  {name:<{width}}  {command.help}" for name, command in commands.items()), sep="\n")
    print(f"\n`{program} COMMAND --help` lists a command's common fields, `--help all` every field.")


def config_class_of(function: Any) -> type:
    """The annotation of the only parameter of ``function``."""
    (parameter,) = inspect.signature(function).parameters
    return typing.get_type_hints(function)[parameter]


def report_error(program: str, message: str) -> int:
    """Write an error's line to stderr, and for torchrun if it launched this process; return the exit status."""
    message = message if message.startswith(program) else f"{program}: {message}"
    line = strip_control_chars(redact(" ".join(message.splitlines())))
    sys.stderr.write(line + "\n")  # in one call: under a launcher other processes write there too
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun prints this message after its own traceback
        with contextlib.suppress(OSError):
            entry = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": entry}), encoding="utf-8")
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            with contextlib.suppress(FileExistsError):  # another process has sent it; a second signal is not handled
                (Path(file).parents[1] / "user_error").touch(exist_ok=False)  # the directory of all processes
                os.kill(os.getppid(), signal.SIGTERM)  # torchrun, which would start them again for the same error
    return EXIT_USER_ERROR
