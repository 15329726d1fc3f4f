"""LLaVA-NeXT directories: with towers of many kinds, taken up again, swapped, inspected."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
import transformers
from PIL import Image

from clips.errors import UserError
from llava_bridge import answer, load_llava
from llava_bridge.conversion.swap_encoder import SwapConfig, run_swap
from llava_bridge.data.inspect_command import InspectConversationsConfig, run_inspect
from llava_bridge.model.build import LlavaParts, build_llava, load_llm
from llava_bridge.model.image_processing import num_image_tokens
from llava_bridge.model.llava_files import convert_tower_to_transformers, load_for_training
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.setup import set_trainable_parts, setup_stage
from llava_bridge.training.train_config import AlignConfig, LlavaTrainConfig, StageConfig

SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"image_size": 32, "patch_size": 8}
TOWERS: dict[str, Any] = {
    "clip": lambda: transformers.CLIPVisionConfig(**SMALL),
    "siglip": lambda: transformers.SiglipVisionConfig(**SMALL),
    "dinov2": lambda: transformers.Dinov2Config(**SMALL, mlp_ratio=2),
}


@pytest.fixture(scope="module")
def llm(bridge_long_llm: Path) -> str:
    return str(bridge_long_llm)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("next")
    found = {"timm": "timm:test_vit@random", "trunk": str(folder / "trunk")}
    bridge_world.make_encoder(folder / "trunk", bridge_world.TRUNK)
    for name, config in TOWERS.items():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config()).save_pretrained(folder / name)
        sizes: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        transformers.CLIPImageProcessor(**sizes).save_pretrained(folder / name)
        found[name] = f"transformers:{folder / name}"
    return found


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, str], llm: str) -> Path:
    """Of a CLIP and the small LLM; it needs nothing of ours."""
    directory = tmp_path_factory.mktemp("next") / "stock"
    model, processor = build_llava(LlavaParts(encoder=encoders["clip"], llm=llm, image_aspect_ratio="anyres"))
    assert convert_tower_to_transformers(model)
    return bridge_world.save(directory, model, processor)


def draw_image(width: int = 50, height: int = 30) -> Image.Image:
    ramp = torch.arange(width * height * 3).reshape(height, width, 3) % 251
    return Image.fromarray(ramp.to(torch.uint8).numpy())


def logits(model: Any, processor: Any) -> torch.Tensor:
    return bridge_world.logits(model, processor, draw_image())


@pytest.mark.parametrize("name", [*TOWERS, "timm", "trunk"])
def test_towers_of_all_kinds(name: str, encoders: dict[str, str], llm: str) -> None:
    layer = -2 if name == "dinov2" else None  # its default has the final norm, which transformers' LLaVA does not apply
    parts = LlavaParts(encoder=encoders[name], llm=llm, image_aspect_ratio="anyres", vision_feature_layer=layer)
    model, processor = build_llava(parts)
    has_token = model.config.vision_config.class_token
    assert model.config.vision_feature_select_strategy == ("default" if has_token else "full")
    pictures = [draw_image(), draw_image(31, 90), draw_image(80, 80)]
    features = model.get_image_features(**processor.image_processor(pictures, return_tensors="pt")).pooler_output
    assert [len(one) for one in features] == [num_image_tokens(processor, one) for one in pictures]
    before = logits(model, processor)
    assert convert_tower_to_transformers(model) == (name in TOWERS)
    torch.testing.assert_close(logits(model, processor), before, atol=1e-5, rtol=1e-5)


def test_a_tower_whose_config_states_another_size_keeps_our_class(encoders: dict[str, str], llm: str) -> None:
    """DINOv2 takes images of any size, also other than its config's; but transformers would join tiles of that size."""
    parts: dict[str, Any] = {"encoder": encoders["dinov2"], "llm": llm, "image_size": 48, "vision_feature_layer": -2}
    square, _ = build_llava(LlavaParts(**parts))
    assert convert_tower_to_transformers(square)
    model, processor = build_llava(LlavaParts(**parts, image_aspect_ratio="anyres"))
    assert not convert_tower_to_transformers(model)
    assert logits(model, processor).isfinite().all()


def test_the_config_is_that_of_llava_next_and_a_reload_computes_the_same(stock: Path, tmp_path: Path) -> None:
    theirs, processor = load_llava(stock, device="cpu")
    wanted = logits(theirs, processor)
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "default", 1
    theirs.config.image_seq_length = 576
    bridge_world.save(tmp_path / "hub", theirs, processor)
    torch.testing.assert_close(logits(*load_llava(tmp_path / "hub", device="cpu")), wanted)
    model, own = load_for_training(str(tmp_path / "hub"), "auto")
    assert model.config.image_seq_length == 16
    torch.testing.assert_close(logits(model, own), wanted, atol=1e-6, rtol=1e-6)
    assert convert_tower_to_transformers(model)
    assert model.state_dict().keys() == theirs.state_dict().keys()


