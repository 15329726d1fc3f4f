"""Configs of all commands with one wrong key at any depth: rejected by its name, with the right one if it is near."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import generators
import pytest
import yaml
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from benchmarks.study.launch import CLI_ENTRY_POINTS
from benchmarks.study.schema import Study, parse_study
from benchmarks.tasks.registry import BenchmarkConfig
from clips.commandline.parsing import parse_config
from clips.errors import UserError
from clips.text_files import dump_yaml, parse_yaml
from clips.typed_data import field_types, from_plain, is_config, options_of, to_plain, without_range
from llava_bridge.conversion.convert_command import ConvertConfig

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SOURCES = {"sources": [{"path": "a"}, {"path": "b"}]}
STAGE = {"data": [{"path": "a"}]}
RECALL = {"benchmarks": [{"name": "retrieval", "data": "a"}]}
REQUIRED: dict[str, dict[str, Any]] = {  # what the fields without a default and the checks of two fields need
    "clips train": {"data": SOURCES, "max_steps": 3, "optimizer": {"learning_rate": 0.1}},
    "clips import": {"preprocessing": {"mean": [0.5, 0.5, 0.5]}},
    "clips recaption": {"model": "http://localhost/v1"},
    "llava-bridge train": {"encoder": "e", "llm": "l", "align": STAGE, "instruct": STAGE},
    "clips-bench run": {**RECALL, "encoder": "e"},
    "clips-bench run encoder": RECALL,
    "clips-bench run llava": {"benchmarks": [{"name": "pope", "data": "a"}]},
    "clips-bench study rerun": {"steps": ["a"]},
    "clips-bench study accept": {"steps": ["a"]},
    "clips-bench import": {"files": ["a"]},
    "clips-bench score": {"results": "r"},
    "clips-bench report": {"inputs": ["a"], "latex": {}, "display": {"models": {"a": "b"}}},
}
STUDY = {
    "name": "small",
    "encoders": {"a": {"recipe": "clip"}, "b": "b", "on": "c"},
    "llms": {"no": "l"},
    "overrides": [{"encoder": "a", "seed": 0}],
    "resources": {"encoder": {"gpus": 1}},
    "display": {"models": {"a": "A"}},
    "benchmarks": {"pope": None},
}
CONTRADICTIONS: dict[str, list[dict[str, Any]]] = {
    "clips train": [
        {"num_epochs": 1.0},
        {"max_samples": 5},
        {"optimizer.base_learning_rate": 0.1},
        {"distributed.shard_group_size": 2},
        {"model.lock_image_unlocked_groups": 1},
        {"model.lock_text_unlocked_layers": 1},
        {"model.cache_trunk_features": True},
        {"model.pretrained": "a", "model.pretrained_trunk": "b"},
    ],
}


@pytest.fixture(scope="module")
def configs() -> dict[str, tuple[type, dict[str, Any]]]:
    """Command → class of its config, and a valid config with all fields."""
    found = {}
    for program, module in CLI_ENTRY_POINTS.items():
        for name, command in importlib.import_module(module).COMMANDS.items():
            kind, words = command.config_class(), f"{program} {name}"
            hints = typing.get_type_hints(kind)
            needed = [
                field.name
                for field in dataclasses.fields(kind)
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            ]
            fields = {field: "x" for field in needed if str in options_of(hints[field])} | REQUIRED.get(words, {})
            found[words] = kind, to_plain(from_plain(kind, fields, what=words))
    found["study"] = Study, to_plain(parse_study(STUDY))
    return found


def places(kind: Any, content: Any, name: str = "") -> Iterator[tuple[str, type, dict[str, Any]]]:
    """Dotted name, class and values of a config and of all that it contains."""
    if is_config(kind) and isinstance(content, dict):
        yield name, kind, content
        for field, inner in typing.get_type_hints(kind).items():
            for option in options_of(inner):
                yield from places(option, content.get(field), f"{name}.{field}".lstrip("."))
    elif typing.get_origin(kind) in {list, tuple} and isinstance(content, list):
        for number, item in enumerate(content, 1):
            yield from places(typing.get_args(kind)[0], item, f"{name}[{number}]")


def typo(data: st.DataObject, key: str) -> str:
    """A key with one letter lost, doubled, replaced or exchanged with the next one, or with a hyphen."""
    at = data.draw(st.integers(0, len(key) - 1), "letter")
    before, letter, after = key[:at], key[at], key[at + 1 :]
    wrong = [before + after, before + letter * 2 + after, before + data.draw(st.sampled_from(LETTERS)) + after]
    wrong += [before + after[:1] + letter + after[1:], key.replace("_", "-", 1), key.upper()]
    return data.draw(st.sampled_from(wrong), "misspelled")


@generators.sizes
def test_a_wrong_key_is_rejected_by_its_name(
    configs: dict[str, tuple[type, dict[str, Any]]], tmp_path: Path, examples: int
):
    for kind, values in configs.values():
        assert from_plain(kind, values)
    lines = sorted(configs, key=lambda words: -len(list(places(*configs[words]))))

    def check(data: st.DataObject) -> None:
        words = data.draw(st.sampled_from([*lines, *lines[:4] * 6]), "command")
        kind, values = configs[words][0], copy.deepcopy(configs[words][1])
        name, holder, place = data.draw(st.sampled_from(list(places(kind, values))), "place")
        own = [field.name for field in dataclasses.fields(holder)]
        of_benchmark = holder is BenchmarkConfig  # which names itself, and whose class its name chooses
        key = data.draw(st.sampled_from([field for field in own if not (of_benchmark and field == "name")]), "key")
        how = data.draw(st.sampled_from(["misspelled", "misspelled", "added", "elsewhere", "type", "twice"]), "change")
        prefix = f"{name}." if name and not of_benchmark else ""
        if how == "type":
            place[key] = data.draw(st.sampled_from([{"no": {"such": "value"}}, [[["x"]]]]), "value")
            hint = typing.get_type_hints(holder)[key]
            origins = {typing.get_origin(option) for option in options_of(hint)} | {*options_of(hint)}
            if isinstance(place[key], dict) and (Any in origins or any(is_mapping(origin) for origin in origins)):
                return
            expect(kind, values, f"{prefix}{key}")
            return
        if how == "twice":
            text = dump_yaml({key: place.get(key)}) + dump_yaml({key: place.get(key)})
            (tmp_path / "twice.yaml").write_text(text, encoding="utf-8")
            with pytest.raises(UserError, match=f"the key '{key}' is given twice"):
                parse_config(kind, ["--config", str(tmp_path / "twice.yaml")], prog=words)
            return
        if how == "misspelled":
            wrong = typo(data, key)
        elif how == "added":
            wrong = data.draw(st.text(LETTERS + "_é模", min_size=1, max_size=12), "word")
        elif of_benchmark:
            return
        else:
            wrong = data.draw(st.sampled_from([field.split(".")[-1] for field, _ in field_types(kind)]), "other field")
        if not wrong or wrong in own:
            return
        place[wrong] = place.pop(key) if how == "misspelled" else 1
        problem = expect(kind, values, f"unknown key '{prefix}{wrong}'")
        closest = difflib.get_close_matches(wrong.lower(), own, n=2, cutoff=0.85)
        if how == "misspelled" and len(key) > 4 and closest[:1] == [key]:
            assert f"did you mean '{prefix}{key}'?" in problem
        if how == "elsewhere":
            assert "did you mean '" in problem
        if kind is not Study and not name and "-" not in wrong:  # the same as a flag
            with pytest.raises(UserError, match="unknown key"):
                parse_config(kind, [f"--{wrong}", "1"], prog=words)

    generators.explore(check, examples)


def is_mapping(origin: Any) -> bool:
    return is_config(origin) or (isinstance(origin, type) and issubclass(origin, Mapping))


def expect(kind: type, values: dict[str, Any], part: str) -> str:
    """The line about a config that is wrong; it has this part."""
    with pytest.raises(UserError) as caught:
        from_plain(kind, values)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("words", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_rejected(configs: dict[str, tuple[type, dict[str, Any]]], words: str):
    kind, valid = configs[words]
    for contradiction in CONTRADICTIONS[words]:
        values = copy.deepcopy(valid)
        for dotted, value in contradiction.items():
            *sections, field = dotted.split(".")
            place = values
            for section in sections:
                place = place[section]
            place[field] = value
        expect(kind, values, field)


def test_no_number_of_a_config_is_infinite(configs: dict[str, tuple[type, dict[str, Any]]]):
    """`.inf` and `.nan` of YAML would train to NaN, or never end."""
    count = 0
    for kind, values in configs.values():
        for name, holder, _ in places(kind, values):
            for field, hint in typing.get_type_hints(holder, include_extras=True).items():
                if float not in [without_range(option) for option in options_of(hint)]:
                    continue
                for value in (math.inf, -math.inf, math.nan):
                    changed = copy.deepcopy(values)
                    next(place for other, _, place in places(kind, changed) if other == name)[field] = value
                    expect(kind, changed, f"{name}.{field}: expected ".lstrip("."))
                    count += 1
    assert count > 100


def test_a_number_is_rejected_where_pydantic_rejects_it(configs: dict[str, tuple[type, dict[str, Any]]]):
    """The bounds that the types state, in the config alone and as a field that is named."""
    counts = {True: 0, False: 0}
    for kind, values in configs.values():
        for name, holder, _ in places(kind, values):
            for field, hint in typing.get_type_hints(holder, include_extras=True).items():
                for value in numbers_around_bounds(hint):
                    try:
                        TypeAdapter(hint).validate_python(value, strict=True)
                        is_valid = True
                    except ValidationError:
                        is_valid = False
                    alone = dataclasses.make_dataclass("Alone", [(field, hint)], frozen=True, kw_only=True)
                    if is_valid:
                        assert getattr(from_plain(alone, {field: value}), field) == value
                    else:
                        changed = copy.deepcopy(values)
                        next(place for other, _, place in places(kind, changed) if other == name)[field] = value
                        expect(kind, changed, f"{field}: expected ")
                    counts[is_valid] += 1
    assert min(counts.values()) > 100


def numbers_around_bounds(hint: Any) -> Iterator[float]:
    """The bounds of a number's type, and the nearest numbers on both sides of each."""
    for option in (hint, *typing.get_args(hint)):
        number = without_range(option) if typing.get_origin(option) is typing.Annotated else None
        if number not in (int, float):
            continue
        schema = TypeAdapter(option).json_schema()
        for bound in {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} & schema.keys():
            limit = number(schema[bound])
            yield from (
                (limit - 1, limit, limit + 1)
                if number is int
                else (
                    math.nextafter(limit, -math.inf),
                    limit,
                    math.nextafter(limit, math.inf),
                )
            )


