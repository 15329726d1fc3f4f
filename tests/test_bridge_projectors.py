"""Projectors: how many tokens they give, what they compute, and that a LLaVA with any of them trains, saves, loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from families import quick_of
from PIL import Image

from clips.errors import UserError
from llava_bridge.inference.generate import answer, load_llava
from llava_bridge.model.build import LlavaParts, build_llava, make_conversation_encoder
from llava_bridge.model.modeling_llava import BridgeLlavaForConditionalGeneration
from llava_bridge.projectors import PROJECTORS, ProjectorConfig, ProjectorShape, build_projector, num_output_tokens

SHAPE = ProjectorShape(patches=16, width=32, llm=24)
SMALL: dict[str, dict[str, Any]] = {
    "mlp2x_gelu": {},
    "mlp3x_gelu": {},
    "linear": {},
    "pixel_shuffle": {"downsample_factor": 2},
    "pool": {"downsample_factor": 2},
    "c_abstractor": {"num_tokens": 9, "num_layers": 1},
    "perceiver": {"num_tokens": 5, "num_layers": 2, "num_heads": 4},
}
TOKENS = {"mlp2x_gelu": 16, "mlp3x_gelu": 16, "linear": 16, "pixel_shuffle": 4, "pool": 4}
TOKENS |= {"c_abstractor": 9, "perceiver": 5}


def config(name: str) -> ProjectorConfig:
    return ProjectorConfig(type=name, **SMALL[name])


def test_every_projector_is_tested() -> None:
    assert PROJECTORS.keys() <= SMALL.keys()


@pytest.mark.parametrize("name", SMALL)
def test_the_stated_number_of_tokens_comes_and_pictures_are_not_mixed(name: str) -> None:
    torch.manual_seed(0)
    module = build_projector(config(name), SHAPE).eval()
    features = torch.randn(3, 16, 32)
    with torch.no_grad():
        found, turned = module(features), module(features[[2, 0, 1]])
    assert found.shape == (3, TOKENS[name], 24)
    assert num_output_tokens(config(name), SHAPE) == TOKENS[name]
    torch.testing.assert_close(found[[2, 0, 1]], turned, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_all_of_it(name: str) -> None:
    torch.manual_seed(0)
    module = build_projector(config(name), SHAPE)
    (module(torch.randn(2, 16, 32)) * torch.randn(2, TOKENS[name], 24)).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in module.parameters())


def test_neighbors_by_hand() -> None:
    from llava_bridge.projectors.modules import _neighbors

    grid = torch.arange(16.0).reshape(1, 16, 1)  # rows 0–3, 4–7, 8–11, 12–15
    assert _neighbors(grid, 2)[0, :, :, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    pool = build_projector(
        ProjectorConfig(type="pool", downsample_factor=4), ProjectorShape(patches=16, width=1, llm=1)
    )
    linear = torch.nn.Identity()
    pool.mlp = linear  # type: ignore[assignment]
    assert pool(grid).item() == 7.5


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"type": "pixel_shufle"}, SHAPE, "projector 'pixel_shufle'.*did you mean 'pixel_shuffle'"),
        (
            {"type": "pixel_shuffle", "downsample_factor": 3},
            SHAPE,
            r"projector\.downsample_factor: expected a divisor of 4, .* got 3",
        ),
        ({"type": "c_abstractor", "num_tokens": 8}, SHAPE, r"projector\.num_tokens: expected a square number up to 16"),
        (
            {"type": "c_abstractor", "num_tokens": 25},
            SHAPE,
            r"projector\.num_tokens: expected a square number up to 16",
        ),
        ({"type": "perceiver", "num_heads": 5}, SHAPE, r"projector\.num_heads: expected a divisor of 32"),
        (
            {"type": "pool"},
            ProjectorShape(patches=16, width=32, llm=24, extra=1),
            "vision_feature_select_strategy: expected default",
        ),
        ({"num_layers": 0}, SHAPE, r"projector\.num_layers: expected 1 or more, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], shape: ProjectorShape, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_projector(ProjectorConfig(**fields), shape)


def small_llava(encoder: Path, llm: Path, name: str, **fields: Any) -> tuple[Any, Any]:
    return build_llava(LlavaParts(encoder=str(encoder), llm=str(llm), projector=config(name), **fields))


@pytest.mark.parametrize("name", quick_of(SMALL, "mlp2x_gelu", "perceiver"))
def test_a_llava_with_it_is_saved_and_loaded(name: str, bridge_encoder: Path, bridge_llm: Path, tmp_path: Path) -> None:
    model, processor = small_llava(bridge_encoder, bridge_llm, name)
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    ids = processor(images=picture, text="<image> What?")["input_ids"]
    assert sum(token == model.config.image_token_id for token in ids[0]) == TOKENS[name]
    assert make_conversation_encoder(model, processor).image_tokens == TOKENS[name]
    expected = answer(model, processor, [picture], ["What?"], max_new_tokens=5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor = load_llava(tmp_path)
    assert isinstance(again, BridgeLlavaForConditionalGeneration) is (name != "mlp2x_gelu")
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert answer(again, processor, [picture], ["What?"], max_new_tokens=5) == expected


@pytest.mark.slow
def test_stock_auto_classes_load_it_after_the_import(bridge_encoder: Path, bridge_llm: Path, tmp_path: Path) -> None:
    model, processor = small_llava(bridge_encoder, bridge_llm, "perceiver")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = (
        "import llava_bridge; from transformers import AutoModelForImageTextToText, AutoProcessor; "
        f"print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r}).model.multi_modal_projector)); "
        f"print(type(AutoProcessor.from_pretrained({str(tmp_path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert "projectors.modules.Perceiver" in done.stdout, done.stderr
    assert "LlavaProcessor" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("first", ["AutoModel", "AutoConfig", "LlavaForConditionalGeneration"])
def test_whatever_of_transformers_is_imported_first(first: str) -> None:
    code = (
        f"import llava_bridge; from transformers import {first}; from transformers import AutoConfig, AutoModel; "
        "assert AutoConfig.for_model('llava_bridge').model_type == 'llava_bridge'; "
        "assert type(AutoConfig.for_model('llava_bridge_encoder')) in AutoModel._model_mapping"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr


def test_several_feature_layers_and_the_class_token(bridge_encoder: Path, bridge_llm: Path) -> None:
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    one, processor = small_llava(
        bridge_encoder, bridge_llm, "linear", vision_feature_layer=[-2, 1], vision_feature_select_strategy="full"
    )
    assert one.config.vision_feature_layer == [-2, 1]
    assert one.model.multi_modal_projector.in_features == 64
    assert one.config.image_seq_length == 17
    pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    tower = one.model.vision_tower
    with torch.no_grad():
        states = tower(pixels, output_hidden_states=True).hidden_states
        features = one.model.get_image_features(pixels, return_dict=True).pooler_output[0]
        expected = one.model.multi_modal_projector(torch.cat([states[-2], states[1]], dim=-1))[0]
    torch.testing.assert_close(features, expected)
    stock, _ = small_llava(bridge_encoder, bridge_llm, "mlp2x_gelu", vision_feature_layer=[-2, -3])
    assert type(stock).__name__ == "LlavaForConditionalGeneration"
    assert stock.model.multi_modal_projector.linear_1.in_features == 64
    with pytest.raises(UserError, match="has no class token, got full"):
        build_llava(
            LlavaParts(
                encoder="timm:test_vit@random",
                llm=str(bridge_llm),
                vision_feature_select_strategy="full",
                image_size=64,
            )
        )


def test_states_of_unlike_shape_are_not_put_side_by_side(bridge_llm: Path, tmp_path: Path) -> None:
    bridge_world.make_encoder(tmp_path / "resnet", bridge_world.RESNET)
    with pytest.raises(UserError, match="differ in grid or width; expected one of them"):
        build_llava(LlavaParts(encoder=str(tmp_path / "resnet"), llm=str(bridge_llm), vision_feature_layer=[-1, -2]))
