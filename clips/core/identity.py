"""The identity of a run: the settings that its result depends on, the hashes of its inputs, its command's version.

Runs of the same identity produce the same result. This module defines and compares identities, and
`clips.core.artifact.check_finished` decides with them whether an output directory is finished. Other modules decide
what to reuse in the benchmarks: ``benchmarks.study.state`` which steps of a study are out of date (a hash of config,
command version, parents, and names and contents of external files), ``benchmarks.tasks.run_benchmarks``
which results are stored already (a hash of an identity), ``benchmarks.tasks.output_cache`` which model outputs are.

A field that affects the execution but not the result is marked in its declaration: ``logging_steps: int =
field(default=10, metadata=RUN_ONLY)``. An interrupted run may resume with other values of it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clips.errors import UserError
from clips.safe_text import redact
from clips.text_files import safe_json_loads
from clips.typed_data import flatten, to_plain

RUN_ONLY: Mapping[str, Any] = MappingProxyType({"run_only": True})
"""The metadata of a field that the result does not depend on."""
VERSIONS = {"clips-bench run": 6, "llava-bridge train": 3}
"""Command → version of its results, 1 for other commands.

Raise it in the commit that changes the command's result for the same config: study steps, results and cached answers
are then recomputed, and outputs of the earlier version are rejected.
"""
RUN = "run.json"
"""Name of the file with the identity of an unfinished run."""
_INPUTS = "inputs."

Identity = dict[str, Any]
"""Dotted names of settings → values, ``inputs.NAME`` → hash, ``version`` → number; plain, without passwords in URLs."""


def identity(command: str, config: Any, inputs: Mapping[str, Any] | None = None) -> Identity:
    """The identity of a run.

    Args:
        command: for example ``"clips train"``; its version is included.
        config: the run's config, a dataclass whose run-only fields are marked.
        inputs: the run's inputs: name → hash of the content.
    """
    settings = result_settings(to_plain(config), type(config))
    hashes = {f"{_INPUTS}{name}": content for name, content in (inputs or {}).items()}
    return redact(settings | hashes) | {"version": version_of(command)}


def version_of(command: str) -> int:
    """The version of a command's results (`VERSIONS`)."""
    return VERSIONS.get(command, 1)


def digest(value: Any) -> str:
    """SHA-256 of plain data, in hexadecimal; independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def differing(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The names in which two identities differ.

    An input missing on one side is not a difference: the initial files of a run may have been removed.
    """
    recorded, current = redact(recorded), redact(current)  # which makes lists of tuples, too
    return [
        name
        for name in sorted(recorded.keys() | current.keys())
        if recorded.get(name) != current.get(name)
        if not (name.startswith(_INPUTS) and (name in recorded) != (name in current))
    ]


def difference(
    recorded: Mapping[str, Any], current: Mapping[str, Any], *, may_change: Sequence[str] = ()
) -> str | None:
    """The difference of two identities in one line: the first name with both values, and the number of others.

    None if they are equal. ``may_change`` lists names that may differ, with all names below them.
    """
    names = [name for name in differing(recorded, current) if not is_below(name, may_change)]
    if not names:
        return None
    name, more = names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{name} is {recorded.get(name)!r} there and {current.get(name)!r} now{more}"


def reject_other_run(
    directory: str | Path, recorded: Mapping[str, Any], current: Mapping[str, Any], *, may_change: Sequence[str] = ()
) -> None:
    """Raise UserError unless the work in ``directory`` belongs to the current run; see `difference`."""
    if found := difference(recorded, current, may_change=may_change):
        raise UserError(f"output: {directory} holds another run: {found}; choose another output or remove it")


def read_run(path: Path) -> Identity | None:
    """The identity in a file with the content `run_text`; None if it does not exist, UserError if it is invalid."""
    try:
        recorded = safe_json_loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove {path.parent} to start from scratch") from None
    if not isinstance(recorded, dict):
        raise UserError(f"{path}: expected an object; remove {path.parent} to start from scratch")
    return recorded


def run_text(run: Identity) -> str:
    """An identity as `read_run` reads it."""
    return json.dumps(run, indent=1, ensure_ascii=False) + "\n"


def is_below(name: str, fields: Iterable[str]) -> bool:
    """Whether a dotted name is one of the fields, or below one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


@functools.cache
def run_only_fields(config_class: type) -> frozenset[str]:
    """Dotted names of the marked fields; those of list items are like ``data.sources[].cache_dir``."""
    hints, names = typing.get_type_hints(config_class), set()
    for field in dataclasses.fields(config_class):
        if field.metadata.get("run_only"):
            names.add(field.name)
            continue
        for nested, is_item in _configs_in(hints[field.name], is_item=False):
            names |= {f"{field.name}{'[]' if is_item else ''}.{name}" for name in run_only_fields(nested)}
    return frozenset(names)


def _configs_in(hint: Any, *, is_item: bool) -> Iterator[tuple[type, bool]]:
    """The config classes of a type, and whether they are items of a list."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint, is_item
    in_list = is_item or typing.get_origin(hint) in {list, tuple}
    for part in typing.get_args(hint):
        yield from _configs_in(part, is_item=in_list)


def result_settings(values: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """Dotted names and values of the settings that the result depends on.

    Args:
        values: a config as plain data (`clips.typed_data.to_plain`), current or recorded.
        config_class: class with the marked fields.
    """
    run_only = run_only_fields(config_class)
    settings = {name: value for name, value in flatten(values) if not is_below(name, run_only)}
    return {name: _drop_from_items(value, f"{name}[].", run_only) for name, value in settings.items()}


def _drop_from_items(value: Any, prefix: str, run_only: frozenset[str]) -> Any:
    """A list without the run-only fields of its items; any other value unchanged."""
    if isinstance(value, list | tuple):
        return [_drop_from_items(item, prefix, run_only) for item in value]
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if f"{prefix}{key}" not in run_only}
    return value
