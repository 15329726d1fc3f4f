"""LLaVA-NeXT directories: with towers of many kinds, in plain transformers, taken up again, swapped, inspected."""

from __future__ import annotations

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
from llava_bridge.conversion.convert_command import ConvertConfig, run_convert
from llava_bridge.conversion.swap_encoder import SwapConfig, run_swap
from llava_bridge.data import ConversationSourceConfig
from llava_bridge.data.inspect_command import InspectConversationsConfig, run_inspect
from llava_bridge.model.anyres import num_image_tokens
from llava_bridge.model.build import (
    LlavaParts,
    build_llava,
    convert_tower_to_transformers,
    load_llm,
    make_conversation_encoder,
)
from llava_bridge.model.load_llava import load_for_training
from llava_bridge.model.modeling_vision import EncoderVisionModel
from llava_bridge.projectors import ProjectorConfig
from llava_bridge.training.setup import setup_stage
from llava_bridge.training.train_config import LlavaTrainConfig, StageConfig

SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL |= {"image_size": 32, "patch_size": 8}
TOWERS: dict[str, Any] = {
    "clip": lambda: transformers.CLIPVisionConfig(**SMALL),
    "siglip": lambda: transformers.SiglipVisionConfig(**SMALL),
    "dinov2": lambda: transformers.Dinov2Config(**SMALL, mlp_ratio=2),
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bridge_world.make_llm(tmp_path_factory.mktemp("next") / "llm", context=400))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("next")
    found = {"timm": "timm:test_vit@random", "trunk": str(folder / "trunk")}
    bridge_world.make_encoder(folder / "trunk", bridge_world.TRUNK)
    for name, config in TOWERS.items():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config()).save_pretrained(folder / name)
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ).save_pretrained(folder / name)
        found[name] = f"transformers:{folder / name}"
    return found


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, encoders: dict[str, str], llm: str) -> Path:
    """Of a CLIP and the small LLM; it needs nothing of ours."""
    directory = tmp_path_factory.mktemp("next") / "stock"
    model, processor = build_llava(LlavaParts(encoder=encoders["clip"], llm=llm, image_aspect_ratio="anyres"))
    assert convert_tower_to_transformers(model)
    for part in (model, processor):
        part.save_pretrained(directory)
    return directory


def picture(width: int = 50, height: int = 30) -> Image.Image:
    ramp = torch.arange(width * height * 3).reshape(height, width, 3) % 251
    return Image.fromarray(ramp.to(torch.uint8).numpy())


def logits(model: Any, processor: Any) -> torch.Tensor:
    text = make_conversation_encoder(model, processor).prompt(
        [{"role": "user", "content": "<image>\nWhat?"}], [picture()]
    )
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, **processor.image_processor(picture(), return_tensors="pt")).logits


@pytest.mark.parametrize("name", [*TOWERS, "timm", "trunk"])
def test_towers_of_all_kinds(name: str, encoders: dict[str, str], llm: str) -> None:
    model, processor = build_llava(LlavaParts(encoder=encoders[name], llm=llm, image_aspect_ratio="anyres"))
    has_token = model.config.vision_config.class_token
    assert model.config.vision_feature_select_strategy == ("default" if has_token else "full")
    pictures = [picture(), picture(31, 90), picture(80, 80)]
    features = model.get_image_features(**processor.image_processor(pictures, return_tensors="pt")).pooler_output
    assert [len(one) for one in features] == [num_image_tokens(processor, one) for one in pictures]
    before = logits(model, processor)
    assert convert_tower_to_transformers(model) == (name in TOWERS)
    torch.testing.assert_close(logits(model, processor), before, atol=1e-5, rtol=1e-5)


def test_a_tower_whose_config_states_another_size_stays_ours(encoders: dict[str, str], llm: str) -> None:
    """DINOv2 takes pictures of any size, whatever its config says; but transformers would join tiles of that size."""
    parts = {"encoder": encoders["dinov2"], "llm": llm, "image_size": 48}
    square, _ = build_llava(LlavaParts(**parts))
    assert convert_tower_to_transformers(square)
    model, processor = build_llava(LlavaParts(**parts, image_aspect_ratio="anyres"))
    assert not convert_tower_to_transformers(model)
    assert logits(model, processor).isfinite().all()


