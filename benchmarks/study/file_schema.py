"""The JSON Schema of study files: the study's own fields, and within them the settings of the commands it runs."""

from __future__ import annotations

from typing import Any

from benchmarks.config import BenchmarkConfig
from benchmarks.study.grid import VARY
from benchmarks.study.plan import EVALUATE, MAKE_DATA, TRAIN_ENCODER, TRAIN_LLAVA
from benchmarks.study.programs import find_command
from benchmarks.study.schema import Study
from clips.commandline.commands import config_type
from clips.commandline.config_schema import config_schema, partial_schemas

_VARY = {
    "type": "object",
    "minProperties": 1,
    "description": "Settings (such as recipe.strategy) and their values; every combination is an encoder of its own.",
    "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": ["string", "number"]}},
}
_COMMAND = {"type": "string", "description": f"What makes the data; `{MAKE_DATA}` where not given."}
_ENCODERS = {"type": "array", "items": {"type": "string"}, "description": "For these encoders, entries or patterns."}


def study_schema() -> dict[str, Any]:
    """The schema of a study file, a whole document. Ranges and references are checked by reading it, not here."""
    study = config_schema(Study, "a study of clips-bench")
    fields, defs = study["properties"], study["$defs"]
    del fields["varied"]  # which nobody writes
    settings, further = _settings()
    for record, keys in (
        ("Defaults", ("encoder", "llm", "llava", "benchmark", "evaluation")),
        ("Override", ("llava",)),
    ):
        for key in keys:
            _fill(defs[record]["properties"][key], {"$ref": f"#/$defs/settings.{key}"})
    for entries, choices in {
        "data": [{"$ref": "#/$defs/settings.data"}, _any_command()],
        "encoders": [{"type": "string"}, {"$ref": "#/$defs/settings.encoders"}],
        "llms": [{"type": "string"}, {"$ref": "#/$defs/settings.llm"}],
        "benchmarks": [{"$ref": "#/$defs/settings.benchmarks"}],
    }.items():
        values = {"anyOf": [*choices, {"type": "null"}]}  # an empty entry stands for the defaults
        _fill(fields[entries], {"type": "object", "additionalProperties": values})
    if twice := defs.keys() & further.keys():
        raise ValueError(f"two kinds of settings are called {min(twice)}")
    defs |= further | {f"settings.{name}": schema for name, schema in settings.items()}
    return study


def _settings() -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a study file holds, by the field of ``Defaults`` or ``Study`` that they stand in."""
    encoder, llava, evaluation, data = (
        config_type(find_command(words).function())
        for words in (TRAIN_ENCODER, TRAIN_LLAVA, EVALUATE, tuple(MAKE_DATA.split()))
    )
    kinds = {"encoder": encoder, "llm": llava, "llava": llava, "benchmark": BenchmarkConfig, "evaluation": evaluation}
    settings, defs = partial_schemas({**kinds, "data": data})
    settings["encoders"] = _with(settings["encoder"], {VARY: _VARY})
    settings["benchmarks"] = _with(settings["benchmark"], {"encoders": _ENCODERS})
    settings["data"] = _with(settings["data"], {"command": {**_COMMAND, "const": MAKE_DATA}})
    return settings, defs


def _any_command() -> dict[str, Any]:
    """Data by another command, whose settings it checks itself."""
    other = {**_COMMAND, "not": {"const": MAKE_DATA}}
    return {"type": "object", "required": ["command"], "properties": {"command": other}}


def _with(schema: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """An object's schema with more properties."""
    return {**schema, "properties": {**schema["properties"], **more}}


def _fill(field: dict[str, Any], schema: dict[str, Any]) -> None:
    """Replace what a field's schema allows, keeping its description."""
    described = field.get("description")
    field.clear()
    field.update(schema if described is None else {**schema, "description": described})