def test_a_processor_that_makes_other_tiles_is_rejected(stock: Path, tmp_path: Path) -> None:
    model, processor = load_llava(stock, device="cpu")
    model.config.image_grid_pinpoints = [[32, 64]]
    bridge_world.save(tmp_path / "other", model, processor)
    with pytest.raises(UserError, match=r"^llava: .*other: expected the image_grid_pinpoints of its processor"):
        load_for_training(str(tmp_path / "other"), "auto")


def test_its_llm_and_swaps(stock: Path, bridge_encoder: Path, llm: str, tmp_path: Path) -> None:
    tokens = torch.arange(6)[None]
    assert torch.equal(load_llm(str(stock))(tokens).logits, load_llm(llm)(tokens).logits)
    for fit, kind in (("anyres", "LlavaNext"), ("squash", "Llava")):
        output = str(tmp_path / fit)
        run_swap(SwapConfig(llava=str(stock), encoder=str(bridge_encoder), output=output, image_aspect_ratio=fit))  # type: ignore[arg-type]
        model, processor = load_llava(output, device="cpu")
        assert type(model).__name__ == f"{kind}ForConditionalGeneration"
        assert len(answer(model, processor, [draw_image()], ["What?"], max_new_tokens=2)) == 1


def test_align_has_squares_before_tiles(
    stock: Path, bridge_encoder: Path, llm: str, bridge_album: Path, tmp_path: Path
):
    """As in LLaVA-NeXT's scripts: one square for each image, and no token at the ends of rows."""
    data = bridge_world.source(bridge_album)
    few: dict[str, Any] = {"data": data, "max_steps": 2, "global_batch_size": 4}
    config = LlavaTrainConfig(
        output=str(tmp_path / "out"),
        encoder=str(bridge_encoder),
        llm=llm,
        image_aspect_ratio="anyres",
        num_workers=0,
        precision="fp32",
        align=AlignConfig(**few, image_aspect_ratio="crop", chat_template="plain"),
        instruct=StageConfig(**few, max_length=400),
    )
    before = setup_stage(resolve_inputs(config), "align")
    shown = before.collator([before.dataset[0]])
    assert shown["pixel_values"].shape == (1, 3, 32, 32)
    assert int((shown["input_ids"] == before.model.config.image_token_id).sum()) == 16
    set_trainable_parts(before, config.align, "align")
    trained = {name for name, value in before.model.named_parameters() if value.requires_grad}
    assert {name.split(".")[1] for name in trained} == {"multi_modal_projector"}  # not image_newline
    alone = dataclasses.replace(config, stages=["instruct"], align=AlignConfig())
    after = setup_stage(resolve_inputs(alone), "instruct")
    assert after.collator([after.dataset[0]])["pixel_values"].shape == (1, 3, 3, 32, 32)
    assert not after.square_images
    own = dataclasses.replace(config, encoder=None, llm=None, llava=str(stock), image_aspect_ratio="squash")
    assert setup_stage(resolve_inputs(own), "align").square_images


def test_the_longest_sequence_has_room_for_the_largest_image(stock: Path, bridge_talk: Path, tmp_path: Path) -> None:
    stage = AlignConfig(data=bridge_world.source(bridge_talk))

    def max_length(llava: Path) -> int:
        config = LlavaTrainConfig(output="x", llava=str(llava), stages=["align"], align=stage)
        return setup_stage(resolve_inputs(config), "align").dataset.max_length  # type: ignore[no-any-return, union-attr]

    assert max_length(stock) == 400
    model, processor = load_llava(stock, device="cpu")
    model.config.text_config.max_position_embeddings = 8192
    bridge_world.save(tmp_path / "long", model, processor)
    assert max_length(tmp_path / "long") == 2048 + 88


def test_results_state_the_tiles(stock: Path) -> None:
    from benchmarks.tasks.mllm.llava_input import input_settings

    said = input_settings(load_llava(stock, device="cpu")[1])
    assert said["input_resize"] == "anyres 32x64 64x32 64x64 96x32 32x96"
    assert (said["input_resolution"], said["input_tokens"]) == (32, 88)


def test_inspection_counts_the_tokens_of_each_image(llm: str, tmp_path: Path, capsys: Any) -> None:
    album = bridge_world.make_album(tmp_path / "album")
    fields: dict[str, Any] = {"path": str(album / "talk.json"), "llm": llm, "image_tokens": 16, "max_length": 400}
    run_inspect(InspectConversationsConfig(**fields, image_aspect_ratio="anyres", image_size=32, num_shown=7))
    printed = capsys.readouterr().out
    assert re.findall(r"<image> × (\d+)", printed) == ["44", "46", "88", "42", "44", "88"]
    assert "0 invalid" in printed
    rows = json.loads((album / "talk.json").read_text())
    (album / "talk.json").write_text(json.dumps(rows[:4]))
    run_inspect(
        InspectConversationsConfig(
            **{**fields, "max_length": 90}, image_aspect_ratio="anyres", image_size=32, num_shown=0
        )
    )
    assert "invalid     1 × its images do not fit into 90 tokens (talk.json 2)" in capsys.readouterr().out
