"""JSON Schemas of configs, with which editors complete and check the YAML files of ``--config``.

They are built from the dataclasses' fields, types, defaults and docstrings. A field's metadata may name a registry as
"module:REGISTRY": with the key ``choices`` its entries are the only valid values, with ``known`` other values are
valid, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from clips.commandline.help_text import docstring_summary, field_help
from clips.lazy_import import import_from_string
from clips.typed_data import adapter

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Pydantic's generator, with descriptions from docstrings and without titles."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """False: a title would repeat the field's name."""
        return False

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """The schema of a dataclass."""
        found = super().dataclass_schema(schema)
        descriptions = dict(field_help(schema["cls"]))
        for name, field in found["properties"].items():
            if name in descriptions:
                field["description"] = descriptions[name]
        for declared in dataclasses.fields(schema["cls"]):
            _add_choices(found["properties"].get(declared.name, {}), declared.metadata)
        found.pop("title", None)
        return found | {"description": docstring_summary(schema["cls"])}


def _add_choices(field: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    for key in metadata.keys() & {"choices", "known"}:
        entries = import_from_string(metadata[key])
        names = sorted(entries() if callable(entries) else entries)
        if key == "known":
            field["examples"] = names
            continue
        for option in field.get("anyOf", [field]):
            if option.get("type") != "null":
                option.get("items", option)["enum"] = names


def config_schema(config_class: type, title: str) -> dict[str, Any]:
    """The schema of a config class and its nested classes, a complete document."""
    return {
        "$schema": JSON_SCHEMA_DIALECT,
        "title": title,
        **adapter(config_class).json_schema(schema_generator=_Generator),
    }


def optional_field_schemas(config_classes: Mapping[str, type]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of overriding settings, in which no field is required.

    Args:
        config_classes: name → dataclass.

    Returns:
        name → schema, and the ``$defs`` that they refer to, with unique names.
    """
    adapters: list[tuple[str, Literal["validation"], TypeAdapter[Any]]]
    adapters = [(name, "validation", adapter(kind)) for name, kind in config_classes.items()]
    schemas, shared = TypeAdapter.json_schemas(adapters, schema_generator=_Generator)
    defs = {name: _without_required(schema) for name, schema in shared.get("$defs", {}).items()}
    optional = {}
    for (name, _), schema in schemas.items():
        optional[name] = defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else _without_required(schema)
    return optional, defs


def _without_required(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "required"}
