"""Training of an encoder as it is: its own towers, positions and words, such as OpenAI's CLIP."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import clips_world
import exchange_world as world
import pytest
import torch
from clips_world import train
from PIL import Image
from torch.nn import functional as F

from clips.core.artifact import read_manifest
from clips.encoder import load_encoder
from clips.errors import UserError
from clips.export import ExportConfig, run_export
from clips.interchange.importing import ImportConfig, run_import
from clips.method.clips_model import build_model
from clips.method.recipes import RecipeConfig
from clips.model import architectures, towers
from clips.model.architectures import ModelConfig
from clips.model.tokenizer import EOS, VOCAB_SIZE
from clips.training.mfu import full_length_texts
from clips.training.setup import check_stages
from clips.training.train_config import stage_configs

LENGTH = 24


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """An encoder directory imported from a transformers CLIP with words of its own."""
    world.hf_clip(tmp_path / "hf", text={"max_position_embeddings": LENGTH})
    run_import(ImportConfig(path=str(tmp_path / "hf"), output=str(tmp_path / "stock")))
    return tmp_path / "stock"


def test_training_begins_with_an_encoders_own_text_tower_and_words(stock: Path):
    theirs = load_encoder(stock)
    model = build_model(ModelConfig(architecture=str(stock), pretrained=str(stock)), RecipeConfig(name="clips"), seed=0)
    model.eval()
    pixels, rows = torch.randn(2, 3, 32, 32), theirs.tokenizer(world.TEXTS)
    assert torch.equal(model.tokenizer(world.TEXTS), rows)
    assert model.preprocess_cfg["mean"] == theirs.config["preprocess_cfg"]["mean"]
    with torch.no_grad():
        torch.testing.assert_close(towers.encode_image(model.clip, pixels)[0], theirs.model.encode_image(pixels))
        torch.testing.assert_close(towers.encode_text_features(model.clip, rows), theirs.model.encode_text(rows))
    assert model.captioner is not None
    assert model.captioner.config.vocabulary == VOCAB_SIZE  # it speaks this method's words all the same


def test_long_clip_stretches_the_positions_of_a_stock_text_tower(stock: Path):
    before = load_encoder(stock).model.positional_embedding
    wanted = ModelConfig(
        architecture=str(stock), pretrained=str(stock), context_length=50, text_pos_embed_interpolation="long_clip"
    )
    model = build_model(wanted, RecipeConfig(name="clip"), seed=0)
    after = model.clip.positional_embedding
    assert after.shape == (50, before.shape[1])
    assert torch.equal(after[:20], before[:20])
    torch.testing.assert_close(after[-1], before[-1])
    assert model.tokenizer(["a red square"]).shape == (1, 50)


def test_a_stock_encoder_is_trained_in_stages_resumed_and_keeps_its_words(stock: Path, tmp_path: Path):
    model = {"architecture": str(stock), "pretrained": str(stock)}
    stages = ({"max_steps": 2}, {"max_steps": 2, "model.image_size": 48, "model.context_length": 40})
    data = clips_world.write_shards(tmp_path / "data")
    fields = {
        "validation": {"source": {"path": str(data)}, "eval_steps": 1, "num_samples": 5},
        "save_steps": 1,
        "max_steps": None,
    }
    config = clips_world.train_config(data, tmp_path / "run", model=model, stages=stages, **fields)
    check_stages(stage_configs(config))
    train(config)
    trained, before = load_encoder(tmp_path / "run"), load_encoder(stock)
    assert torch.equal(trained.tokenizer(world.TEXTS)[:, :12], before.tokenizer(world.TEXTS)[:, :12])
    assert trained.tokenizer(world.TEXTS).shape[1] == 40
    assert trained.model.visual.image_size == (48, 48)
    moved = (trained.model.token_embedding.weight - before.model.token_embedding.weight).abs().max()
    assert 0 < moved < 0.1

    last = stage_configs(config)[-1]
    train(dataclasses.replace(last, output=str(tmp_path / "again"), max_steps=1))  # not at all where it ended
    assert load_encoder(tmp_path / "again").config == trained.config


def test_zero_steps_leave_an_encoders_features_as_they_are(stock: Path, tmp_path: Path, capsys):
    """Its preprocessing is kept: the shorter edge resized, bicubic, and a center crop; clips' own towers squash."""
    data = clips_world.write_shards(tmp_path / "data")
    images = [Image.open(io.BytesIO(clips_world.draw_image(n, size))) for n, size in enumerate(((90, 40), (40, 70)))]
    before = load_encoder(stock)
    config = clips_world.train_config(
        data, tmp_path / "run", model={"architecture": str(stock), "pretrained": str(stock)}, max_steps=0
    )
    train(config)
    after = load_encoder(tmp_path / "run")
    assert after.config["preprocess_cfg"] == before.config["preprocess_cfg"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("model: images as those of")]
    assert said == [f"model: images as those of {stock}: {read_manifest(stock)['preprocessing']}"]
    with torch.no_grad():
        features = [
            F.normalize(one.model.encode_image(torch.stack([one.preprocess(image) for image in images])), dim=-1)
            for one in (before, after)
        ]
    torch.testing.assert_close(*features)


def test_a_checkpoint_keeps_the_preprocessing_of_initial_weights_that_are_gone(stock: Path, tmp_path: Path):
    data, cfg = clips_world.write_shards(tmp_path / "data"), load_encoder(stock).config["model_cfg"]
    (tmp_path / "mine.json").write_text(json.dumps(cfg))
    shutil.copytree(stock, tmp_path / "weights")
    fields = {"max_steps": 3, "save_steps": 1, "ema_decay": 0.5, "recipe": {"name": "clip"}}
    model = {"architecture": str(tmp_path / "mine.json"), "pretrained": str(tmp_path / "weights")}
    config = clips_world.train_config(data, tmp_path / "run", model=model, **fields)
    with clips_world.stopped_at(2):
        train(config)
    shutil.rmtree(tmp_path / "weights")
    run_export(ExportConfig(checkpoint=str(tmp_path / "run"), output=str(tmp_path / "exported")))
    assert load_encoder(tmp_path / "exported").config["preprocess_cfg"] == load_encoder(stock).config["preprocess_cfg"]


def test_a_plan_fills_the_texts_of_stock_towers(stock: Path):
    model = build_model(ModelConfig(architecture=str(stock)), RecipeConfig(name="clip"), seed=0)
    rows = full_length_texts(model, 3)
    assert (rows.argmax(dim=1) == LENGTH - 1).all()
    causal = build_model(ModelConfig(text_attention="causal", context_length=12), RecipeConfig(name="clip"), seed=0)
    assert ((full_length_texts(causal, 2) == EOS).int().argmax(dim=1) == 11).all()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"text_attention": "causal"}, "model.text_attention: expected none"),
        ({"architecture": "nowhere/at/all"}, "model.architecture: nowhere/at/all: expected an encoder directory"),
        ({"image_size": 33}, "model.image_size: expected a multiple of the patch size"),
    ],
)
def test_settings_that_do_not_fit_an_encoder(stock: Path, fields: dict[str, Any], line: str):
    with pytest.raises(UserError, match=line):
        architectures.model_cfg(ModelConfig(**({"architecture": str(stock)} | fields)))
