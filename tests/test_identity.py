"""What a run is: the fields that say how it is carried out are marked where they are declared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from study_material import SMALL

from benchmarks.study.schema import parse_study
from benchmarks.study.steps import build_plan, with_keys
from benchmarks.tasks import run_benchmarks
from benchmarks.tasks.registry import BenchmarkConfig, settings_by_kind
from clips.commandline.commands import Command
from clips.core.artifact import directory_hash
from clips.core.identity import (
    RUN_ONLY,
    VERSIONS,
    Identity,
    digest,
    identity,
    result_settings,
    run_only_fields,
    walk_files,
)
from clips.errors import UserError
from clips.recaption.recaption_config import RecaptionConfig
from clips.training.train_config import EncoderTrainConfig as EncoderTrainConfig
from clips.typed_data import from_plain, to_plain
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.training.inputs import describe_data
from llava_bridge.training.train_config import LlavaTrainConfig as LlavaTrainConfig


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str
    cache: str = field(default="~", metadata=RUN_ONLY)


@dataclass(frozen=True, kw_only=True)
class Nested:
    sources: tuple[Source, ...] = ()
    one: Source | None = None
    num_workers: int = field(default=0, metadata=RUN_ONLY)
    sides: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Nested
    scale: Nested = field(default_factory=Nested, metadata=RUN_ONLY)
    rate: float = 1.0


def test_marked_fields_are_found_below_configs_and_lists_of_them():
    names = {"data.sources[].cache", "data.one.cache", "data.num_workers", "scale"}
    assert run_only_fields(Config) == names


def test_result_settings_exclude_run_only_fields():
    config = Config(data=Nested(sources=(Source(path="a"), Source(path="b")), one=Source(path="c"), num_workers=3))
    settings = result_settings(to_plain(config), Config)
    sources = [{"path": "a"}, {"path": "b"}]
    assert settings == {"data.sources": sources, "data.one.path": "c", "data.sides": [1, 2], "rate": 1.0}


def test_an_identity_is_settings_inputs_and_the_version_of_the_command(monkeypatch: pytest.MonkeyPatch):
    config = Config(data=Nested(num_workers=3), rate=0.5)
    run = identity("clips train", config, {"data": "abc"})
    assert (run.values["rate"], run.values["inputs.data"]) == (0.5, "abc")
    assert digest(run.values) == digest(dict(reversed(run.values.items())))
    for other in (
        identity("clips train", dataclasses.replace(config, rate=0.6), {"data": "abc"}),
        identity("clips train", config, {"data": "abd"}),
    ):
        assert digest(other.values) != digest(run.values)
        assert other.difference(run.values)
    monkeypatch.setitem(VERSIONS, "clips train", 2)
    now = identity("clips train", config, {"data": "abc"})
    assert now.difference(run.values) == "version is 1 there and 2 now"


def test_a_difference_names_the_first_setting_and_counts_the_others():
    @dataclass(frozen=True, kw_only=True)
    class Settings:
        a: int = 1
        b: tuple[int, ...] = ()
        c: int = 2

    there = {"a": 1, "b": [1], "c": 2, "inputs.gone": "x"}

    def difference(*, may_change: tuple[str, ...] = (), **now: object) -> str | None:
        return Identity(values=now, config=Settings()).difference(there, may_change=may_change)

    assert difference(a=1, b=[1], c=2, **{"inputs.new": "y"}) is None
    assert difference(a=2, b=[2], c=3) == "a is 1 there and 2 now and 2 more"
    assert difference(a=2, b=[1], c=2, may_change=("a",)) is None


def test_recorded_values_that_are_no_settings_are_another_run():
    run = identity("clips train", Config(data=Nested()))
    too_deep = [{"data": 3}, {"data": 3, "data.one.path": "y"}, {"data.one": "x", "data.one.path": "y"}]
    for odd in (*too_deep, {"data.sources": [5]}, {"": 3, ".": 3}):
        assert run.difference(dict(run.values) | odd)
    older = {name: value for name, value in run.values.items() if name != "rate"} | {"gone": 1}
    assert run.difference(older) == "gone is 1 there and None now"  # and the newer rate is none


SOURCES = [{"path": "a"}, {"path": "b"}]
RUNS: dict[str, tuple[type, dict[str, Any]]] = {
    "clips train": (EncoderTrainConfig, {"output": "x", "max_steps": 5, "data": {"sources": [{"path": "a"}]}}),
    "clips recaption": (RecaptionConfig, {"output": "x", "model": "m", "path": "a", "temperature": 0.7}),
    "llava-bridge train": (
        LlavaTrainConfig,
        {"output": "x", "encoder": "e", "llm": "l", "instruct": {"data": SOURCES}, "align": {"data": SOURCES}},
    ),
}


def merge(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    both = {name: merge(one[name], two[name]) for name in one.keys() & two.keys() if isinstance(one[name], dict)}
    return one | two | both


def without_each_field(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Names of fields at all depths of recorded values, and copies of these without the field."""
    if isinstance(values, dict):
        for key, inner in values.items():
            yield f"{name}.{key}".lstrip("."), {other: values[other] for other in values if other != key}
            for below, changed in without_each_field(inner, f"{name}.{key}"):
                yield below, {**values, key: changed}
    elif isinstance(values, list):
        for place, inner in enumerate(values):
            for below, changed in without_each_field(inner, f"{name}[{place}]"):
                yield below, [*values[:place], changed, *values[place + 1 :]]