@pytest.mark.slow
def test_plain_transformers_loads_it_and_asks_it(stock: Path) -> None:
    picture().save(stock.parent / "picture.png")
    script = f"""
import sys
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(stock)!r})
processor = AutoProcessor.from_pretrained({str(stock)!r})
talk = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What?"}}]}}]
text = processor.apply_chat_template(talk, add_generation_prompt=True)
picture = Image.open({str(stock.parent / "picture.png")!r})
inputs = processor(images=picture, text=text, add_special_tokens=False, return_tensors="pt")
made = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
assert not any(name.startswith("llava_bridge") for name in sys.modules)
print(type(model).__name__, type(processor).__name__, type(model.model.vision_tower).__name__)
print(processor.decode(made, skip_special_tokens=True).strip().encode())
"""
    done = bridge_world.run_python("-c", script)
    assert done.returncode == 0, done.stderr
    kinds, said = done.stdout.splitlines()
    assert kinds.split() == ["LlavaNextForConditionalGeneration", "LlavaNextProcessor", "CLIPVisionModel"]
    model, processor = load_llava(stock, device="cpu")
    (own,) = answer(model, processor, [picture()], ["What?"], max_new_tokens=5)
    assert said == str(own.encode())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "pixel_shuffle"])
def test_one_with_a_projector_of_ours_loads_after_the_import(
    name: str, encoders: dict[str, str], llm: str, tmp_path: Path
) -> None:
    projector = ProjectorConfig(type=name)
    model, processor = build_llava(
        LlavaParts(encoder=encoders["clip"], llm=llm, image_aspect_ratio="anyres", projector=projector)
    )
    assert convert_tower_to_transformers(model) == (name == "linear")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "saved")
    code = (
        "import llava_bridge; from transformers import AutoModelForImageTextToText; "
        f"model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / 'saved')!r}); "
        "print(type(model).__name__, type(model.model.multi_modal_projector).__module__)"
    )
    done = bridge_world.run_python("-c", code)
    assert done.stdout.split() == ["BridgeLlavaNextForConditionalGeneration", "llava_bridge.projectors.modules"]
    again, own = load_llava(tmp_path / "saved", device="cpu")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(logits(again, own), logits(model, processor))


def test_taken_up_it_computes_the_same_behind_a_tower_of_ours(stock: Path, tmp_path: Path) -> None:
    theirs, processor = load_llava(stock, device="cpu")
    wanted = logits(theirs, processor)
    # as the hub's LLaVA-NeXTs say it
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "default", 1
    theirs.config.image_seq_length = 576
    for part in (theirs, processor):
        part.save_pretrained(tmp_path / "hub")
    torch.testing.assert_close(logits(*load_llava(tmp_path / "hub", device="cpu")), wanted)
    model, own = load_for_training(str(tmp_path / "hub"), "auto")
    assert isinstance(model.model.vision_tower, EncoderVisionModel)
    assert not any(weight.requires_grad for weight in model.model.vision_tower.parameters())
    assert model.config.image_seq_length == 16
    torch.testing.assert_close(logits(model, own), wanted, atol=1e-6, rtol=1e-6)
    assert convert_tower_to_transformers(model)
    assert model.state_dict().keys() == theirs.state_dict().keys()


def test_a_processor_that_makes_other_tiles_is_refused(stock: Path, tmp_path: Path) -> None:
    model, processor = load_llava(stock, device="cpu")
    model.config.image_grid_pinpoints = [[32, 64]]
    for part in (model, processor):
        part.save_pretrained(tmp_path / "other")
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
        assert len(answer(model, processor, [picture()], ["What?"], max_new_tokens=2)) == 1


def test_it_goes_to_the_original_layout_and_back(stock: Path, tmp_path: Path) -> None:
    """Its own template comes back with its tokenizer."""
    run_convert(ConvertConfig(source=str(stock), output=str(tmp_path / "original"), format="original"))
    run_convert(ConvertConfig(source=str(tmp_path / "original"), output=str(tmp_path / "again")))
    assert torch.equal(*(logits(*load_llava(folder, device="cpu")) for folder in (stock, tmp_path / "again")))
    with pytest.raises(UserError, match="in transformers' layout already"):
        run_convert(ConvertConfig(source=str(stock), output=str(tmp_path / "hf")))


