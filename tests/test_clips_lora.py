"""Adapters of the towers begin as nothing, train alone, and leave as weights that open_clip reads."""

from __future__ import annotations

import contextlib
from pathlib import Path

import clips_world
import open_clip
import pytest
import torch
from clips_world import stopped_at, tensors_of

from clips.encoder import write_encoder
from clips.errors import UserError
from clips.export import ExportConfig, run_export
from clips.method.clips_model import ClipsModel, build_model
from clips.method.objectives import compute_losses
from clips.method.recipes import RecipeConfig
from clips.model import towers
from clips.model.architectures import LoraConfig, ModelConfig
from clips.model.attention import AdaptableAttention
from clips.model.lora import merge_adapters
from clips.planning.memory import Layout, MemoryModel

RECIPE = RecipeConfig(name="clip")
TOWERS = ("clips-tiny", "clips-tinyvit-tiny")


def built(folder: Path, architecture: str = "clips-tiny", **lora: object) -> tuple[ClipsModel, ClipsModel]:
    """An encoder, and the same with adapters."""
    config = ModelConfig(architecture=architecture, context_length=12, image_size=64)
    plain = build_model(config, RECIPE, seed=1)
    write_encoder(plain, folder)
    config = ModelConfig(**{**vars(config), "pretrained": str(folder), "lora": LoraConfig(**lora)})
    return plain, build_model(config, RECIPE, seed=0)


def batch_of(model: ClipsModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "image": torch.randn(3, 3, model.image_size, model.image_size),
        "web": model.tokenizer(["a red car", "", "two dogs run"]),
    }


def randomize(model: ClipsModel) -> None:
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)


