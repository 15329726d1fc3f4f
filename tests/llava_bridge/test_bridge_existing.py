"""A LLaVA that exists gets another encoder, and is trained further."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import original_world as world
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText

from clips.commandline.parsing import parse_config
from clips.errors import UserError
from clips.model.loading import load_pretrained
from clips.model_refs import resolve_model_dir
from clips.typed_data import from_plain, to_plain
from llava_bridge import answer, load_llava
from llava_bridge.conversion.swap_encoder import SwapConfig, run_swap
from llava_bridge.model.build import (
    LlavaParts,
    build_llava,
    load_llm,
    make_conversation_encoder,
)
from llava_bridge.model.llava_files import convert_tower_to_transformers, load_for_training, save_llava
from llava_bridge.model.modeling_vision import EncoderVisionModel
from llava_bridge.projectors import ProjectorConfig
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.train_config import LlavaTrainConfig


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, original_tower: Path, bridge_llm: Path) -> Path:
    """Of a CLIP and the small LLM; it needs nothing of ours, and its weights have the names of files on the Hub."""
    model, processor = build_llava(LlavaParts(encoder=f"transformers:{original_tower}", llm=str(bridge_llm)))
    assert convert_tower_to_transformers(model)
    directory = bridge_world.save(tmp_path_factory.mktemp("existing") / "llava", processor)
    save_llava(model, directory)
    return directory


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, original_parts: world.Parts, original_tower: Path) -> Path:
    """An original checkpoint in the transformers format; its images are padded."""
    folder = tmp_path_factory.mktemp("original")
    return world.convert(world.write_original(original_parts, folder / "original", str(original_tower)), folder / "hf")


def test_the_directory_here_is_a_llava(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llava)
    assert resolve_model_dir(".", "llava") == Path()


def test_the_llm_of_a_llava(llava: Path, bridge_llm: Path) -> None:
    of_llava, itself = load_llm(str(llava)), load_llm(str(bridge_llm))
    tokens = torch.arange(6)[None]
    assert torch.equal(of_llava(tokens).logits, itself(tokens).logits)
    assert type(of_llava) is type(itself)


@pytest.mark.parametrize("which", ["llava", "converted"])
def test_a_llava_computes_the_same_with_our_tower(which: str, request: pytest.FixtureRequest) -> None:
    directory = request.getfixturevalue(which)
    stock, processor = load_llava(directory, device="cpu")
    model, own = load_for_training(str(directory), "auto")
    assert isinstance(model.model.vision_tower, EncoderVisionModel)
    assert not any(weight.requires_grad for weight in model.model.vision_tower.parameters())
    assert own.chat_template == processor.chat_template
    pixels = [
        each.image_processor(world.draw_image(), return_tensors="pt")["pixel_values"] for each in (own, processor)
    ]
    assert torch.equal(*pixels)
    mine, theirs = (bridge_world.logits(*each, world.draw_image()) for each in ((model, own), (stock, processor)))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    assert convert_tower_to_transformers(model)
    assert model.state_dict().keys() == stock.state_dict().keys()


def test_a_llava_with_a_vit_is_read_without_its_pooler(llava: Path, tmp_path: Path) -> None:
    stock, _ = load_llava(llava, device="cpu")
    own = stock.config.vision_config
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size", "image_size")
    stock.config.vision_config = transformers.ViTConfig(**{name: getattr(own, name) for name in names})
    stock.model.vision_tower = transformers.ViTModel(stock.config.vision_config)
    stock._weight_conversions = None  # those of its CLIP
    shutil.copytree(llava, tmp_path / "vit")
    stock.save_pretrained(tmp_path / "vit")
    stock, processor = load_llava(tmp_path / "vit", device="cpu")
    assert stock.model.vision_tower.pooler is not None
    model, _ = load_for_training(str(tmp_path / "vit"), "auto")
    mine, theirs = (bridge_world.logits(each, processor, world.draw_image()) for each in (model, stock))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


def test_a_llava_of_the_hub_is_saved_whole_between_stages(llava: Path, tmp_path: Path) -> None:
    """Its tower is this suite's then, which is saved under its own names, not as CLIP's."""
    model, _ = load_for_training(str(llava), "auto")
    save_llava(model, tmp_path)
    again = load_pretrained(AutoModelForImageTextToText, tmp_path, "again").state_dict()
    expected = model.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


def test_a_template_that_cannot_be_learned_from_needs_another(llava: Path, tmp_path: Path) -> None:
    """It generates answers after a text that it writes before none of them."""
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: Well, ' }}{% endif %}"
    )
    model, processor = load_llava(llava, device="cpu")
    processor.chat_template = processor.tokenizer.chat_template = template
    bridge_world.save(tmp_path / "other", model, processor)
    with pytest.raises(UserError, match=r"chat_template: .*other\); set another chat_template, such as .* vicuna_v1"):
        load_for_training(str(tmp_path / "other"), "auto")
    model, own = load_for_training(str(tmp_path / "other"), "vicuna_v1")
    text = make_conversation_encoder(model, own).prompt([{"role": "user", "content": "<image>\nWhat?"}])
    assert text.endswith("USER: <image>\nWhat? ASSISTANT:")


def test_a_swap_keeps_all_but_encoder_and_projector(llava: Path, bridge_encoder: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "swapped")
    words = [str(llava), "--encoder", str(bridge_encoder), "--output", output, "--projector.type", "mlp3x_gelu"]
    status, _, told = bridge_world.run_cli("swap", *words)
    assert status == 0
    command = f"llava-bridge train --llava {output} --output {output}-trained"
    assert told.endswith(f"the projector is untrained; train it by `{command} --align.data … --instruct.data …`\n")
    (before, old), (after, new) = load_llava(llava, device="cpu"), load_llava(output, device="cpu")
    for part in ("model.language_model", "lm_head"):
        kept = after.get_submodule(part).state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in before.get_submodule(part).state_dict().items())
    assert new.chat_template == old.chat_template
    assert new.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    assert after.config.vision_config.source == "open_clip"
    assert after.config.projector["type"] == "mlp3x_gelu"
    manifest = json.loads((tmp_path / "swapped" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["projector"]) == ("llava", "untrained")
    assert manifest["parents"].keys() == {"llava", "encoder"}
    assert len(answer(after, new, [world.draw_image()], ["What?"], max_new_tokens=2)) == 1
    status, _, told = bridge_world.run_cli("swap", *words)
    assert (status, told) == (2, f"llava-bridge: {output}: exists already; choose another output or remove it\n")


@pytest.mark.parametrize("stages", [["align", "instruct"], ["align"], ["instruct"]])
def test_a_swap_says_how_to_train_as_the_original_was_trained(
    llava: Path, bridge_encoder: Path, bridge_talk: Path, stages: list[str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "stages": stages,
        "align": {"data": [{"path": str(bridge_talk), "repeats": 2.0}], "learning_rate": 0.003},
        "instruct": {"data": [{"path": str(bridge_talk)}], "max_steps": 3, "lora": {"r": 4}},
    }
    trained = from_plain(LlavaTrainConfig, {**settings, "output": "a", "encoder": "b c", "llm": "d"})
    original = Path(shutil.copytree(llava, tmp_path / "an original"))
    (original / "manifest.json").write_text(json.dumps({"kind": "llava", "config": to_plain(trained)}))
    output = str(tmp_path / "swapped")
    status, _, told = bridge_world.run_cli("swap", str(original), "--encoder", str(bridge_encoder), "--output", output)
    assert status == 0
    *_, told, command = told.splitlines()
    if "align" not in stages:  # its projector was trained before
        assert command.endswith(" --align.data … --instruct.data …`")
        return
    assert told == f"{output}: the projector is untrained; with data, steps and rates of {original}:"
    _, _, *words = shlex.split(command)
    assert not any("group_by_modality_length" in word for word in words)  # a default
    found = parse_config(LlavaTrainConfig, words, prog="llava-bridge train")
    assert (found.llava, found.output, found.stages) == (output, f"{output}-trained", stages)
    assert [found.stage(name) for name in stages] == [trained.stage(name) for name in stages]


def test_training_starts_from_a_swap(llava: Path, bridge_encoder: Path, tmp_path: Path) -> None:
    """`encoder: NEW` and `llm: LLAVA` are the same start as the swapped directory, weight for weight."""
    run_swap(SwapConfig(llava=str(llava), encoder=str(bridge_encoder), output=str(tmp_path / "swapped"), seed=3))
    swapped, _ = load_for_training(str(tmp_path / "swapped"), "auto")
    assembled, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(llava), seed=3))
    expected = assembled.state_dict()
    assert swapped.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in swapped.state_dict().items())


def test_a_swap_keeps_the_precision_of_the_llm_and_the_bits_of_the_encoder(
    llava: Path, original_tower: Path, original_parts: world.Parts, tmp_path: Path
) -> None:
    model, processor = load_llava(llava, device="cpu")
    half, output = bridge_world.save(tmp_path / "half", model.to(torch.bfloat16), processor), str(tmp_path / "swapped")
    run_swap(SwapConfig(llava=str(half), encoder=f"transformers:{original_tower}", output=output))
    weights = bridge_world.weights(Path(output))
    assert {value.dtype for name, value in weights.items() if name.startswith("language_model")} == {torch.bfloat16}
    assert {value.dtype for name, value in weights.items() if "vision" in name or "proj" in name.split(".")[0]} == {
        torch.float32
    }
    again, _ = load_for_training(output, "auto")
    for name, value in original_parts.tower.state_dict().items():
        assert torch.equal(again.model.vision_tower.state_dict()[f"tower.model.{name}"], value), name


def test_settings_next_to_a_llava_are_checked(llava, original_parts, bridge_talk, tmp_path):
    stage = bridge_world.stage(bridge_talk)

    def config(llava: Path, **fields: Any) -> LlavaTrainConfig:
        return LlavaTrainConfig(output=str(tmp_path / "out"), llava=str(llava), align=stage, instruct=stage, **fields)

    assert resolve_inputs(config(llava)).parents == {"llava": str(llava)}
    beside: dict[str, Any] = {"encoder": "timm:x", "llm": "x", "image_size": 32, "vision_feature_layer": -1}
    beside |= {"vision_feature_select_strategy": "full", "projector": ProjectorConfig(type="linear")}
    for name, value in beside.items():
        with pytest.raises(UserError, match=rf"^{name}: expected none with llava"):
            config(llava, **{name: value})
    original = world.write_original(original_parts, tmp_path / "original", "clip")
    (tmp_path / ".began.work").mkdir()
    (tmp_path / ".began.work" / "config.yaml").touch()
    for wrong, match in (
        (tmp_path / "no", "no such directory"),
        (
            tmp_path / "began",
            "began is not finished; `llava-bridge train --config .*/.began.work/config.yaml`",
        ),
        (bridge_talk, "no LLaVA in the transformers format"),
        (original, "`llava-bridge convert`"),
    ):
        with pytest.raises(UserError, match=f"^llava: .*{match}"):
            resolve_inputs(config(wrong))


@pytest.mark.slow
def test_swapped_aligned_and_converted_instructed(llava, converted, bridge_encoder, bridge_talk, tmp_path):
    run_swap(SwapConfig(llava=str(llava), encoder=str(bridge_encoder), output=str(tmp_path / "swapped")))
    fields: dict[str, Any] = {
        "align": bridge_world.align_stage(bridge_talk, max_length=128),
        "instruct": bridge_world.stage(bridge_talk, max_length=512, learning_rate=1e-3),
    }
    runs = {"aligned": (tmp_path / "swapped", ["align"]), "instructed": (converted, ["instruct"])}
    for name, (start, stages) in runs.items():
        bridge_world.config_file(tmp_path, name, bridge_talk, llava=str(start), stages=stages, **fields)
    bridge_world.trained_alone(*(tmp_path / f"{name}.yaml" for name in runs))
    for name, (start, _) in runs.items():
        before, after = (load_llava(directory, device="cpu")[0] for directory in (start, tmp_path / name))
        moved = {
            part.split(".")[1] if part.startswith("model") else part
            for part, value in before.state_dict().items()
            if not torch.equal(value, after.state_dict()[part])
        }
        projector, llm = "multi_modal_projector", {"language_model", "lm_head.weight"}
        assert moved == ({projector} if name == "aligned" else {projector, *llm})
    model, processor = load_llava(tmp_path / "instructed", device="cpu")
    assert isinstance(model.model.vision_tower, transformers.CLIPVisionModel)
    assert processor.image_processor.do_pad
    assert len(answer(model, processor, [Image.new("RGB", (40, 20), "red")], ["What?"], max_new_tokens=3)) == 1
