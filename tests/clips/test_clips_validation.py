"""Zero-shot retrieval during training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import clips_world
import pytest
import torch
from clips_world import is_equal, metrics, tensors_of, torchrun, train, trained
from open_clip.transform import PreprocessCfg, image_transform_v2

from clips.data import decode_image
from clips.errors import UserError
from clips.method.caption_strategies import sentences
from clips.method.clips_model import ClipsModel
from clips.train import EncoderTrainConfig, open_train_dataset, setup_run
from clips.training import validation as validate
from clips.training.validation import CAPTIONS, IMAGE, RetrievalValidation, hits


def test_recall_by_hand_ties_counted_in_part():
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.8, 0.0, 0.3]])
    assert hits(cosines, torch.eye(3), torch.arange(3)).tolist() == [1, 0.5, 0]
    assert hits(cosines[1:], torch.eye(3), torch.tensor([0, 2])).tolist() == [0.5, 0]  # a block of the rows
    nearly = torch.tensor([[1.0], [1.0 + 1e-7]])  # equal features, multiplied in another order
    assert hits(torch.ones(1, 1), nearly, torch.tensor([0])).tolist() == [0.5]
    assert hits(torch.ones(4, 4), torch.ones(4, 4), torch.arange(4)).tolist() == [0.25] * 4  # it sees nothing: chance


def validated(tmp_path: Path, **fields: object):  # type: ignore[no-untyped-def]
    data = clips_world.write_shards(tmp_path / "data")
    held_out = clips_world.write_shards(tmp_path / "held_out", sizes=(6,))
    validation = {"source": {"path": str(held_out)}, "eval_steps": 2, "num_samples": 5}
    return clips_world.train_config(data, tmp_path / "run", validation=validation, **fields)


def test_the_log_has_recalls_of_every_kind_of_caption_and_training_no_trace_of_them(tmp_path: Path):
    fields = {"max_steps": 5, "ema_decay": 0.5, "save_steps": 100}
    train(validated(tmp_path, logging_steps=5, **fields))
    log = metrics(tmp_path / "run")
    assert [entry["step"] for entry in log] == [2, 4, 5]
    names = {f"val_{kind}_{way}_r1" for kind in ("web", "partial", "whole") for way in ("t2i", "i2t")}
    assert all(names <= entry.keys() for entry in log)
    assert all(0 <= entry[name] <= 1 for entry in log for name in names)
    assert is_equal(tmp_path / "run", trained(tmp_path / "data", tmp_path / "without", **fields))


def test_partial_captions_are_a_sentence_for_any_recipe(tmp_path: Path):
    config = validated(tmp_path, recipe={"name": "clipa"})  # which shortens captions otherwise
    (batch,) = RetrievalValidation(config.validation, setup_run(config, open_train_dataset(config))).batches
    assert batch.texts["whole"][1] == clips_world.captions(1)["synthetic_caption"]
    for part, whole in zip(batch.texts["partial"], batch.texts["whole"], strict=True):
        assert part in sentences(whole)
        assert len(sentences(whole)) > 1


def test_a_source_without_usable_samples_is_reported(tmp_path: Path):
    config = validated(tmp_path)
    broken = {f"{n:09d}": {**clips_world.sample(n), "png": b"x"} for n in range(3)}
    clips_world.write_shard(tmp_path / "held_out" / "shard-00000.tar", broken)
    with pytest.raises(UserError, match=r"validation\.source: .*none of 3 samples can be used"):
        train(config)


def test_matching_features_are_found_and_invalid_samples_left_out_of_their_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = validated(tmp_path)
    samples = {f"{n:09d}": clips_world.sample(n) for n in range(6)}
    samples["000000002"]["png"] = b"x"
    clips_world.write_shard(tmp_path / "held_out" / "shard-00000.tar", samples)
    config = dataclasses.replace(config, validation=dataclasses.replace(config.validation, num_samples=6, batch_size=2))
    run = setup_run(config, open_train_dataset(config))
    found = RetrievalValidation(config.validation, run)
    assert [batch.indices.tolist() for batch in found.batches] == [[0, 1], [3], [4, 5]]
    assert found.valid.tolist() == [True, True, False, True, True, True]
    eye = torch.eye(5, run.encoder.model_cfg["embed_dim"], device=run.processes.device)
    batches = zip(eye.split([2, 1, 2]), eye.roll(1, 0).split([2, 1, 2]), strict=True)

    def encode(*_: Any) -> dict[str, torch.Tensor]:
        """Features of which only the whole captions' are those of other images."""
        own, others = next(batches)
        return {**dict.fromkeys((IMAGE, *CAPTIONS), own), "whole": others}

    monkeypatch.setattr(validate, "encode", encode)
    measured = found.measure(run.encoder)
    assert {name: value for name, value in measured.items() if value} == {
        f"val_{kind}_{way}_r1": 1.0 for kind in ("web", "partial") for way in ("i2t", "t2i")
    }


