"""The CPU cores that a plan states for the images of its GPUs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import clips_world
import pytest

from clips.data.loader import shared_memory
from clips.planning import feeding as feeding_module
from clips.planning.feeding import feeding, measure_core
from clips.planning.plan import plan_stages
from clips.planning.plan_config import TrainPlanConfig
from clips.training.train_config import EncoderTrainConfig


def measured_stage(tmp_path: Path, **fields: object) -> EncoderTrainConfig:
    data = clips_world.write_shards(tmp_path / "data")
    return clips_world.train_config(data, tmp_path / "run", **fields)


def test_a_core_is_measured_on_local_data_and_else_on_a_generated_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = itertools.count(0.0, 0.25)
    monkeypatch.setattr(feeding_module.time, "process_time", lambda: next(clock))
    stage = measured_stage(tmp_path)

    def measured(path: str) -> tuple[float, str]:
        source = dataclasses.replace(stage.data.sources[0], path=path)
        return measure_core(dataclasses.replace(stage, data=dataclasses.replace(stage.data, sources=(source,))), 16)

    assert measured(str(tmp_path / "data")) == (16 / 0.25, "the first samples")
    assert measured(str(tmp_path / "data" / "shard-{00000..00002}.tar")) == (16 / 0.25, "the first samples")
    remote = (16 / 0.25, "a generated photo of 630 px: the images are remote, and not measured")
    assert measured("s3://bucket/{00..99}.tar") == measured("owner/hub-dataset") == remote
    clips_world.write_shard(tmp_path / "bare" / "shard-00000.tar", {"a": {"jpg": b"no image"}})
    assert measured(str(tmp_path / "bare")) == (16 / 0.25, "a generated photo of 630 px")
    assert 40_000 < len(feeding_module._photo()) < 90_000


def test_images_at_urls_are_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clips.data.sources.tables.image_bytes", lambda *_, **__: pytest.fail("an image was read"))
    table = tmp_path / "table.csv"
    table.write_text("url,caption\n" + "https://host/image.jpg,a dog\n" * 96)
    source = {"path": str(table), "format": "table", "web_caption": "caption", "synthetic_caption": "caption"}
    stage = clips_world.train_config(table, tmp_path / "run", data={"sources": [source]}, recipe={"name": "clip"})
    assert measure_core(stage, 16)[1] == "a generated photo of 630 px: the images are at URLs, and not measured"


def test_shared_memory_holds_a_few_batches():
    image = 3 * 224 * 224
    assert shared_memory(0, 1024, 224) == 0
    assert shared_memory(16, 1024, 224) == 4 * 1024 * image  # 48 parts of 64 samples in flight are 3 batches
    assert shared_memory(2, 32, 224) == 7 * 32 * image


@pytest.mark.parametrize(
    ("architecture", "size", "gpus", "batch_size", "most"),
    [("clips-l-14", 84, 1, 256, 16), ("clips-l-14", 224, 1, 256, 16), ("clips-b-16", 224, 8, 2048, 100)],
)
@pytest.mark.slow
def test_the_cores_of_h200s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, size: int, gpus: int, batch_size: int, most: int
):
    """16 cores of 300 images/s feed an H200 that trains L/14; eight with B/16 take more than a core each."""
    monkeypatch.setattr(feeding_module, "measure_core", lambda *_: (300.0, "the first samples"))
    model = {"architecture": architecture, "image_size": size}
    recipe = {"name": "clips", "captioner": {}}
    stage = measured_stage(tmp_path, model=model, recipe=recipe, global_batch_size=batch_size, precision="bf16")
    stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, num_workers=1))
    plan = plan_stages(TrainPlanConfig(train_config="", gpu="h200", num_gpus=gpus), stage)[0]
    speed = plan.speed(plan.layout(gpus))
    assert speed is not None
    rows = feeding(stage, size, speed.samples_per_second, gpus=gpus, batch_size=batch_size // gpus)
    cores = math.ceil(speed.samples_per_second / 300)
    assert gpus <= cores <= most
    assert rows["loader"].startswith(f"{cores} CPU cores for {gpus} GPUs: {speed.samples_per_second:,.0f} images/s")
    assert f"1 for each GPU of the {math.ceil(cores / gpus)} that it needs" in rows["workers"]
    assert f"{gpus * shared_memory(1, 256, size) / 1e9:,.1f} GB of /dev/shm" in rows["workers"]