@pytest.mark.parametrize("architecture", TOWERS)
def test_adapters_begin_as_nothing_and_alone_are_trained(tmp_path: Path, architecture: str):
    plain, adapted = built(tmp_path, architecture, r=2)
    batch = batch_of(plain)
    outputs, wanted = adapted.eval()(batch), plain.eval()(batch)
    for name in ("image", "web"):
        torch.testing.assert_close(outputs[name], wanted[name])
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert {name for name in trained if ".lora_" not in name} - {"clip.logit_scale"} <= {"clip.visual.head.proj.weight"}
    compute_losses(adapted.recipe, adapted.train()(batch))["loss"].backward()
    without = [name for name, value in adapted.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []  # a weight without gradient would end a training in two processes


@pytest.mark.parametrize("architecture", TOWERS)
@pytest.mark.parametrize("dora", [False, True])
def test_merged_adapters_are_the_weights_computed_by_hand(tmp_path: Path, architecture: str, dora: bool):
    _, adapted = built(tmp_path, architecture, r=2, lora_alpha=6, use_dora=dora)
    randomize(adapted)
    batch = batch_of(adapted)
    wanted, state = adapted.eval()(batch), dict(adapted.state_dict())
    merge_adapters(adapted)
    assert not any(isinstance(module, AdaptableAttention) for module in adapted.modules())
    found = adapted(batch)
    for name in ("image", "web"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    layers = [name.removesuffix(".lora_A.default.weight") for name in state if name.endswith("lora_A.default.weight")]
    assert {name.split(".")[1] for name in layers} > {"visual"}
    for name in layers if not dora else ():
        down, up = (state[f"{name}.lora_{one}.default.weight"] for one in "AB")
        by_hand = state[f"{name}.base_layer.weight"].clone()
        for row in range(len(by_hand)):
            for rank in range(2):
                by_hand[row] += 3 * up[row, rank] * down[rank]
        merged = adapted.state_dict()[f"{name}.weight".replace("in_proj.weight", "in_proj_weight")]
        torch.testing.assert_close(merged, by_hand)


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_training_writes_weights_that_open_clip_reads(interrupted: bool, tmp_path: Path):
    """By ``clips export`` from a checkpoint, and at the end of the training."""
    data = clips_world.write_shards(tmp_path / "data")
    start = clips_world.trained(data, tmp_path / "start", max_steps=0)
    model = {"architecture": "clips-tiny", "image_size": 16, "context_length": 12, "pretrained": str(start)}
    model["lora"] = {"r": 2, "target_modules": ["c_fc"]}
    config, written = clips_world.train_config(data, tmp_path / "run", model=model), tmp_path / "run"
    with stopped_at(4) if interrupted else contextlib.nullcontext():
        clips_world.train(config)
    if interrupted:
        written = tmp_path / "encoder"
        run_export(ExportConfig(checkpoint=str(tmp_path / "run"), output=str(written)))
    before, after = tensors_of(start), tensors_of(written)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    in_towers = {name for name in changed if name.startswith(("visual.", "transformer."))}
    assert {name for name in before if name.endswith("c_fc.weight")} == in_towers
    read, _, _ = open_clip.create_model_and_transforms(f"local-dir:{written}")
    for name, value in read.state_dict().items():
        assert torch.equal(value, after[name])


def test_the_layers_are_chosen_by_tower_and_name(tmp_path: Path):
    _, adapted = built(tmp_path, r=2, apply_to=("text",), target_modules=("in_proj", "c_proj"))
    layers = {name for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert len(layers) == 2 * len(adapted.clip.transformer.resblocks)
    assert all(".transformer." in name and "visual" not in name for name in layers)
    assert all(value.requires_grad for value in adapted.clip.visual.transformer.parameters())
    assert not adapted.clip.token_embedding.weight.requires_grad


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"lora": {}}, r"model\.lora: expected model\.pretrained"),
        ({"lora": {"r": 0}}, r"lora\.r: expected 1 or more"),
        ({"lora": {"apply_to": []}}, r"lora\.apply_to: expected some of image, text"),
        ({"lora": {}, "lock_text": True}, r"model\.lock_text: expected false with text among model\.lora"),
    ],
)
def test_invalid_settings_name_their_field(tmp_path: Path, model: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        clips_world.train_config(tmp_path, tmp_path / "run", model=model)


def test_towers_without_such_layers_are_rejected(tmp_path: Path):
    with pytest.raises(UserError, match=r"^lora\.target_modules: .* c_fc, c_proj, in_proj, out_proj, got"):
        built(tmp_path, target_modules=("q_proj",))
    with pytest.raises(UserError, match=r"^lora\.target_modules: expected some of a model with linear layers"):
        built(tmp_path, "clips-rn-tiny", apply_to=("image",))
    lora, captions = LoraConfig(r=2), RecipeConfig(name="caption_only")
    with pytest.raises(UserError, match=r"^model\.lora\.apply_to: expected no text with a recipe that has no text"):
        build_model(ModelConfig(context_length=12, lora=lora), captions, seed=0)


def test_the_plan_counts_no_moments_of_frozen_weights(tmp_path: Path):
    layout = Layout(parallel="ddp", count=1, checkpointing=0)
    config = clips_world.train_config(tmp_path, tmp_path / "run")
    model = {"architecture": "clips-tiny", "image_size": 16, "context_length": 12, "pretrained": str(tmp_path)}
    adapted = clips_world.train_config(tmp_path, tmp_path / "lora", model=model | {"lora": {"r": 2}})
    plain, lora = (MemoryModel(one) for one in (config, adapted))
    parts = [one.parts(layout, local=4, at_once=4) for one in (plain, lora)]
    assert parts[1]["optimizer"] == 8 * lora.trained < parts[0]["optimizer"] / 2
    assert parts[1]["parameters"] > parts[0]["parameters"]
    assert lora.step(46, 0).flops < plain.step(46, 0).flops  # no gradients of frozen weights


def test_the_features_of_the_last_token_alone_are_those_of_all(tmp_path: Path):
    _, adapted = built(tmp_path, r=2)
    randomize(adapted)
    tokens = batch_of(adapted)["web"]
    alone, among = (one(adapted.eval().clip, tokens) for one in (towers.encode_text_features, towers.encode_text))
    torch.testing.assert_close(alone, among[0])
