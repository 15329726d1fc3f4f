"""``clips-bench schema``: JSON Schemas of every command's config, of study files and of the suite's output files.

    clips-bench schema --output schemas

The first line of each shipped YAML file names its schema in ``schemas/`` of the source tree, the default.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results.results import Result
from benchmarks.study.build_steps import (
    DEFAULT_DATA_COMMAND,
    EVALUATE,
    ROW_EVALUATION_FIELDS,
    TRAIN_ENCODER,
    TRAIN_LLAVA,
)
from benchmarks.study.executors import EXECUTORS
from benchmarks.study.launchers import CLI_ENTRY_POINTS, commands_of, find_command
from benchmarks.study.resources import Resources
from benchmarks.study.schema import Study
from benchmarks.study.study_record import StudyRecord
from benchmarks.study.sweep import SWEEP
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.commandline.config_schema import config_schema, optional_field_schemas
from clips.core.artifact import atomic_write, log_info, writable_directory

_SWEEP_SCHEMA = {
    "type": "object",
    "minProperties": 1,
    "description": "Settings (such as recipe.caption_strategy) and their values; every combination is an entry.",
    "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}},
}
_COMMAND = {"type": "string", "description": f"The command that creates the data; default: `{DEFAULT_DATA_COMMAND}`."}
_ENCODERS = {"type": "array", "items": {"type": "string"}, "description": "Encoders, entries or patterns to evaluate."}


def study_schema() -> dict[str, Any]:
    """The schema of a study file. Ranges and references are not part of it; the reader checks them."""
    study = config_schema(Study, "a study of clips-bench")
    fields, defs = study["properties"], study["$defs"]
    del fields["sweeps"]  # no key of study files
    settings, settings_defs = _settings()
    for record, keys in {
        "Defaults": {key: key for key in ("encoder", "llm", "llava", "benchmark", "evaluation")},
        "Override": {"llava": "llava", "evaluation": "evaluation_of_rows"},
    }.items():
        for key, kind in keys.items():
            _fill(defs[record]["properties"][key], {"$ref": f"#/$defs/settings.{kind}"})
    for entries, choices in {
        "data": [{"$ref": "#/$defs/settings.data"}, _any_command()],
        "encoders": [{"type": "string"}, {"$ref": "#/$defs/settings.encoders"}],
        "llms": [{"type": "string"}, {"$ref": "#/$defs/settings.llms"}],
        "llava_variants": [{"$ref": "#/$defs/settings.llava_variants"}],
        "existing_llavas": [{"type": "string"}, {"$ref": "#/$defs/settings.evaluation"}],
        "resources": [{"$ref": "#/$defs/settings.resources"}],
        "benchmarks": [{"$ref": "#/$defs/settings.benchmarks"}],
    }.items():
        values = {"anyOf": [*choices, {"type": "null"}]}  # an empty entry means the defaults
        _fill(fields[entries], {"type": "object", "additionalProperties": values})
    _fill(fields["executor"], {"anyOf": [{"enum": list(EXECUTORS)}, *_executors(settings)]})
    if duplicates := defs.keys() & settings_defs.keys():
        raise ValueError(f"two definitions have the name {min(duplicates)}")
    defs |= settings_defs | {f"settings.{name}": schema for name, schema in settings.items()}
    return study


def _settings() -> tuple[dict[str, Any], dict[str, Any]]:
    """Field of ``Defaults`` or ``Study`` → schema of the settings in it; and the definitions that these refer to."""
    encoder, llava, evaluation, data = (
        find_command(words).config_class()
        for words in (TRAIN_ENCODER, TRAIN_LLAVA, EVALUATE, tuple(DEFAULT_DATA_COMMAND.split()))
    )
    classes = {"encoder": encoder, "llm": llava, "llava": llava, "benchmark": BenchmarkConfig, "evaluation": evaluation}
    settings, defs = optional_field_schemas({**classes, "data": data, "resources": Resources, **EXECUTORS})
    for entries, entry in (("encoders", "encoder"), ("llms", "llm"), ("llava_variants", "llava")):
        settings[entries] = _with(settings[entry], {SWEEP: _SWEEP_SCHEMA})
    row_fields = {name: settings["evaluation"]["properties"][name] for name in ROW_EVALUATION_FIELDS}
    settings["evaluation_of_rows"] = {**settings["evaluation"], "properties": row_fields}
    settings["benchmarks"] = _with(settings["benchmark"], {"encoders": _ENCODERS})
    settings["data"] = _with(settings["data"], {"command": {**_COMMAND, "const": DEFAULT_DATA_COMMAND}})
    return settings, defs


def _executors(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of executors as mappings, which are removed from ``settings``."""
    return [{**_with(settings.pop(name), {"name": {"const": name}}), "required": ["name"]} for name in EXECUTORS]


