"""Training in stages: one config, one command, each stage from the weights of the one before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import clips_world
import pytest
from clips_world import tensors_of, train

from clips.encoder import load_encoder
from clips.errors import UserError
from clips.training.setup import check_stages
from clips.training.train_config import stage_configs

STAGES = (
    {"model.image_size": 16, "max_steps": 2, "optimizer.learning_rate": 1e-3},
    {
        "model": {"image_size": 32},
        "max_steps": 1,
        "global_batch_size": 3,
        "optimizer": {"learning_rate": 1e-4, "warmup_ratio": 0.0},
    },
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips_world.write_shards(tmp_path_factory.mktemp("data") / "train")


def test_stages_run_in_order_and_resume(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = clips_world.train_config(data, tmp_path / "run", max_steps=None, stages=STAGES)
    one, two = stage_configs(config)
    assert (one.seed, two.seed) == (config.seed, config.seed + 1)
    train(one)
    first, last = tmp_path / "run.stages" / "1", tmp_path / "run"
    stamp = (first / "manifest.json").stat().st_mtime_ns
    train(config)
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    assert load_encoder(last).preprocess.transforms[1].size == (32, 32)
    manifest = json.loads((last / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["parents"]["pretrained"]["path"] == str(first)
    assert manifest["samples_seen"] == 3
    card = (last / "README.md").read_text(encoding="utf-8")
    for row in ("samples seen | 11 in 3 steps", "begun from | random weights"):
        assert f"| {row} |" in card
    assert "| … stage 1 | 8 in 2 steps of 4, images of 16 px |" in card
    assert "| … stage 2 | 3 in 1 steps of 3, images of 32 px |" in card
    assert "| samples seen | 8 in 2 steps of 4 |" in (first / "README.md").read_text(encoding="utf-8")
    assert not (last / "open_clip_model.safetensors").samefile(first / "open_clip_model.safetensors")
    before, after = tensors_of(first), tensors_of(last)
    moved = max(float((before[name] - after[name]).abs().max()) for name in before if "positional" not in name)
    assert 0 < moved < 2e-3  # one step of 1e-4 away from the first stage, not from a fresh model
    capsys.readouterr()
    train(config)
    assert capsys.readouterr().err.count("nothing to do") == 2


def test_a_stage_gives_its_rate_and_warmup_in_either_way(tmp_path: Path):
    stages = (
        {"max_steps": 9, "optimizer.base_learning_rate": 8e-6, "optimizer.warmup_samples": 8},
        {"max_steps": 9, "optimizer": {"learning_rate": 1e-4}},
        {"max_steps": 9, "optimizer.warmup_ratio": 0.5},
    )
    optimizer = {"base_learning_rate": 4e-6, "adam_beta2": 0.9}
    config = clips_world.train_config(tmp_path, tmp_path / "run", max_steps=None, optimizer=optimizer, stages=stages)
    found = [stage.optimizer for stage in stage_configs(config)]
    assert [one.peak_rate(4) for one in found] == pytest.approx([1.25e-7, 1e-4, 6.25e-8])
    assert [one.warmup_steps(9, 4) for one in found] == [2, 0, 4]
    assert {one.adam_beta2 for one in found} == {0.9}
    with pytest.raises(UserError, match=r"stages\[1\]: optimizer.warmup_samples: expected fewer than the 8 samples"):
        stage_configs(dataclasses.replace(config, stages=({"max_steps": 2, "optimizer.warmup_samples": 8},)))


def test_a_stage_may_have_another_name_for_the_same_towers(data: Path, tmp_path: Path):
    model = {"architecture": "ViT-B-16-SigLIP", "context_length": 12}
    stages = (
        {"max_steps": 1},
        {"max_steps": 1, "model.architecture": "ViT-B-16-SigLIP-384", "model.context_length": 20},
    )
    config = clips_world.train_config(data, tmp_path / "run", max_steps=None, model=model, stages=stages)
    check_stages(stage_configs(config))


def test_stages_are_checked_against_the_processes_unless_they_are_finished(data, tmp_path, monkeypatch):
    groups = {"distributed": {"strategy": "fsdp", "shard_group_size": 4}}
    stages = ({"max_steps": 1}, {"max_steps": 1, "global_batch_size": 6}, {"max_steps": 1, **groups})
    configs = stage_configs(clips_world.train_config(data, tmp_path / "run", max_steps=None, stages=stages))
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"stages\[2\]: global_batch_size: expected a multiple of the 4 processes"):
        check_stages(configs)
    (tmp_path / "run.stages" / "2").mkdir(parents=True)
    (tmp_path / "run.stages" / "2" / "manifest.json").write_text("{}")
    check_stages(configs)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"stages\[3\]: distributed.shard_group_size: expected a divisor of the 2"):
        check_stages(configs)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"model.image_sise": 32}, r"stages\[2\].*image_sise"),
        ({"modle.image_size": 32}, r"stages\[2\]: unknown field 'modle.image_size'"),
        ({"global_batch_size": 0}, r"stages\[2\]: global_batch_size: expected an integer of at least 1, got 0"),
        ({"model.image_size": 24}, r"stages\[2\]: model\.image_size: expected a multiple of the patch size 16, got 24"),
        ({"model.architecture": "clips-s-16"}, r"stages\[2\]: model: expected the towers of the stage before"),
        ({"data.sources": [{"path": "gone.tar"}]}, r"stages\[2\]: gone\.tar: no such file"),
        ({"max_steps": 2, "max_samples": 8}, r"stages\[2\]: max_steps, max_samples, num_epochs: expected exactly one"),
    ],
)
def test_an_invalid_stage_is_reported_before_the_first_begins(data, tmp_path, stage, message):
    stages = ({"max_steps": 1}, {"max_steps": 1, **stage})
    with pytest.raises(UserError, match=message):
        train(clips_world.train_config(data, tmp_path / "run", max_steps=None, stages=stages))
    assert not (tmp_path / "run.stages").exists()
