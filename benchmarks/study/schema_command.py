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
from benchmarks.study.json_schema import study_schema
from benchmarks.study.launchers import CLI_ENTRY_POINTS, commands_of
from benchmarks.study.study_record import StudyRecord
from clips.commandline.config_schema import config_schema
from clips.core.artifact import atomic_write, log_info, writable_directory


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