def test_settings_that_do_not_go_together(stock: Path, bridge_talk: Path, tmp_path: Path) -> None:
    data = [ConversationSourceConfig(path=str(bridge_talk / "talk.json"))]

    def config(align: dict[str, Any] | None = None, **fields: Any) -> LlavaTrainConfig:
        stages = {"align": StageConfig(data=data, **(align or {})), "instruct": StageConfig(data=data)}
        return LlavaTrainConfig(output=str(tmp_path / "out"), **stages, **fields)

    new: dict[str, Any] = {"encoder": "timm:x", "llm": "x"}
    config(**new, image_aspect_ratio="anyres", image_grid_pinpoints=[[32, 64]])
    with pytest.raises(UserError, match=r"^align\.image_aspect_ratio: expected null, since all stages"):
        config({"image_aspect_ratio": "squash"}, **new, image_aspect_ratio="anyres")
    with pytest.raises(UserError, match=r"^image_grid_pinpoints: expected none but with image_aspect_ratio anyres"):
        config(**new, image_grid_pinpoints=[[32, 64]])
    with pytest.raises(UserError, match=r"^image_aspect_ratio: expected none beside llava"):
        config(llava=str(stock), image_aspect_ratio="anyres")
    with pytest.raises(
        UserError, match=r"^align\.image_aspect_ratio: expected null, since .*stock has tiles in all stages"
    ):
        setup_stage(config({"image_aspect_ratio": "squash"}, llava=str(stock)), "align", tmp_path)


def test_the_longest_sequence_has_room_for_the_largest_picture(stock: Path, bridge_talk: Path, tmp_path: Path) -> None:
    stage = StageConfig(data=[ConversationSourceConfig(path=str(bridge_talk / "talk.json"))])
    setup = setup_stage(
        LlavaTrainConfig(output="x", llava=str(stock), stages=["align"], align=stage), "align", tmp_path
    )
    assert setup.dataset.max_length == 400  # type: ignore[union-attr]
    model, processor = load_llava(stock, device="cpu")
    model.config.text_config.max_position_embeddings = 8192
    for part in (model, processor):
        part.save_pretrained(tmp_path / "long")
    long = LlavaTrainConfig(output="x", llava=str(tmp_path / "long"), stages=["align"], align=stage)
    assert setup_stage(long, "align", tmp_path).dataset.max_length == 2048 + 88  # type: ignore[union-attr]


def test_results_say_which_tiles(stock: Path) -> None:
    from benchmarks.tasks.mllm.evaluate_task import input_settings

    said = input_settings(load_llava(stock, device="cpu")[1])
    assert said["input_resize"] == "anyres 32x64 64x32 64x64 96x32 32x96"
    assert said["input_resolution"] == 32


def test_inspection_counts_the_tokens_of_each_picture(
    llm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    album = bridge_world.make_album(tmp_path / "album")
    fields: dict[str, Any] = {"path": str(album / "talk.json"), "llm": llm, "image_tokens": 16, "max_length": 400}
    run_inspect(InspectConversationsConfig(**fields, image_aspect_ratio="anyres", image_size=32, num_shown=5))
    printed = capsys.readouterr().out
    assert re.findall(r"<image> × (\d+)", printed) == ["44", "46", "88", "42", "44", "88"]
    assert "0 invalid" in printed
    with pytest.raises(
        UserError, match=r"^image_tokens: expected a square number whose root divides a tile of 336 pixels, got 15"
    ):
        InspectConversationsConfig(**{**fields, "image_tokens": 15}, image_aspect_ratio="anyres")
    rows = json.loads((album / "talk.json").read_text())
    (album / "talk.json").write_text(json.dumps(rows[:4]))
    run_inspect(
        InspectConversationsConfig(
            **{**fields, "max_length": 90}, image_aspect_ratio="anyres", image_size=32, num_shown=0
        )
    )
    assert "invalid     1 × its pictures do not fit into 90 tokens (talk.json 2)" in capsys.readouterr().out
