"""The JSON Schema of study files: the study's own fields, and within them the settings of the commands it runs."""

from __future__ import annotations

from typing import Any

from benchmarks.study.build_steps import (
    DEFAULT_DATA_COMMAND,
    EVALUATE,
    ROW_EVALUATION_FIELDS,
    TRAIN_ENCODER,
    TRAIN_LLAVA,
)
from benchmarks.study.executors import EXECUTORS
from benchmarks.study.launchers import find_command
from benchmarks.study.resources import Resources
from benchmarks.study.schema import Study
from benchmarks.study.sweep import SWEEP
from benchmarks.tasks.run_config import BenchmarkConfig
from clips.commandline.config_schema import config_schema, optional_field_schemas

_VARY = {
    "type": "object",
    "minProperties": 1,
    "description": "Settings (such as recipe.caption_strategy) and their values; each combination is an entry.",
    "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}},
}
_COMMAND = {"type": "string", "description": f"What makes the data; `{DEFAULT_DATA_COMMAND}` where not given."}
_ENCODERS = {"type": "array", "items": {"type": "string"}, "description": "For these encoders, entries or patterns."}


def study_schema() -> dict[str, Any]:
    """The schema of a study file, a whole document. Ranges and references are checked by reading it, not here."""
    study = config_schema(Study, "a study of clips-bench")
    fields, defs = study["properties"], study["$defs"]
    del fields["sweeps"]  # which nobody writes
    settings, further = _settings()
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
        values = {"anyOf": [*choices, {"type": "null"}]}  # an empty entry stands for the defaults
        _fill(fields[entries], {"type": "object", "additionalProperties": values})
    _fill(fields["executor"], {"anyOf": [{"enum": list(EXECUTORS)}, *_executors(settings)]})
    if twice := defs.keys() & further.keys():
        raise ValueError(f"two kinds of settings are called {min(twice)}")
    defs |= further | {f"settings.{name}": schema for name, schema in settings.items()}
    return study


def _settings() -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a study file holds, by the field of ``Defaults`` or ``Study`` that they stand in."""
    encoder, llava, evaluation, data = (
        find_command(words).config_class()
        for words in (TRAIN_ENCODER, TRAIN_LLAVA, EVALUATE, tuple(DEFAULT_DATA_COMMAND.split()))
    )
    kinds = {"encoder": encoder, "llm": llava, "llava": llava, "benchmark": BenchmarkConfig, "evaluation": evaluation}
    settings, defs = optional_field_schemas({**kinds, "data": data, "resources": Resources, **EXECUTORS})
    for entries, one in (("encoders", "encoder"), ("llms", "llm"), ("llava_variants", "llava")):
        settings[entries] = _with(settings[one], {SWEEP: _VARY})
    of_rows = {name: settings["evaluation"]["properties"][name] for name in ROW_EVALUATION_FIELDS}
    settings["evaluation_of_rows"] = {**settings["evaluation"], "properties": of_rows}
    settings["benchmarks"] = _with(settings["benchmark"], {"encoders": _ENCODERS})
    settings["data"] = _with(settings["data"], {"command": {**_COMMAND, "const": DEFAULT_DATA_COMMAND}})
    return settings, defs


def _executors(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """An executor with settings of its own, which are taken out of ``settings``."""
    chosen = [(name, _with(settings.pop(name), {"name": {"const": name}})) for name in EXECUTORS]
    return [{**schema, "required": ["name"]} for _, schema in chosen]


def _any_command() -> dict[str, Any]:
    """Data by another command, whose settings it checks itself."""
    other = {**_COMMAND, "not": {"const": DEFAULT_DATA_COMMAND}}
    return {"type": "object", "required": ["command"], "properties": {"command": other}}


def _with(schema: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """An object's schema with more properties."""
    return {**schema, "properties": {**schema["properties"], **more}}


def _fill(field: dict[str, Any], schema: dict[str, Any]) -> None:
    """Replace what a field's schema allows, keeping its description."""
    described = field.get("description")
    field.clear()
    field.update(schema if described is None else {**schema, "description": described})
