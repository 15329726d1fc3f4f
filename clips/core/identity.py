"""The identity of a run: the settings that its result depends on, the hashes of its inputs, and the version of its
command.

Runs of the same identity produce the same result. This module alone defines the identity and compares runs;
`clips.core.artifact.is_finished` decides whether a run is finished.

A field that affects the execution but not the result is marked in its declaration: ``logging_steps: int =
field(default=10, metadata=RUN_ONLY)``. An interrupted run may resume with other values of these.
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
from clips.jsontext import safe_json_loads
from clips.redaction import equal_up_to_redaction, redact
from clips.serialization import flatten, to_plain

RUN_ONLY: Mapping[str, Any] = MappingProxyType({"run_only": True})
"""The metadata of a field that the result does not depend on."""
VERSIONS = {"clips-bench run": 4}
"""Command → version of its results, 1 for those not listed.

Raise it in the commit that changes the command's result for the same config: study steps, results and cached answers
are then computed again, and outputs of the earlier version are rejected.
"""
RUN = "run.json"
"""Name of the file with the identity of an unfinished run."""
_INPUTS = "inputs."

Identity = dict[str, Any]
"""Dotted names of settings → values, ``inputs.NAME`` → hash, ``version`` → number; plain data without secrets."""


def identity(command: str, config: Any, inputs: Mapping[str, Any] | None = None) -> Identity:
    """The identity of a run.

    Args:
        command: such as ``"clips train"``; its version counts.
        config: the run's config, a dataclass whose run-only fields are marked.
        inputs: the run's inputs: name → hash of the content.
    """
    read = {f"{_INPUTS}{name}": content for name, content in (inputs or {}).items()}
    found = result_settings(to_plain(config), type(config)) | read
    return redact(found) | {"version": version_of(command)}


def version_of(command: str) -> int:
    """The version of a command's results (`VERSIONS`)."""
    return VERSIONS.get(command, 1)


def digest(value: Any) -> str:
    """SHA-256 of plain data, in hexadecimal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The names in which two identities differ.

    ``***`` in place of a secret matches any value: environments have different secrets. An input missing on one side is
    no difference: the initial files of a run may be gone.
    """
    there = redact(there)  # by today's rules and environment
    return [
        name
        for name in sorted(there.keys() | here.keys())
        if not equal_up_to_redaction(there.get(name), here.get(name))
        if not (name.startswith(_INPUTS) and (name in there) != (name in here))
    ]


def difference(there: Mapping[str, Any], here: Mapping[str, Any], *, may_change: Sequence[str] = ()) -> str | None:
    """How two identities differ, in one line: the first name with both values, and how many more; None if they do not.

    Args:
        there: as recorded.
        here: as it is now.
        may_change: names that may differ, with all below them.
    """
    found = [name for name in differing(there, here) if not is_below(name, may_change)]
    if not found:
        return None
    name, more = found[0], f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{name} is {there.get(name)!r} there and {here.get(name)!r} now{more}"


def reject_other_run(
    place: str | Path, there: Mapping[str, Any], here: Mapping[str, Any], *, may_change: Sequence[str] = ()
) -> None:
    """Raise unless the stored work belongs to this run.

    Args:
        place: the directory of that work.
        there: identity of its run.
        here: identity of the current run.
        may_change: see `difference`.

    Raises:
        UserError: they differ; the first differing name is in the message.
    """
    if found := difference(there, here, may_change=may_change):
        raise UserError(f"output: {place} holds another run: {found}; choose another output or remove it")


def read_run(path: Path) -> Identity | None:
    """The identity that `run_text` wrote to a file; None where there is no such file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        found = safe_json_loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove {path.parent}, and the run begins again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object; remove {path.parent}, and the run begins again")
    return found


def run_text(found: Identity) -> str:
    """An identity as `read_run` reads it."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def is_below(name: str, fields: Iterable[str]) -> bool:
    """Whether a dotted name is one of the fields, or below one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


@functools.cache
def run_only_fields(config_class: type) -> frozenset[str]:
    """Dotted names of the marked fields; fields in a list are named like ``data.sources[].cache_dir``."""
    hints, names = typing.get_type_hints(config_class), set()
    for field in dataclasses.fields(config_class):
        if field.metadata.get("run_only"):
            names.add(field.name)
            continue
        for part, is_item in _configs_in(hints[field.name], is_item=False):
            names |= {f"{field.name}{'[]' if is_item else ''}.{below}" for below in run_only_fields(part)}
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
        values: a config as plain data (`clips.serialization.to_plain`), current or recorded.
        config_class: class with the marked fields.
    """
    run_only = run_only_fields(config_class)
    return {
        name: _without(value, f"{name}[].", run_only) for name, value in flatten(values) if not is_below(name, run_only)
    }


def _without(value: Any, prefix: str, run_only: frozenset[str]) -> Any:
    if not isinstance(value, list | tuple):
        return value
    return [
        {key: one for key, one in item.items() if f"{prefix}{key}" not in run_only}
        if isinstance(item, Mapping)
        else item
        for item in value
    ]