def _any_command() -> dict[str, Any]:
    """Data of another command, which checks its settings itself."""
    other = {**_COMMAND, "not": {"const": DEFAULT_DATA_COMMAND}}
    return {"type": "object", "required": ["command"], "properties": {"command": other}}


def _with(schema: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """An object's schema with more properties."""
    return {**schema, "properties": {**schema["properties"], **more}}


def _fill(field: dict[str, Any], schema: dict[str, Any]) -> None:
    """Replace a field's schema except its description."""
    description = {"description": field["description"]} if "description" in field else {}
    field.clear()
    field.update(schema | description)


@dataclass(frozen=True, kw_only=True)
class SchemaConfig:
    """Write the JSON Schemas of all configs, with which editors complete and check YAML files.

    Args:
        output: directory of the schemas.
    """

    output: str = "schemas"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The keys of every ``manifest.json``; each type of artifact adds more.

    Args:
        kind: type of the directory: ``scenes``, ``captions``, ``encoder``, ``llm``, ``llava``, or the format of an
            encoder for another library.
        created: ISO time.
        config: of the command that wrote it.
        seed: of the command.
        data: external inputs: name → path, hash, counts.
        parents: input artifacts: name → path and hash.
        versions: of the libraries.
        git: commit of the suite and whether it had uncommitted changes; empty outside of a checkout.
        hash: SHA-256 over the names and hashes of its files.
        files: name → size in bytes, time of change in nanoseconds, and SHA-256.
    """

    kind: str
    created: str
    config: Mapping[str, Any]
    seed: int | None
    data: Mapping[str, Any]
    parents: Mapping[str, Any]
    versions: Mapping[str, str]
    git: Mapping[str, Any]
    hash: str
    files: Mapping[str, Any]


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """File names and schemas: one for each command, then those of files."""
    for program in CLI_ENTRY_POINTS:
        for name, command in commands_of(program).items():
            kind = command.config_class()
            yield f"{program}-{name.replace(' ', '-')}.json", config_schema(kind, f"{program} {name}")
    yield "study.json", study_schema()
    yield "study-record.json", config_schema(StudyRecord, "study.json, a study as it was run")
    yield "result.json", _result_schema()
    yield "manifest.json", config_schema(Manifest, "manifest.json") | {"additionalProperties": True}


def _result_schema() -> dict[str, Any]:
    schema = config_schema(Result, "a result file")
    del schema["properties"]["path"]  # set by the reader
    return schema | {"required": [field.name for field in dataclasses.fields(Result) if field.name != "path"]}


def write_schemas(config: SchemaConfig) -> None:
    """Write one file for each schema."""
    output = writable_directory(config.output)
    written = dict(schemas())
    for name, schema in written.items():
        atomic_write(Path(output) / name, json.dumps(schema, indent=1, ensure_ascii=False) + "\n")
    log_info(f"{output}: {len(written)} schemas; docs/installing.md explains how to use them in an editor")
