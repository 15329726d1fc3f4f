"""JSON Schemas: they accept what is shipped, and reject what the commands reject."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from benchmarks.results.results import Result, write_result
from benchmarks.study.launchers import CLI_ENTRY_POINTS, find_command
from benchmarks.study.schema_command import SchemaConfig, schemas, write_schemas
from benchmarks.study.study_record import StepPlan, StudyRecord, write_study_record
from clips.commandline.help_text import help_text, list_item_help
from clips.core.artifact import write_manifest
from clips.errors import UserError
from clips.method.recipes import RECIPES
from clips.text_files import read_yaml
from clips.typed_data import adapter, from_plain, is_config, options_of

ROOT = Path(__file__).parents[1]
CONFIGS = {
    ("clips", "train"): ROOT / "scripts" / "configs" / "clips-l-14.yaml",
    ("llava-bridge", "train"): ROOT / "scripts" / "configs" / "llava" / "clips.yaml",
}
SHIPPED = sorted(
    [
        *(file for file in (ROOT / "scripts").rglob("*.yaml") if file.parent.name != "kubernetes"),
        *(ROOT / "benchmarks/studies").rglob("*.yaml"),
    ]
)
FREE = {"stages"}  # whose items are dotted fields, which no schema describes


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(made()[name])


@cache
def made() -> dict[str, Any]:
    return dict(schemas())


def shipped_schema(file: Path) -> Path:
    """The schema that the first line of a shipped file names, for editors."""
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text(encoding="utf-8"))
    assert found, f"{file}: the first line names no schema"
    return (file.parent / found[1]).resolve()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in nested data."""
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    at(changed, path[:-1])[path[-1]] = new
    return changed


def test_every_schema_is_one():
    for schema in made().values():
        Draft202012Validator.check_schema(schema)


def test_the_command_writes_them(tmp_path):
    write_schemas(SchemaConfig(output=str(tmp_path / "new")))
    assert {path.name for path in (tmp_path / "new").iterdir()} == made().keys()
    assert json.loads((tmp_path / "new" / "study.json").read_text(encoding="utf-8")) == made()["study.json"]


def test_fields_say_what_they_mean_and_which_choices_there_are():
    train = made()["clips-train.json"]
    assert train["properties"]["global_batch_size"]["description"] == "samples per step, over all processes."
    assert "bf16" in train["properties"]["precision"]["enum"]
    assert set(train["required"]) == {"output", "data"}
    assert train["properties"]["global_batch_size"]["default"] == 128
    assert validator("clips-train.json").is_valid({"output": "o", "data": {"sources": []}})
    recipe = train["$defs"]["RecipeConfig"]["properties"]
    assert recipe["name"]["enum"] == sorted(RECIPES)
    assert recipe["positives"]["anyOf"][0]["items"]["enum"] == ["mixed", "partial", "sentences", "web"]
    assert "clips-l-14" in train["$defs"]["ModelConfig"]["properties"]["architecture"]["examples"]


@pytest.mark.parametrize("words", [("clips", "train"), ("llava-bridge", "train")])
def test_help_that_a_help_text_points_to_is_there(words):
    kind = find_command(words).config_class()
    named = set(re.findall(r"--([\w.]+)\.help", json.dumps(made()[f"{'-'.join(words)}.json"])))
    assert all(list_item_help(kind, [f"--{name}.help"]) for name in named), named
    assert words[0] != "clips" or named == {"data.sources"}


@pytest.mark.parametrize("wrong", [{"name": "clipz"}, {"caption_strategy": "sub_captoin"}, {"positives": ["wbe"]}])
def test_a_name_that_no_registry_has_is_rejected(wrong):
    content = {"output": "o", "data": {"sources": []}, "recipe": wrong}
    assert not validator("clips-train.json").is_valid(content)
    content["recipe"] = {"name": "clip", "caption_strategy": None, "positives": ["web"]}
    assert validator("clips-train.json").is_valid(content)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_schema_of_a_shipped_file_accepts_it_and_rejects_mistakes(file):
    content = read_yaml(file)
    checks = validator(shipped_schema(file).name)
    assert [error.message for error in checks.iter_errors(content)] == []
    tried = 0
    for path in places(content):
        if FREE.intersection(path) or at_a_command(content, path):
            continue
        value, where = at(content, path), ".".join(map(str, path))
        if isinstance(value, dict):
            tried += 1
            wrong = copy.deepcopy(content)
            at(wrong, path)["unknwn"] = 1
            assert not checks.is_valid(wrong), f"{where}: an unknown key was accepted"
        elif not isinstance(value, list) and path:
            tried += 1
            assert not checks.is_valid(replaced(content, path, {"x": 1})), f"{where}: a mapping was accepted"
    assert tried > 10


def at_a_command(content: Any, path: tuple[Any, ...]) -> bool:
    """Whether a place is among data that another command than ``clips scenes`` makes, which checks them itself."""
    return (
        path[:1] == ("data",)
        and len(path) > 1
        and isinstance(content["data"], dict)
        and "command" in str(at(content, path[:2]))
    )


STUDY = {"name": "s", "encoders": {"a": None}, "benchmarks": {"pope": None}}