PLAIN_VALUES: dict[str, Any] = {
    **{text: text for text in ("no", "on", "Yes", "010", "1:30", "8_5.9", "2024-01-02", "=", "0b11", "1_0")},
    **{
        "1_000_000": 1_000_000,
        "-7": -7,
        "0": 0,
        "0x10": 16,
        "1e-3": 1e-3,
        "1.5E3": 1500.0,
        ".5": 0.5,
        ".inf": math.inf,
    },
    **{"true": True, "False": False, "~": None, "": None, "null": None},
}


@pytest.mark.parametrize(("text", "value"), PLAIN_VALUES.items())
def test_plain_values_are_those_of_yaml_1_2(text: str, value: Any):
    """A model called ``no`` is no truth value, ``010`` is not 8, and ``1:30`` is not 90."""
    found = parse_yaml(f"key: {text}")["key"]
    assert (found, type(found)) == (value, type(value))


@generators.sizes
def test_what_is_written_as_yaml_is_read_back(examples: int):
    """By this suite and, strings above all, by PyYAML's reader of YAML 1.1."""
    odd = (
        "no",
        "on",
        "010",
        "1:30",
        "1e5",
        "1_0",
        "=",
        "<<",
        "~",
        "",
        ".inf",
        "null",
        "0x1",
        "2024-01-02",
        "- a",
        "#b",
    )
    texts = (
        st.sampled_from(odd) | st.text("0123456789eE.:_-+xob", max_size=5) | st.text("aé\n\t#'\"- {}[]:%&", max_size=6)
    )
    plain = texts | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()
    values = st.recursive(
        plain, lambda inner: st.lists(inner) | st.dictionaries(texts.filter(bool), inner), max_leaves=6
    )

    def check(data: st.DataObject) -> None:
        value = {"key": data.draw(values)}
        written = dump_yaml(value)
        assert parse_yaml(written) == value
        text = data.draw(texts)
        assert yaml.safe_load(dump_yaml([text])) == parse_yaml(dump_yaml([text])) == [text]

    generators.explore(check, examples)


def test_a_field_named_as_in_another_library_is_suggested_before_its_name_here() -> None:
    kind = ConvertConfig
    with pytest.raises(UserError, match=r"unknown key 'VISION_TOWER'; did you mean 'vision_tower'\?"):
        from_plain(kind, {"source": "x", "output": "x", "VISION_TOWER": "a"})