@pytest.mark.parametrize("command", RUNS)
def test_a_field_that_is_not_recorded_had_its_default(command: str):
    """Of each config class, a manifest without each field in turn, as a version before that field wrote it."""
    kind, given = RUNS[command]
    run = identity(command, from_plain(kind, given))
    required = {*given, "data.sources", "data.sources[0].path", "instruct.data", "align.data", "version"}
    required |= {
        f"{stage}.data[{place}].{name}" for stage in ("align", "instruct") for place in (0, 1) for name in ("path",)
    }
    names = []
    for name, recorded in without_each_field(json.loads(json.dumps(run.values))):
        if name in required:
            assert run.difference(recorded), name
        else:
            assert run.difference(recorded) is None, name
            names.append(name)
    assert len(names) > 20


@pytest.mark.parametrize("command", RUNS)
def test_a_field_of_another_value_is_not_the_default_of_older_runs(command: str):
    kind, given = RUNS[command]
    older = identity(command, from_plain(kind, given)).values
    numbers = {
        name: value
        for name, value in older.items()
        if type(value) in {int, float} and value > 0 and name not in {"version", *given}
    }
    assert numbers
    for name, value in numbers.items():
        other = value / 2 if isinstance(value, float) else value + 1
        nested: Any = other
        for part in reversed(name.split(".")):
            nested = {part: nested}
        try:
            run = identity(command, from_plain(kind, merge(given, nested)))
        except UserError:  # the field needs another one
            continue
        recorded = {known: kept for known, kept in older.items() if known != name}
        assert str(run.difference(recorded)).startswith(f"{name} is {value} there and {other} now"), name


def with_a_newer_field(kind: type) -> type:
    """The config class of a later version."""
    return dataclasses.make_dataclass(
        kind.__name__, [("newer", str, field(default="as before"))], bases=(kind,), frozen=True, kw_only=True
    )


@pytest.mark.parametrize("kind", sorted({*settings_by_kind().values()}, key=lambda kind: kind.__name__))
def test_a_result_is_known_again_when_its_benchmark_gets_a_field(kind: type[BenchmarkConfig]):
    def keys(kind: type[BenchmarkConfig], **fields: object) -> tuple[str, str]:
        return run_benchmarks.result_keys(
            model, entry, kind(name="pope", data="x", **required, **fields), "hash of the model"
        )

    model: Any = SimpleNamespace(config=SimpleNamespace(precision="fp32", output="x"))
    entry: Any = SimpleNamespace(data_hash=lambda config: "hash of the data", further_inputs=lambda *of: {})
    required = {"languages": ("de",)} if "languages" in kind.__dataclass_fields__ else {}
    before, newer = keys(kind), with_a_newer_field(kind)
    assert keys(newer)[0] == before[0]
    assert keys(kind, limit=5)[0] != before[0]
    assert not {*keys(newer, newer="otherwise")} & {*before}
    assert before[0] != before[1]  # results of earlier versions have the second


def test_a_study_is_not_changed_when_a_command_gets_a_field(monkeypatch: pytest.MonkeyPatch):
    study = parse_study({**SMALL, "baseline": None})

    def keys() -> dict[str, str]:
        return {step.name: step.key.key for step in with_keys(build_plan(study).steps)}

    before = keys()
    monkeypatch.setattr(
        Command, "config_class", lambda command, of=Command.config_class: with_a_newer_field(of(command))
    )
    assert keys() == before


def test_settings_that_may_change_on_resume():
    encoder = {"output", "report_to", "logging_steps", "save_steps"}
    encoder |= {"keep_checkpoints_after_training"}
    encoder |= {"allow_changes_on_resume", "micro_batch_size", "distributed", "validation", "license"}
    encoder |= {"data.num_workers", "data.cache_images"}
    encoder |= {"data.max_invalid_ratio", "data.sources[].cache_dir", "data.sources[].max_cache_gb"}
    assert run_only_fields(EncoderTrainConfig) == encoder
    llava = {"output", "report_to", "logging_steps", "save_steps", "num_workers", "max_invalid_ratio", "validation"}
    llava |= {"distributed.num_processes", "distributed.torch_compile"}
    for stage in ("align", "instruct"):
        fields = ["cache_vision_features", "activation_checkpointing", "data[].missing_images"]
        llava |= {f"{stage}.{name}" for name in fields}
    assert run_only_fields(LlavaTrainConfig) == llava


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", ".hidden.json", "talk.json"])
def test_a_file_counts_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a")
    before = directory_hash(tmp_path / name)
    (tmp_path / name).write_text("b")
    assert directory_hash(tmp_path / name) != before


def test_files_behind_symlinked_directories_are_data(tmp_path: Path) -> None:
    big, root = tmp_path / "big", tmp_path / "data"
    (big / "more").mkdir(parents=True)
    root.mkdir()
    (big / "a.jsonl").write_text("a")
    (big / "more/b.jsonl").write_text("b")
    (root / "linked").symlink_to(big)
    (big / "circle").symlink_to(root)
    below = ["linked/a.jsonl", "linked/more/b.jsonl"]
    assert [path.relative_to(root).as_posix() for path in walk_files(root)] == below
    before = directory_hash(root, follow_links=True)
    described = describe_data(ConversationSourceConfig(path=str(root), format="conversations"))
    (big / "more/b.jsonl").write_text("c")
    assert directory_hash(root, follow_links=True) != before
    changed = describe_data(ConversationSourceConfig(path=str(root), format="conversations"))
    assert {name for name in changed if changed[name] != described[name]} == {"linked_hash"}