@pytest.mark.parametrize(
    "content",
    [
        {"name": "s", "encoders": {"a": 3}, "benchmarks": {"pope": None}},
        {"name": "s", "encoders": {"a": {"precision": "fp8"}}, "benchmarks": {"pope": None}},
        {"name": "s", "encoders": {"a": None}, "benchmarks": {"pope": {"limit": "5"}}},
        {"name": "s", "encoders": {"a": {"sweep": {"seed": 3}}}, "benchmarks": {"pope": None}},
        {"name": "s", "encoders": {"a": None}, "benchmarks": {}, "data": {"d": {"splt": "test"}}},
        {"encoders": {"a": None}, "benchmarks": {"pope": None}},
        {"name": "s", "encoders": {"a": None}, "benchmarks": {"pope": None}, "sweeps": {}},
        {**STUDY, "overrides": [{"encoder": "a", "evaluation": {"results": "elsewhere"}}]},
    ],
)
def test_a_wrong_study_is_rejected(content):
    assert not validator("study.json").is_valid(content)


def test_settings_in_a_study_need_no_required_fields():
    study = {
        "name": "s",
        "encoders": {"a": None, "b": "timm:resnet18", "c": {"sweep": {"seed": [1, 2]}, "recipe": {"name": "clips"}}},
        "llms": {"l": {"instruct": {"max_steps": 3}}},
        "data": {"own": {"command": "python make.py", "anything": 1}, "scenes": {"split": "test"}},
        "benchmarks": {"pope": None, "gqa": {"encoders": ["a"]}},
        "overrides": [{"encoder": "a", "llava": {"align": {"max_steps": 3}}, "evaluation": {"batch_size": 2}}],
    }
    assert [error.message for error in validator("study.json").iter_errors(study)] == []


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([0.5, -1.5])
    | st.sampled_from(["", "x", "3", "clip", "auto"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "unknwn"]), inner, max_size=2),
    max_leaves=3,
)


@pytest.mark.parametrize("words", CONFIGS, ids=" ".join)
def test_schema_and_command_reject_the_same(words):
    base = read_yaml(CONFIGS[words])
    kind = find_command(words).config_class()
    checks = validator(f"{'-'.join(words)}.json")
    spots = [path for path in places(base) if path and not FREE.intersection(path)]

    def parses(content: Any) -> bool:
        try:
            adapter(kind).validate_json(json.dumps(content), strict=True)
        except ValidationError:
            return False
        except UserError:  # of values, which no schema checks
            return True
        return True

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(spot=st.sampled_from(spots), value=VALUES, key=st.booleans())
    def agree(spot, value, key):
        there = at(base, spot)
        if key and isinstance(there, dict):
            content = replaced(base, spot, {**there, "unknwn": 1})
        else:
            content = replaced(base, spot, value)
        assert checks.is_valid(content) == parses(content), f"{spot}: {value!r}"

    agree()


def test_what_the_suite_writes_is_as_its_schemas_say(tmp_path):
    result = Result(
        model_name="a",
        benchmark="pope",
        benchmark_type="mllm",
        status="failed",
        failure_reason="no data",
        model={"path": "a"},
    )
    written = json.loads(write_result(tmp_path, result).read_text(encoding="utf-8"))
    assert [error.message for error in validator("result.json").iter_errors(written)] == []
    assert not validator("result.json").is_valid({**written, "status": "fine"})
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file.txt").write_text("x", encoding="utf-8")
    manifest = write_manifest(tmp_path / "made", kind="encoder", config={"a": 1}, seed=1, samples=3)
    assert [error.message for error in validator("manifest.json").iter_errors(manifest)] == []
    assert not validator("manifest.json").is_valid({**manifest, "hash": None})
    step = StepPlan(kind="data", command="clips scenes", key="k")
    record = StudyRecord(name="s", title="S", question="", notes=(), file="s.yaml", text="", rows=(), benchmarks=(),
                         steps={"data": step})  # fmt: skip
    write_study_record(tmp_path, record)
    kept = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert [error.message for error in validator("study-record.json").iter_errors(kept)] == []
    assert not validator("study-record.json").is_valid({**kept, "steps": {"data": {}}})


@pytest.mark.parametrize(("stage", "rate", "batch"), [("align", 0.001, 256), ("instruct", 2e-05, 128)])
def test_help_and_schema_state_the_defaults_of_each_stage(stage: str, rate: float, batch: int) -> None:
    """Those with which a config that states only the stage's data is built."""
    kind = find_command(("llava-bridge", "train")).config_class()
    data = {"data": [{"path": "a"}]}
    built = from_plain(kind, {"output": "o", "encoder": "e", "llm": "l", "align": data, "instruct": data}, what="train")
    assert (getattr(built, stage).learning_rate, getattr(built, stage).global_batch_size) == (rate, batch)
    text = re.sub(r"\s+", " ", help_text(kind, "llava-bridge train", (), None))
    assert f"--{stage}.learning_rate peak learning rate. (a number; default: {rate})" in text
    schema = made()["llava-bridge-train.json"]
    fields = schema["$defs"][schema["properties"][stage]["$ref"].rpartition("/")[2]]["properties"]
    for name in ("learning_rate", "global_batch_size", "group_by_modality_length"):
        assert fields[name]["default"] == getattr(getattr(built, stage), name)


@pytest.mark.parametrize("program", CLI_ENTRY_POINTS)
def test_the_default_of_a_section_is_that_of_its_class(program: str) -> None:
    """So that help, schema and a section with some of its fields agree."""
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


def test_defaults_of_a_schema_are_those_of_the_command():
    built = from_plain(find_command(("clips", "scenes")).config_class(), {"output": "o"}, what="scenes")
    fields = made()["clips-scenes.json"]["properties"]
    assert {name: field["default"] for name, field in fields.items() if "default" in field} == {
        name: getattr(built, name) for name, field in fields.items() if "default" in field
    }
