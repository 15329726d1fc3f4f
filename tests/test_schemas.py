"""Configs: pydantic makes their JSON Schemas, and help states what is true of them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from typing import Any

import pytest
from pydantic import TypeAdapter

from benchmarks.study.launch import CLI_ENTRY_POINTS, find_command
from clips.commandline.parsing import help_text, list_item_help
from clips.typed_data import from_plain, is_config, options_of

TRAININGS = [("clips", "train"), ("llava-bridge", "train")]


@pytest.mark.parametrize("words", TRAININGS, ids=" ".join)
def test_pydantic_makes_a_schema_of_a_config(words: tuple[str, ...]) -> None:
    """The documented way to a schema for an editor."""
    kind = find_command(words).config_class()
    schema = TypeAdapter(kind).json_schema()
    required = {field.name for field in dataclasses.fields(kind) if _is_required(field)}
    assert (set(schema["properties"]), set(schema["required"])) == (set(typing.get_type_hints(kind)), required)
    assert "bf16" in schema["properties"]["precision"]["enum"]
    assert schema["properties"]["logging_steps"].items() >= {"minimum": 1, "type": "integer"}.items()


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@pytest.mark.parametrize("words", TRAININGS, ids=" ".join)
def test_help_that_a_help_text_points_to_is_there(words: tuple[str, ...]) -> None:
    kind = find_command(words).config_class()
    named = set(re.findall(r"--([\w.]+)\.help", help_text(kind, " ".join(words), (), None)))
    assert all(list_item_help(kind, [f"--{name}.help"]) for name in named), named
    assert words[0] != "clips" or named == {"data.sources"}


@pytest.mark.parametrize(("stage", "rate", "batch"), [("align", 0.001, 256), ("instruct", 2e-05, 128)])
def test_help_and_schema_state_the_defaults_of_each_stage(stage: str, rate: float, batch: int) -> None:
    """Those with which a config that states only the stage's data is built."""
    kind = find_command(("llava-bridge", "train")).config_class()
    data = {"data": [{"path": "a"}]}
    built = from_plain(kind, {"output": "o", "encoder": "e", "llm": "l", "align": data, "instruct": data}, what="train")
    assert (getattr(built, stage).learning_rate, getattr(built, stage).global_batch_size) == (rate, batch)
    own = TypeAdapter(kind).json_schema()["$defs"][f"{stage.capitalize()}Config"]["properties"]
    assert (own["learning_rate"]["default"], own["global_batch_size"]["default"]) == (rate, batch)
    text = re.sub(r"\s+", " ", help_text(kind, "llava-bridge train", (), None))
    assert f"--{stage}.learning_rate peak learning rate. (a finite number above 0; default: {rate})" in text


@pytest.mark.parametrize("program", CLI_ENTRY_POINTS)
def test_the_default_of_a_section_is_that_of_its_class(program: str) -> None:
    """So that help and a section with some of its fields agree."""
    sections = 0
    for command in importlib.import_module(CLI_ENTRY_POINTS[program]).COMMANDS.values():
        kinds = [command.config_class()]
        while kinds:
            kind = kinds.pop()
            hints = typing.get_type_hints(kind)
            for field in dataclasses.fields(kind):
                kinds += [option for option in options_of(hints[field.name]) if is_config(option)]
                value = None if field.default_factory is dataclasses.MISSING else field.default_factory()
                if is_config(type(value)):
                    sections += 1
                    assert value == hints[field.name](), f"{kind.__name__}.{field.name}"
    assert sections or program == "clips-bench"
