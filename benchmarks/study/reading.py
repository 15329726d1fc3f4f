"""How a study file is read: every field of the kind that it must be, no unknown keys, nothing twice."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

from benchmarks.config import BenchmarkConfig
from benchmarks.study.executors.catalogue import executor_config
from benchmarks.study.grid import FigureSpec, Settings, expanded
from benchmarks.study.kinds import expect, kind_of, known_keys, list_of
from benchmarks.study.schema import Defaults, Override, Study
from clips.errors import UserError
from clips.yaml_files import read_yaml


def read_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises:
        UserError: naming file and field, with the near miss of an unknown key.
    """
    content = read_yaml(path)
    try:
        return study_from(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def study_from(content: Any) -> Study:
    """Build a study from the content of its file.

    Raises:
        UserError: naming the field.
    """
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping with name, encoders, benchmarks, …, got {kind_of(content)}")
    known_keys(content, _fields(Study), "")
    fields = dict(content)
    for name in ("name", "benchmarks"):
        if fields.get(name) is None:
            raise UserError(f"{name}: missing")
    for name in ("name", "title", "question", "output", "gpu"):
        expect(fields, name, str, "a text")
    baseline = fields.get("baseline")
    if isinstance(baseline, dict):
        if not all(isinstance(text, str) for text in [*baseline, *baseline.values()]):
            raise UserError("baseline: expected a name, or a mapping from names to names")
    else:
        expect(fields, "baseline", str, "a name, or a mapping from names to names")
    for name in ("jobs", "threads"):
        expect(fields, name, int, "a whole number")
    if type(fields.get("confirm_hours")) is int:
        fields["confirm_hours"] = float(fields["confirm_hours"])
    expect(fields, "confirm_hours", float, "a number")
    if fields.get("executor") is not None:
        fields["executor"] = executor_config(fields["executor"])
    for name in ("data", "encoders", "llms", "recipes", "llavas", "benchmarks", "resources"):
        fields[name] = _entries(fields.get(name), name, texts=name in {"encoders", "llms", "llavas"})
    fields["encoders"], fields["varied"] = expanded(fields["encoders"], "encoders")
    for name in ("llms", "recipes"):
        fields[name], _ = expanded(fields[name], name)
    fields["paths"] = _paths(fields.get("paths") or {})
    fields["notes"] = tuple(list_of(fields.get("notes"), "notes", str, "a text"))
    fields["published"] = tuple(list_of(fields.get("published"), "published", str, "SET or SET:ROW"))
    fields["only"] = tuple(list_of(fields.get("only"), "only", str, "a text"))
    fields["seeds"] = tuple(list_of(fields.get("seeds", [0]), "seeds", int, "a whole number"))
    fields["defaults"] = _record(fields.get("defaults") or {}, Defaults, "defaults")
    overrides = list_of(fields.get("overrides"), "overrides", dict, "a mapping")
    fields["overrides"] = tuple(_record(entry, Override, f"overrides[{i}]") for i, entry in enumerate(overrides))
    figures = list_of(fields.get("figures"), "figures", dict, "a mapping")
    fields["figures"] = tuple(_figure(entry, f"figures[{i}]") for i, entry in enumerate(figures))
    return Study(**{name: value for name, value in fields.items() if value is not None})


def _entries(value: Any, where: str, *, texts: bool) -> dict[str, Any]:
    """A mapping from names to settings (or texts); an empty entry stands for "the defaults"."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping from names to settings, got {kind_of(value)}")
    entries: dict[str, Any] = {}
    for name, entry in value.items():
        if not isinstance(name, str):
            raise UserError(f"{where}: expected names, got the key {name!r}")
        settings = {} if entry is None else entry
        if not isinstance(settings, dict) and not (texts and isinstance(settings, str)):
            wanted = "settings (a mapping) or a path (a text)" if texts else "settings (a mapping)"
            raise UserError(f"{where}.{name}: expected {wanted}, got {kind_of(settings)}")
        entries[name] = settings
    return entries


def _figure(value: dict[str, Any], where: str) -> FigureSpec:
    known_keys(value, _fields(FigureSpec), f"{where}.")
    for name in ("benchmark", "encoders", "x", "title", "label"):
        expect(value, name, str, "a text", f"{where}.")
    for name in ("benchmark", "encoders", "x"):
        if value.get(name) is None:
            raise UserError(f"{where}.{name}: missing")
    return FigureSpec(**value | {"beside": tuple(list_of(value.get("beside"), f"{where}.beside", str, "a name"))})


def _paths(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in [*value, *value.values()]):
        raise UserError("paths: expected a mapping from names to directories (texts)")
    return value


def _record(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a mapping, got {kind_of(value)}")
    known_keys(value, _fields(kind), f"{where}.")
    expected = {"encoder": str, "llm": str, "recipe": str, "seed": int, "skip": bool} if kind is Override else {}
    for name, entry in value.items():
        wanted = expected.get(name, dict)
        if not isinstance(entry, wanted) or (wanted is int and isinstance(entry, bool)):
            raise UserError(f"{where}.{name}: expected {kind_of(wanted())}, got {kind_of(entry)}")
    return kind(**value)


def _fields(kind: type) -> list[str]:
    """The keys that a record of the study file may have."""
    return [entry.name for entry in dataclasses.fields(kind) if entry.name != "varied"]  # which nobody writes


def check_benchmark(settings: Settings, where: str) -> None:
    """Refuse settings of a benchmark that are of the wrong kind."""
    for name, kind in typing.get_type_hints(BenchmarkConfig).items():
        kinds = {kind, *typing.get_args(kind)}
        either = tuple[str, ...] in kinds and isinstance(settings.get(name), list)
        if typing.get_origin(kind) is tuple or either:
            entry = int if tuple[int, ...] in kinds else str
            list_of(settings.get(name), f"{where}.{name}", entry, "a whole number" if entry is int else "a text")
        elif bool in kinds:
            expect(settings, name, bool, "true or false", f"{where}.")
        elif int in kinds:
            expect(settings, name, int, "a whole number", f"{where}.")
        else:
            expect(settings, name, str, "a text", f"{where}.")
