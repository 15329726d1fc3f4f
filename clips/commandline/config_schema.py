"""JSON Schemas of configs: an editor uses them to complete and check the YAML files of ``--config``.

Built from the commands' own definitions: the dataclasses' fields, types and defaults, and their docstrings. The
metadata of a field for an entry of a registry name it: ``choices`` is "module:REGISTRY", whose entries are the only
valid values; ``known`` is the same, but other values are valid, too.
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
    """Pydantic's own docstring, where an object has only its fields as keys and each field has a description."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: a title would repeat the field's name."""
        return False

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        """The schema of a dataclass."""
        made = super().dataclass_schema(schema)
        texts = dict(field_help(schema["cls"]))
        for name, field in made["properties"].items():
            if name in texts:
                field["description"] = texts[name]
        for declared in dataclasses.fields(schema["cls"]):
            _add_choices(made["properties"].get(declared.name, {}), declared.metadata)
        made.pop("title", None)
        return made | {"description": docstring_summary(schema["cls"])}


def _add_choices(field: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    for key in metadata.keys() & {"choices", "known"}:
        entries = import_from_string(metadata[key])
        names = sorted(entries() if callable(entries) else entries)
        if key == "known":
            field["examples"] = names
            continue
        texts = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
        for text in texts:
            text.get("items", text)["enum"] = names


def config_schema(config_class: type, title: str) -> dict[str, Any]:
    """The schema of a config class, a complete document.

    Args:
        config_class: a dataclass; nested ones, in lists and mappings too, are included.
        title: title of the file for readers.
    """
    made = adapter(config_class).json_schema(schema_generator=_Generator)
    return {"$schema": JSON_SCHEMA_DIALECT, "title": title, **made}


def optional_field_schemas(config_classes: Mapping[str, type]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schemas of overriding settings, in which no field is required.

    Args:
        config_classes: name → dataclass.

    Returns:
        name → schema, and the ``$defs`` that these refer to, with different names for different classes.
    """
    asked: list[tuple[str, Literal["validation"], TypeAdapter[Any]]]
    asked = [(name, "validation", adapter(kind)) for name, kind in config_classes.items()]
    made, shared = TypeAdapter.json_schemas(asked, schema_generator=_Generator)
    defs = {name: _without_required(one) for name, one in shared.get("$defs", {}).items()}
    found = {}
    for (name, _), one in made.items():
        found[name] = defs[one["$ref"].rpartition("/")[2]] if "$ref" in one else _without_required(one)
    return found, defs


def _without_required(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "required"}
