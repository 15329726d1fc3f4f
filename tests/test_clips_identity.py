"""What a run is: the fields that say how it is carried out are marked where they are declared."""

from __future__ import annotations

from dataclasses import dataclass, field

from clips.core.identity import RUN_ONLY, result_settings, run_only_fields
from clips.plain import plain
from clips.training.config import TrainConfig as EncoderTrainConfig
from llava_bridge.asking.describe import DescribeConfig
from llava_bridge.training.config import TrainConfig as LlavaTrainConfig


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


def test_only_what_decides_is_left_of_a_config():
    config = Config(data=Nested(sources=(Source(path="a"), Source(path="b")), one=Source(path="c"), num_workers=3))
    settings = result_settings(plain(config), Config)
    sources = [{"path": "a"}, {"path": "b"}]
    assert settings == {"data.sources": sources, "data.one.path": "c", "data.sides": [1, 2], "rate": 1.0}
    assert result_settings(plain(config), Config, besides=("data",)) == {"rate": 1.0}


def test_what_the_trainings_may_go_on_with():
    encoder = {"output", "track", "logging_steps", "save_steps", "keep_checkpoints", "keep_after_training"}
    encoder |= {
        "may_change",
        "micro_batch_size",
        "scale",
        "validation",
        "licence",
        "data.num_workers",
        "data.cache_images",
    }
    encoder |= {"data.max_invalid_ratio", "data.sources[].cache", "data.sources[].cache_gb"}
    assert run_only_fields(EncoderTrainConfig) == encoder
    llava = {"output", "logging_steps", "save_steps", "num_workers", "max_invalid_ratio", "launch.processes"}
    for stage in ("pretrain", "align", "instruct"):
        fields = ("keep_features", "activation_checkpointing", "data[].missing_images", "data[].cache_gb")
        llava |= {f"{stage}.{name}" for name in fields}
    assert run_only_fields(LlavaTrainConfig) == llava
    assert run_only_fields(DescribeConfig) == {"images", "output", "batch_size"}
