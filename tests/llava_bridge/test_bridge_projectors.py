"""Projectors: how many tokens they give, what they compute, and that a LLaVA with any of them trains, saves, loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from families import quick_of

from clips.errors import UserError
from clips.typed_data import from_plain
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
    "pixel_shuffle_linear": {"downsample_factor": 4},
    "patch_merger": {"downsample_factor": 2},
    "pool": {"downsample_factor": 2},
    "c_abstractor": {"num_tokens": 9},
    "perceiver": {"num_tokens": 5},
}
TOKENS = {"mlp2x_gelu": 16, "mlp3x_gelu": 16, "linear": 16, "pixel_shuffle": 4, "pool": 4}
TOKENS |= {"pixel_shuffle_linear": 1, "patch_merger": 4, "c_abstractor": 9, "perceiver": 5}


def config(name: str) -> ProjectorConfig:
    return ProjectorConfig(type=name, **SMALL[name])


@pytest.mark.parametrize("name", SMALL)
def test_a_projector_gives_the_stated_tokens_mixes_no_images_and_learns_entirely(name: str) -> None:
    torch.manual_seed(0)
    module = build_projector(config(name), SHAPE).eval()
    features = torch.randn(3, 16, 32)
    found, turned = module(features), module(features[[2, 0, 1]])
    assert found.shape == (3, TOKENS[name], 24)
    assert num_output_tokens(config(name), SHAPE) == TOKENS[name]
    torch.testing.assert_close(found[[2, 0, 1]], turned, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0], found[1])
    (found * torch.randn(3, TOKENS[name], 24)).sum().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in module.parameters())


def test_neighbors_by_hand() -> None:
    assert PROJECTORS.keys() <= SMALL.keys()  # every one is tested
    from llava_bridge.projectors.modules import group_neighbors

    grid = torch.arange(16.0).reshape(1, 16, 1)  # rows 0–3, 4–7, 8–11, 12–15
    assert group_neighbors(grid, 2)[0, :, :, 0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    pool = build_projector(
        ProjectorConfig(type="pool", downsample_factor=4), ProjectorShape(patches=16, width=1, llm=1)
    )
    linear = torch.nn.Identity()
    pool.mlp = linear  # type: ignore[assignment]
    assert pool(grid).item() == 7.5


def test_the_projectors_of_2026_compute_what_their_authors_code_does() -> None:
    """Written out anew: nanoVLM's pixel shuffle, and a merger over windows of 2 × 2 patches, normalized one by one."""
    torch.manual_seed(0)
    features = torch.randn(3, 16, 32)
    windows = features.view(3, 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5)  # image, row, column, then inside a window
    linear = build_projector(ProjectorConfig(type="pixel_shuffle_linear"), SHAPE)
    assert [name for name, _ in linear.named_parameters()] == ["proj.weight"]
    torch.testing.assert_close(linear(features), windows.reshape(3, 4, 128) @ linear.proj.weight.T)
    merger = build_projector(ProjectorConfig(type="patch_merger"), SHAPE)
    torch.nn.init.normal_(merger.norm.weight)
    normed = torch.nn.functional.layer_norm(windows, (32,), merger.norm.weight, merger.norm.bias).reshape(3, 4, 128)
    first, _, last = merger.mlp
    assert (first.in_features, first.out_features, last.out_features) == (128, 128, 24)
    torch.testing.assert_close(merger(features), last(torch.nn.functional.gelu(first(normed))))


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"type": "pixel_shufle"}, SHAPE, "projector 'pixel_shufle'.*did you mean 'pixel_shuffle'"),
        (
            {"type": "pixel_shuffle", "downsample_factor": 3},
            SHAPE,
            "downsample_factor: expected a divisor of 4, .* got 3",
        ),
        ({"type": "c_abstractor", "num_tokens": 8}, SHAPE, r"projector\.num_tokens: expected a square number up to 16"),
        (
            {"type": "c_abstractor", "num_tokens": 25},
            SHAPE,
            r"projector\.num_tokens: expected a square number up to 16",
        ),
        (
            {"type": "perceiver"},
            ProjectorShape(patches=16, width=36, llm=24),
            r"projector\.type: .* width, 36, is no multiple of 8",
        ),
        ({"type": "pool"}, ProjectorShape(patches=16, width=32, llm=24, extra=1), "select_strategy: expected default"),
    ],
)
def test_projectors_that_do_not_fit_are_rejected(fields: dict[str, Any], shape: ProjectorShape, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_projector(from_plain(ProjectorConfig, fields), shape)


def small_llava(encoder: Path, llm: Path, name: str, **fields: Any) -> tuple[Any, Any]:
    return build_llava(LlavaParts(encoder=str(encoder), llm=str(llm), projector=config(name), **fields))


@pytest.mark.parametrize("name", quick_of(SMALL, "mlp2x_gelu", "perceiver"))
def test_a_llava_with_it_is_saved_and_loaded(name: str, bridge_encoder: Path, bridge_llm: Path, tmp_path: Path) -> None:
    model, processor = small_llava(bridge_encoder, bridge_llm, name)
    (picture,) = bridge_world.noise((50, 40))
    ids = processor(images=picture, text="<image> What?")["input_ids"]
    assert sum(token == model.config.image_token_id for token in ids[0]) == TOKENS[name]
    assert make_conversation_encoder(model, processor).image_tokens == TOKENS[name]
    expected = answer(model, processor, [picture], ["What?"], max_new_tokens=5)
    again, processor = load_llava(bridge_world.save(tmp_path, model, processor), "cpu")
    assert isinstance(again, BridgeLlavaForConditionalGeneration) is (name != "mlp2x_gelu")
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert answer(again, processor, [picture], ["What?"], max_new_tokens=5) == expected


def test_several_feature_layers_and_the_class_token(bridge_encoder: Path, bridge_llm: Path, tmp_path: Path) -> None:
    (picture,) = bridge_world.noise((32, 32))
    layers: dict[str, Any] = {"vision_feature_layer": [-2, 1], "vision_feature_select_strategy": "full"}
    one, processor = small_llava(bridge_encoder, bridge_llm, "linear", **layers)
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
    no_class_token: dict[str, Any] = {"encoder": "timm:test_vit@random", "image_size": 64}
    with pytest.raises(UserError, match="has no class token, got full"):
        build_llava(LlavaParts(llm=str(bridge_llm), **no_class_token, vision_feature_select_strategy="full"))
    bridge_world.make_encoder(tmp_path / "resnet", bridge_world.RESNET)
    with pytest.raises(UserError, match="differ in grid or width; expected one of them"):
        build_llava(LlavaParts(encoder=str(tmp_path / "resnet"), llm=str(bridge_llm), vision_feature_layer=[-1, -2]))
