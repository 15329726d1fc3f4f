"""What a run is: the fields that say how it is carried out are marked where they are declared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from clips.core.identity import RUN_ONLY, VERSIONS, difference, digest, identity, result_settings, run_only_fields
from clips.training.train_config import EncoderTrainConfig as EncoderTrainConfig
from clips.typed_data import to_plain
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
    found = identity("clips train", config, {"data": "abc"})
    assert (found["rate"], found["inputs.data"]) == (0.5, "abc")
    assert digest(found) == digest(dict(reversed(found.items())))
    for other in (
        identity("clips train", dataclasses.replace(config, rate=0.6), {"data": "abc"}),
        identity("clips train", config, {"data": "abd"}),
    ):
        assert digest(other) != digest(found)
        assert difference(found, other)
    monkeypatch.setitem(VERSIONS, "clips train", 2)
    assert difference(found, identity("clips train", config, {"data": "abc"})) == "version is 1 there and 2 now"


def test_a_difference_names_the_first_setting_and_counts_the_others():
    there = {"a": 1, "b": [1], "c": 2, "inputs.gone": "x"}
    assert difference(there, {"a": 1, "b": (1,), "c": 2, "inputs.new": "y"}) is None
    assert difference(there, {"a": 2, "b": [2]}) == "a is 1 there and 2 now and 2 more"
    assert difference(there, {"a": 2, "b": [1], "c": 2}, may_change=("a",)) is None


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
