"""Encoder and LLM become a LLaVA that stock transformers loads, and that answers in batches as alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clips.errors import UserError
from llava_bridge import answer, load_llava
from llava_bridge.model.build import LlavaParts, build_llava, load_llm, load_tokenizer


@pytest.fixture(scope="module")
def llava(bridge_encoder: Path, bridge_llm: Path) -> tuple[Any, Any]:
    return build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm)))


@pytest.fixture(scope="module")
def saved(llava: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llava")
    for part in llava:
        part.save_pretrained(directory)
    return directory


def pictures(count: int) -> list[Image.Image]:
    noise = torch.Generator().manual_seed(1)
    arrays = [torch.randint(0, 256, (30, 50, 3), generator=noise, dtype=torch.uint8).numpy() for _ in range(count)]
    return [Image.fromarray(array) for array in arrays]


def test_parts_are_the_given_ones(llava: tuple[Any, Any], bridge_encoder: Path, bridge_llm: Path) -> None:
    model, processor = llava
    llm = load_llm(str(bridge_llm))
    for name, weight in llm.base_model.state_dict().items():
        assert torch.equal(weight, model.model.language_model.state_dict()[name]), name
    assert torch.equal(model.lm_head.weight, llm.lm_head.weight)
    assert not any(weight.requires_grad for weight in model.model.vision_tower.parameters())
    assert model.config.vision_feature_layer == -2
    assert model.config.image_seq_length == 16
    assert model.generation_config.eos_token_id == [processor.tokenizer.convert_tokens_to_ids("</s>")]


def test_tied_embeddings_stay_tied(bridge_encoder: Path, bridge_llm: Path, tmp_path: Path) -> None:
    shutil.copytree(bridge_llm, tmp_path / "tied")
    llm = load_llm(str(bridge_llm))
    llm.config.tie_word_embeddings = True
    llm.lm_head.weight = llm.get_input_embeddings().weight
    llm.save_pretrained(tmp_path / "tied")
    model, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "tied")))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, llm.get_input_embeddings().weight)


def test_stock_processor_and_model_agree_on_the_number_of_picture_tokens(llava: tuple[Any, Any]) -> None:
    model, processor = llava
    inputs = processor(images=pictures(1), text="<image> what?", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 16
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert model(**inputs).logits.shape[-1] == len(processor.tokenizer)


def test_answers_in_batches_equal_answers_alone(saved: Path) -> None:
    model, processor = load_llava(saved)
    images: list[Any] = [*pictures(3), None]
    prompts = ["What?", "Is there a very long question about colors here?", "Red or green?", "No picture: what?"]
    together = answer(model, processor, images, prompts, max_new_tokens=6, batch_size=4)
    alone = [
        answer(model, processor, [image], [prompt], max_new_tokens=6)[0]
        for image, prompt in zip(images, prompts, strict=True)
    ]
    assert together == alone
    assert any(together)
    with pytest.raises(UserError, match="1 pictures but not as many"):
        answer(model, processor, [pictures(1)[0]], ["<image> and <image>"])


def test_an_answer_ends_at_the_end_token(saved: Path) -> None:
    model, processor = load_llava(saved)
    end = processor.tokenizer.convert_tokens_to_ids("</s>")
    calls: list[int] = []

    def force_end(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls.append(ids.shape[1])
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([end]), 0.0)

    assert answer(model, processor, pictures(1), ["What?"], max_new_tokens=50, logits_processor=[force_end]) == [""]
    assert len(calls) == 1


def test_a_fresh_process_loads_it_with_stock_transformers(saved: Path, llava: tuple[Any, Any], tmp_path: Path) -> None:
    script = f"""
import sys, llava_bridge
assert "torch" not in sys.modules, "import llava_bridge is light"
from transformers import AutoModelForImageTextToText, AutoProcessor
import torch
model = AutoModelForImageTextToText.from_pretrained({str(saved)!r})
AutoProcessor.from_pretrained({str(saved)!r})
torch.save(model.state_dict(), {str(tmp_path / "state.pt")!r})
print(type(model).__name__, type(model.model.vision_tower).__name__)
"""
    done = bridge_world.run_python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["LlavaForConditionalGeneration", "EncoderVisionModel"]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    own = llava[0].state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in state.items())


def test_feature_layers(bridge_encoder: Path, bridge_llm: Path) -> None:
    model, _ = build_llava(LlavaParts(encoder="timm:tiny_vit_5m_224@random", llm=str(bridge_llm), image_size=64))
    assert (model.config.vision_feature_layer, model.config.image_seq_length) == (-1, 4)
    with pytest.raises(UserError, match="only -1, the last feature map, got -2"):
        build_llava(
            LlavaParts(
                encoder="timm:tiny_vit_5m_224@random", llm=str(bridge_llm), image_size=64, vision_feature_layer=-2
            )
        )
    with pytest.raises(UserError, match="vision_feature_layer: this encoder has -4 to 3, got 7"):
        build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm), vision_feature_layer=7))


def test_an_llm_without_picture_and_padding_tokens_gets_them(shared: Path, bridge_encoder: Path) -> None:
    llm = str(shared / "models/stories15M")
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=llm))
    assert len(processor.tokenizer) == model.get_input_embeddings().num_embeddings == 32002
    assert model.config.text_config.vocab_size == 32002
    old = load_llm(llm).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:32000], old)
    assert processor.tokenizer.pad_token_id not in {processor.tokenizer.eos_token_id, None}
    (text,) = answer(model, processor, [None], ["Tell me about a girl."], max_new_tokens=5)
    assert text


def test_incomplete_llms_are_refused_in_one_line(bridge_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_tokenizer(str(tmp_path))
    for missing, match in (("tokenizer.json", "has no tokenizer"), ("model.safetensors", "has no weights")):
        copy = tmp_path / missing
        shutil.copytree(bridge_llm, copy)
        (copy / missing).unlink()
        with pytest.raises(UserError, match=match):
            load_tokenizer(str(copy))
    unknown = tmp_path / "unknown"
    shutil.copytree(bridge_llm, unknown)
    (unknown / "config.json").write_text(json.dumps({"model_type": "nothing_known"}))
    with pytest.raises(UserError, match=r"llm: .* cannot be loaded"):
        load_llm(str(unknown))


def spoil(directory: Path, fault: str) -> None:
    """Give the weights of ``directory`` a fault."""
    path = directory / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if fault == "lacking":
        del weights[name]
    else:
        weights[name] = torch.zeros(3, 5)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("truncated", r"cannot be loaded \(.*incomplete"),
        ("lacking", r"lacks weights that its config\.json needs: '.*mlp\.down_proj\.weight'$"),
        ("unlike", r"'.*mlp\.down_proj\.weight' has shape \(3, 5\), not \(32, 88\)"),
    ],
)
def test_no_weight_is_ever_made_up(
    fault: str, match: str, bridge_llm: Path, saved: Path, tmp_path: Path, capfd: Any
) -> None:
    for directory, load in ((bridge_llm, lambda path: load_llm(str(path))), (saved, load_llava)):
        copy = tmp_path / directory.name
        shutil.copytree(directory, copy)
        spoil(copy, fault)
        capfd.readouterr()
        with pytest.raises(UserError, match=match):
            load(copy)
        assert "MISSING" not in capfd.readouterr().err


def test_llava_directories_are_checked(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json in it"):
        load_llava(tmp_path)
    shutil.copytree(saved, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights here"):
        load_llava(tmp_path / "copy")