def test_recalls_are_those_of_cosines_in_each_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = validated(tmp_path)
    config = dataclasses.replace(config, validation=dataclasses.replace(config.validation, num_samples=6, batch_size=4))
    run = setup_run(config, open_train_dataset(config))
    generator, width = torch.Generator().manual_seed(3), run.encoder.model_cfg["embed_dim"]
    near = torch.randn(6, width, generator=generator)
    features = {kind: near + 3 * torch.randn(6, width, generator=generator) for kind in (IMAGE, *CAPTIONS)}
    for rows in features.values():  # of different lengths
        rows *= torch.logspace(-2, 2, 6)[torch.randperm(6, generator=generator), None]
    batches = iter([{kind: rows[part] for kind, rows in features.items()} for part in (slice(4), slice(4, 6))])
    monkeypatch.setattr(validate, "encode", lambda *_: next(batches))
    measured = RetrievalValidation(config.validation, run).measure(run.encoder)
    expected = {}
    for kind in CAPTIONS:
        cosines = torch.cosine_similarity(features[IMAGE][:, None], features[kind][None], dim=-1)
        for way, scores in (("i2t", cosines), ("t2i", cosines.t())):
            expected[f"val_{kind}_{way}_r1"] = sum(int(row.argmax()) == own for own, row in enumerate(scores)) / 6
    assert measured == pytest.approx(expected)
    assert any(expected[f"val_{kind}_i2t_r1"] != expected[f"val_{kind}_t2i_r1"] for kind in CAPTIONS)


def test_samples_are_taken_from_the_first_to_the_last_as_the_encoder_will_see_them(tmp_path: Path):
    config = validated(tmp_path)
    run = setup_run(config, open_train_dataset(config))
    (batch,) = RetrievalValidation(config.validation, run).batches  # 5 of 6
    assert [batch.texts["web"][at] for at in (0, -1)] == [clips_world.captions(n)["web_caption"] for n in (0, 5)]
    preprocess = image_transform_v2(PreprocessCfg(**run.encoder.preprocess_cfg), is_train=False)
    for pixels, number in ((batch.images[0], 0), (batch.images[-1], 5)):
        expected = preprocess(decode_image(clips_world.draw_image(number)))
        torch.testing.assert_close(run.normalize(pixels[None].to(run.processes.device))[0].cpu(), expected)


def test_the_exported_average_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen, measure, name = list[torch.Tensor](), RetrievalValidation.measure, "visual.conv1.weight"

    def remember(self: RetrievalValidation, encoder: ClipsModel) -> dict[str, float]:
        seen.append(encoder.clip.state_dict()[name].cpu().clone())
        return measure(self, encoder)

    monkeypatch.setattr(RetrievalValidation, "measure", remember)
    train(validated(tmp_path, max_steps=3, ema_decay=0.5, save_steps=100))
    assert torch.equal(seen[-1], tensors_of(tmp_path / "run")[name])


def test_images_without_a_web_caption_are_left_out(tmp_path: Path):
    config = validated(tmp_path)
    samples = {f"{n:09d}": clips_world.sample(n) for n in range(3)}
    samples["000000001"]["json"] = json.dumps({**clips_world.captions(1), "web_caption": ""}).encode()
    clips_world.write_shard(tmp_path / "held_out" / "shard-00000.tar", samples)
    found = RetrievalValidation(config.validation, setup_run(config, open_train_dataset(config)))
    assert [batch.indices.tolist() for batch in found.batches] == [[0, 2]]


# Shared by processes.

WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp_averaged": {"ema_decay": 0.5},
    "fsdp": {"distributed": {"strategy": "fsdp"}},
    "fsdp_averaged": {"distributed": {"strategy": "fsdp"}, "ema_decay": 0.5},
}


def shared(data: Path, output: Path, **fields: Any) -> EncoderTrainConfig:
    """23 samples in batches of 3, one of them invalid."""
    validation = {"source": {"path": str(data)}, "num_samples": 23, "batch_size": 3}
    return clips_world.train_config(data, output, validation=validation, **fields)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    samples = {f"{n:09d}": clips_world.sample(n) for n in range(23)}
    samples["000000004"]["png"] = b"x"
    clips_world.write_shard(folder / "shard-00000.tar", samples)
    return folder


@pytest.fixture(scope="module")
def two(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """For each way of spreading: what each of two processes measured and encoded with the untrained model."""
    folder = tmp_path_factory.mktemp("two")
    for name, way in WAYS.items():
        shared(data, folder / name, **way)
    driver = Path(__file__).parent / "validation_driver.py"
    process = torchrun(folder / "log", str(driver), *(str(folder / f"{name}.json") for name in WAYS))
    assert process.wait(300) == 0, (folder / "log").read_text()[-5000:]
    return {name: [json.loads((folder / f"{name}.rank{rank}.json").read_text()) for rank in range(2)] for name in WAYS}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_processes_share_the_encoding_and_measure_what_one_measures(data, tmp_path, two, way):
    config = shared(data, tmp_path / "one")
    run = setup_run(config, open_train_dataset(config))
    expected = RetrievalValidation(config.validation, run).measure(run.encoder)
    assert [found["metrics"] for found in two[way]] == [expected, expected]
    assert [found["encoded"] for found in two[way]] == [{"image": 12, "text": 36}, {"image": 10, "text": 30}]
    assert len(set(expected.values())) > 1
    assert any(0 < value < 1 for value in expected.values())


@pytest.mark.slow
def test_a_source_that_one_process_finds_broken_ends_all(data: Path, tmp_path: Path):
    """Rank 1 alone cannot open it: rank 0 does not wait for features that never come."""
    shared(data, tmp_path / "broken")
    driver = Path(__file__).parent / "validation_driver.py"
    process = torchrun(tmp_path / "log", str(driver), "--break", "1", str(tmp_path / "broken.json"))
    assert process.wait(120) != 0
    assert (tmp_path / "log").read_text().count("UserError: held_out.tar: broken on rank 1") >= 2
