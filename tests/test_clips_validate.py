"""Zero-shot retrieval while training goes on."""

from __future__ import annotations

import json
from pathlib import Path

import clips_world
import pytest
import torch

from clips.errors import UserError
from clips.method.captions import sentences
from clips.train import open_data, start_run, train
from clips.training.validate import Validation, recall_at_1


def test_recall_by_hand_ties_counted_in_part():
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.8, 0.0, 0.3]])
    assert recall_at_1(cosines) == pytest.approx((1 + 0.5 + 0) / 3)
    assert recall_at_1(torch.ones(4, 4)) == pytest.approx(0.25)  # a model that sees nothing is at chance


def validated(tmp_path: Path, **fields: object):  # type: ignore[no-untyped-def]
    data = clips_world.write_shards(tmp_path / "data")
    held_out = clips_world.write_shards(tmp_path / "held_out", sizes=(6,))
    validation = {"source": {"path": str(held_out)}, "every": 2, "samples": 5}
    return clips_world.train_config(data, tmp_path / "run", validation=validation, **fields)


def test_the_log_has_recalls_of_every_kind_of_caption(tmp_path: Path):
    train(validated(tmp_path, steps=5, log_every=5, average=0.5))
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 4, 5]
    names = {f"val_{kind}_{way}_r1" for kind in ("web", "partial", "whole") for way in ("t2i", "i2t")}
    assert all(names <= entry.keys() for entry in log)
    assert all(0 <= entry[name] <= 1 for entry in log for name in names)


def test_validation_leaves_no_trace_in_training(tmp_path: Path):
    from safetensors.torch import load_file

    train(validated(tmp_path / "with", steps=4))
    data = tmp_path / "with" / "data"
    train(clips_world.train_config(data, tmp_path / "without", steps=4))
    with_it, without = (
        load_file(f / "open_clip_model.safetensors") for f in (tmp_path / "with" / "run", tmp_path / "without")
    )
    assert all(torch.equal(value, without[name]) for name, value in with_it.items())


@pytest.mark.parametrize("recipe", ["clip", "clipa"])
def test_partial_captions_are_a_sentence_whatever_the_recipe(tmp_path: Path, recipe: str):
    config = validated(tmp_path, recipe={"name": recipe})
    found = Validation(config.validation, start_run(config, open_data(config))).texts
    for part, whole in zip(found["partial"], found["whole"], strict=True):
        assert part in sentences(whole)
        assert len(sentences(whole)) > 1


def test_matching_features_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = validated(tmp_path)
    run = start_run(config, open_data(config))
    found = Validation(config.validation, run)
    assert found.texts["whole"][1] == clips_world.captions(1)["synthetic_caption"]
    assert found.texts["partial"][1].rstrip(".") in clips_world.captions(1)["synthetic_caption"]
    eye = torch.eye(5)
    monkeypatch.setattr(found, "_encode_images", lambda encoder: eye)
    monkeypatch.setattr(
        found, "_encode_texts", lambda encoder, texts: eye if texts is found.texts["web"] else eye.roll(1, 0)
    )
    measured = found.measure(run.encoder)
    assert measured["val_web_t2i_r1"] == measured["val_web_i2t_r1"] == 1
    assert measured["val_whole_t2i_r1"] == 0


def test_a_source_without_usable_samples_is_told(tmp_path: Path):
    config = validated(tmp_path)
    broken = {f"{n:09d}": {**clips_world.sample(n), "png": b"x"} for n in range(3)}
    clips_world.write_shard(tmp_path / "held_out" / "shard-00000.tar", broken)
    with pytest.raises(UserError, match=r"validation\.source: .*none of 3 samples can be used"):
        train(config)
