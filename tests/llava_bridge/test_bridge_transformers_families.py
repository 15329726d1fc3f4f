"""Vision models inside other checkpoints of transformers', and what they are planned and preprocessed as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
import transformers

from clips.errors import UserError
from llava_bridge.encoders import build_tower, load_encoder
from llava_bridge.encoders.encoder import VisionEncoder, load_weights
from llava_bridge.encoders.transformers_source import FAMILIES
from llava_bridge.model.image_processing import make_image_processor
from llava_bridge.model.modeling_vision import build_vision_model

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
VISION = {**VIT, "intermediate_size": 48}
QWEN = {"depth": 2, "num_heads": 2, "patch_size": 8}
LLM = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
LLM |= {"bos_token_id": 1, "eos_token_id": 2}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
QWEN_LLM = {**LLM, "num_key_value_heads": 2, "rope_parameters": ROPE}
MLP = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 16}
TEXT = {**LLM, "max_position_embeddings": 16}


def with_text(name: str, vision: dict[str, Any], text: dict[str, Any], prefix: str = "", **fields: Any) -> Any:
    return lambda: getattr(transformers, f"{name}{prefix}")(
        getattr(transformers, f"{name.removesuffix(prefix)}Config")(vision_config=vision, text_config=text, **fields)
    )


GENERATION = "ForConditionalGeneration"
WHOLE: dict[str, tuple[Callable[[], Any], str]] = {
    "metaclip2": (with_text("MetaClip2", VISION, TEXT, "Model"), "vision_model"),
    "tipsv2": (with_text("Tipsv2", {**VIT, "mlp_ratio": 2}, {**TEXT, "hidden_size": 32}, "Model"), "vision_model"),
    "internvl": (with_text("InternVL", VISION, {**LLM, "model_type": "llama"}, GENERATION), "model.vision_tower"),
    "qwen2_vl": (
        with_text("Qwen2VL", {**QWEN, "embed_dim": 32, "hidden_size": 16}, QWEN_LLM, GENERATION),
        "model.visual",
    ),
    "qwen2_5_vl": (
        with_text("Qwen2_5_VL", {**QWEN, **MLP, "fullatt_block_indexes": [1]}, QWEN_LLM, GENERATION),
        "model.visual",
    ),
    "qwen3_vl": (
        with_text(
            "Qwen3VL",
            {**QWEN, **MLP, "num_position_embeddings": 36, "deepstack_visual_indexes": [1]},
            {**QWEN_LLM, "head_dim": 8},
            GENERATION,
        ),
        "model.visual",
    ),
}


def save(model: Any, directory: Path, **processor: Any) -> str:
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(directory)
    settings = {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 32, "width": 32}, **processor}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"transformers:{directory}"


def tower_of(encoder: VisionEncoder) -> Any:
    tower = build_tower(encoder.source, encoder.architecture)
    load_weights(tower, {**dict(tower.named_buffers()), **(encoder.weights or {})}, "here")
    return tower.eval()


def test_resampling_that_no_processor_here_has_is_rejected(tmp_path: Path) -> None:
    spec = save(WHOLE["qwen3_vl"][0](), tmp_path, resample=1)
    with pytest.raises(UserError, match=r"resample: expected 2 \(bilinear\) or 3 \(bicubic\), got 1$"):
        load_encoder(spec, 32)


@pytest.mark.parametrize("name", WHOLE)
def test_the_vision_model_of_a_whole_model_is_read_and_planned(name: str, tmp_path: Path) -> None:
    make, place = WHOLE[name]
    torch.manual_seed(0)
    whole = make()
    spec = save(whole, tmp_path)
    model = build_vision_model(load_encoder(spec, 32))
    pixels = torch.randn(2, 3, 32, 32)
    family = FAMILIES[whole.config.vision_config.model_type]
    with torch.no_grad():
        inner = whole.get_submodule(place).eval()
        expected = family.forward(inner, pixels)[family.default_layer]
        expected = inner.get_submodule(family.final_norm)(expected) if family.final_norm else expected
        found = model(pixels, output_hidden_states=True).hidden_states[family.default_layer]
    kept = (
        [0, *range(family.prefix(whole.config.vision_config), expected.shape[1])] if model.config.class_token else ...
    )
    torch.testing.assert_close(found, expected[:, kept], atol=1e-6, rtol=0)


def test_a_qwen_tower_has_a_default_image_size(tmp_path: Path) -> None:
    spec = save(WHOLE["qwen3_vl"][0](), tmp_path, image_processor_type="Qwen2VLImageProcessor", patch_size=8)
    assert load_encoder(spec).pixels.size == 448  # its processor states numbers of pixels


def test_a_crop_size_is_that_of_the_images_only_if_they_are_cropped(tmp_path: Path) -> None:
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    sizes = {name: {"height": side, "width": side} for name, side in (("size", 32), ("crop_size", 16))}
    spec = save(model, tmp_path, image_processor_type="SiglipImageProcessor", **sizes)
    shown = transformers.AutoImageProcessor.from_pretrained(tmp_path)(bridge_world.noise((50, 20)), return_tensors="pt")
    assert shown["pixel_values"].shape[2:] == (32, 32)
    assert load_encoder(spec).pixels.size == 32


def test_models_that_normalize_pixels_themselves_get_them_from_0_to_1(tmp_path: Path) -> None:
    radio = transformers.RadioModel(transformers.RadioConfig(**VIT, mlp_ratio=2.0, max_img_size=64))
    pixels = load_encoder(save(radio, tmp_path, do_normalize=False)).pixels
    assert (pixels.size, pixels.mean, pixels.std) == (32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


NORMALIZED: dict[str, dict[str, Any]] = {
    "from 0 to 255": {"do_rescale": False, "image_mean": [127.0, 120.0, 110.0], "image_std": [60.0, 70.0, 80.0]},
    "from 0 to 2": {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.8], "image_std": [0.5, 0.4, 0.6]},
    "not at all": {"do_normalize": False, "rescale_factor": 1 / 127.5},
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_pixels_are_those_of_the_models_processor(name: str, tmp_path: Path) -> None:
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    square = {"size": {"height": 32, "width": 32}, "do_center_crop": False}
    ours = make_image_processor(load_encoder(save(model, tmp_path, **square, **NORMALIZED[name])).pixels, "squash")
    theirs, (image,) = transformers.AutoImageProcessor.from_pretrained(tmp_path), bridge_world.noise((50, 20))
    ours, theirs = (read(image, return_tensors="pt")["pixel_values"] for read in (ours, theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_timm_model_in_transformers_format_is_read_as_timms(tmp_path: Path) -> None:
    config = transformers.TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 64})
    model = transformers.TimmWrapperModel(config).eval()
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    settings = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({**stated, "pretrained_cfg": settings}))
    encoder = load_encoder(f"transformers:{tmp_path}")
    assert (encoder.source, encoder.pixels.size, encoder.pixels.mean) == ("timm", 64, (0.1, 0.2, 0.3))
    tower, pixels = tower_of(encoder), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        own = model(pixels, output_hidden_states=True)
        states = list(tower.states(pixels, tower.depth))
    torch.testing.assert_close(states[-1], own.last_hidden_state[:, 1:], atol=1e-5, rtol=1e-5)
    inner = own.hidden_states[-2].flatten(2).transpose(1, 2)
    torch.testing.assert_close(states[-2], inner, atol=1e-5, rtol=1e-5)

    changed = {**stated, "model_args": {"img_size": 64, "act_layer": "relu"}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"config\.json: model_args: expected img_size alone, got act_layer$"):
        load_encoder(f"transformers:{tmp_path}")


def test_a_class_that_transformers_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(transformers.models.qwen2_vl.modeling_qwen2_vl, "Qwen2VisionTransformerPretrainedModel")
    with pytest.raises(UserError, match=r"^encoder: transformers 5\S* has no Qwen2VisionTransformerPretrainedModel;"):
        FAMILIES["qwen2_vl_vision"].model_class()
    rectangle = transformers.InternVLVisionConfig(**{**VISION, "patch_size": [8, 4]})
    with pytest.raises(UserError, match=r"expected a square patch_size, got .8, 4"):
        FAMILIES["internvl_vision"].size_step(rectangle)
