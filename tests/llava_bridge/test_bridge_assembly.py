"""Encoder and LLM become a LLaVA that stock transformers loads, and that answers in batches as alone."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import bridge_world
import original_world
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from clips.errors import UserError
from llava_bridge import answer, load_llava
from llava_bridge.conversion.convert_command import ConvertConfig, run_convert
from llava_bridge.inference.generate import encode_prompt
from llava_bridge.model.build import LlavaParts, build_llava, load_llm, load_tokenizer, make_conversation_encoder
from llava_bridge.model.llava_files import convert_tower_to_transformers
from llava_bridge.projectors import ProjectorConfig


@pytest.fixture(scope="module")
def llava(bridge_encoder: Path, bridge_llm: Path) -> tuple[Any, Any]:
    return build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(bridge_llm)))


@pytest.fixture(scope="module")
def saved(llava: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bridge_world.save(tmp_path_factory.mktemp("llava"), *llava)


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
    inputs = processor(images=bridge_world.noise((50, 30)), text="<image> what?", return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 16
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert model(**inputs).logits.shape[-1] == len(processor.tokenizer)


def test_a_model_in_bf16_reads_the_pixels_of_its_processor(saved: Path) -> None:
    """They are float32, as for any LLaVA of transformers."""
    model, processor = load_llava(saved, "cpu")
    inputs = processor(images=bridge_world.noise((50, 30)), text="<image> what?", return_tensors="pt")
    expected = model(**inputs).logits
    found = model.bfloat16()(**inputs).logits
    assert found.dtype == torch.bfloat16
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_an_own_output_layer_is_kept_although_the_config_ties(
    original_parts: Any, original_tower: Path, bridge_encoder: Path, tmp_path: Path
) -> None:
    """transformers does so when it loads the file, but its resize_token_embeddings would then replace the layer."""
    llm, tower = tmp_path / "llm", f"transformers:{original_tower}"
    original_parts.tokenizer.save_pretrained(llm)  # without <image>: rows are added
    original_parts.llm.save_pretrained(llm)
    stated = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps({**stated, "tie_word_embeddings": True}))
    original = original_world.write_original(
        original_parts, tmp_path / "original", str(original_tower), tie_word_embeddings=True
    )
    run_convert(ConvertConfig(source=str(original), output=str(tmp_path / "converted")))
    bridge_world.make_llava(tmp_path / "built", bridge_encoder, llm)
    model, processor = load_llava(tmp_path / "converted", "cpu")
    model.config.text_config.tie_word_embeddings = model.config.tie_word_embeddings = True
    bridge_world.save(tmp_path / "llava", model, processor)  # with both matrices, as the LLM's
    stated = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert stated["tie_word_embeddings"]
    bridge_world.make_llava(tmp_path / "swapped", Path(tower), tmp_path / "llava")
    tokens, known = torch.arange(4, 20)[None], len(original_parts.tokenizer)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llm)(tokens).logits
        for name in ("built", "converted", "llava", "swapped"):
            found = load_llava(tmp_path / name, "cpu")[0](input_ids=tokens).logits[..., :known]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tied_embeddings_stay_tied(bridge_encoder: Path, bridge_llm: Path, tmp_path: Path) -> None:
    shutil.copytree(bridge_llm, tmp_path / "tied")
    llm = load_llm(str(bridge_llm))
    llm.config.tie_word_embeddings = True
    llm.lm_head.weight = llm.get_input_embeddings().weight
    llm.save_pretrained(tmp_path / "tied")
    model, _ = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "tied")))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, llm.get_input_embeddings().weight)


def test_answers_in_batches_equal_answers_alone_and_end_at_the_end_token(saved: Path) -> None:
    model, processor = load_llava(saved)
    images: list[Any] = [*bridge_world.noise((50, 30), (50, 30), (50, 30)), None]
    prompts = ["What?", "Is there a very long question about colors here?", "Red or green?", "No picture: what?"]
    together = answer(model, processor, images, prompts, max_new_tokens=6, batch_size=4)
    pairs = zip(images, prompts, strict=True)
    assert together == [answer(model, processor, [image], [prompt], 6)[0] for image, prompt in pairs]
    assert any(together)
    with pytest.raises(UserError, match="1 images but not as many"):
        answer(model, processor, images[:1], ["<image> and <image>"])
    end = processor.tokenizer.convert_tokens_to_ids("</s>")
    calls: list[int] = []

    def force_end(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls.append(ids.shape[1])
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([end], device=ids.device), 0.0)

    assert answer(model, processor, images[:1], ["What?"], max_new_tokens=50, logits_processor=[force_end]) == [""]
    assert len(calls) == 1


FRESH = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
def load(directory):
    model = AutoModelForImageTextToText.from_pretrained(directory).eval()
    processor = AutoProcessor.from_pretrained(directory)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    picture = Image.open(directory + "/picture.png")
    inputs = processor(images=picture, text=text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        torch.save((model.state_dict(), model(**inputs).logits), directory + "/found.pt")
    parts = (model, model.model.vision_tower, model.model.multi_modal_projector)
    print(*(type(part).__name__ for part in parts))
STOCK, OURS = sys.argv[1].split(","), sys.argv[2].split(",")
for directory in STOCK:
    load(directory)
assert not any(name.startswith("llava_bridge") for name in sys.modules)
import llava_bridge
assert not any(name.startswith("llava_bridge.") for name in sys.modules)
for _ in range(2):
    llava_bridge.register()
for directory in OURS:
    load(directory)
"""
LLAVAS: dict[str, tuple[dict[str, Any], str]] = {
    "stock": ({}, "LlavaForConditionalGeneration CLIPVisionModel LlavaMultiModalProjector"),
    "tiles": (
        {"image_aspect_ratio": "anyres"},
        "LlavaNextForConditionalGeneration CLIPVisionModel LlavaNextMultiModalProjector",
    ),
    "tower": ({}, "LlavaForConditionalGeneration EncoderVisionModel LlavaMultiModalProjector"),
    "perceiver": (
        {"projector": ProjectorConfig(type="perceiver", num_tokens=5)},
        "BridgeLlavaForConditionalGeneration EncoderVisionModel Perceiver",
    ),
    "shuffled": (
        {"image_aspect_ratio": "anyres", "projector": ProjectorConfig(type="pixel_shuffle")},
        "BridgeLlavaNextForConditionalGeneration EncoderVisionModel PixelShuffle",
    ),
    "linear": (
        {"image_aspect_ratio": "anyres", "projector": ProjectorConfig(type="linear")},
        "BridgeLlavaNextForConditionalGeneration CLIPVisionModel Linear",
    ),
}


@pytest.mark.parametrize(
    ("stock", "ours"),
    [(["stock"], ["tower"]), pytest.param(["tiles"], ["perceiver", "shuffled", "linear"], marks=pytest.mark.slow)],
)
def test_a_fresh_process_loads_them_with_stock_transformers(
    stock: list[str], ours: list[str], bridge_encoder: Path, bridge_long_llm: Path, original_tower: Path, tmp_path: Path
) -> None:
    """Those with a tower and a projector of its own need no import of ours."""
    (picture,) = bridge_world.noise((50, 30))
    built = {}
    for name in (*stock, *ours):
        fields, kinds = LLAVAS[name]
        encoder = bridge_encoder if name in {"tower", "perceiver"} else f"transformers:{original_tower}"
        parts = LlavaParts(encoder=str(encoder), llm=str(bridge_long_llm), **fields)
        model, processor = built[name] = build_llava(parts)
        assert convert_tower_to_transformers(model) == ("CLIPVisionModel" in kinds)
        picture.save(bridge_world.save(tmp_path / name, model, processor) / "picture.png")
    folders = [",".join(str(tmp_path / name) for name in names) for names in (stock, ours)]
    done = bridge_world.run_python("-c", FRESH, *folders)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [LLAVAS[name][1] for name in built]
    for name, (model, processor) in built.items():
        state, logits = torch.load(tmp_path / name / "found.pt")
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items()), name
        torch.testing.assert_close(logits, bridge_world.logits(model, processor, picture), atol=1e-5, rtol=1e-5)


def test_feature_layers(bridge_encoder: Path, bridge_llm: Path) -> None:
    model, _ = build_llava(LlavaParts(encoder="timm:test_efficientnet@random", llm=str(bridge_llm), image_size=64))
    assert (model.config.vision_feature_layer, model.config.image_seq_length) == (-1, 4)
    for encoder, layer, message in (
        ("timm:test_efficientnet@random", -2, "only -1, the last feature map, got -2"),
        (str(bridge_encoder), 7, "vision_feature_layer: this encoder has -4 to 3, got 7"),
    ):
        with pytest.raises(UserError, match=message):
            build_llava(LlavaParts(encoder=encoder, llm=str(bridge_llm), vision_feature_layer=layer))


def test_an_llm_without_image_and_padding_tokens_gets_them(shared: Path, bridge_encoder: Path) -> None:
    llm = str(shared / "models/stories15M")
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=llm))
    assert len(processor.tokenizer) == model.get_input_embeddings().num_embeddings == 32002
    assert model.config.text_config.vocab_size == 32002
    old = load_llm(llm).get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight[:32000], old)
    assert processor.tokenizer.pad_token_id not in {processor.tokenizer.eos_token_id, None}
    (text,) = answer(model, processor, [None], ["Tell me about a girl."], max_new_tokens=5)
    assert text


def test_incomplete_directories_are_rejected_in_one_line(bridge_llm: Path, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(UserError, match=r"no config\.json in it"):
        load_llava(tmp_path)
    for number, (source, missing, load, match) in enumerate(
        [
            (bridge_llm, "tokenizer.json", load_tokenizer, "has no tokenizer"),
            (bridge_llm, "model.safetensors", load_tokenizer, "has no weights"),
            (saved, "model.safetensors", load_llava, "has no weights"),
        ]
    ):
        copy = tmp_path / str(number)
        shutil.copytree(source, copy)
        (copy / missing).unlink()
        with pytest.raises(UserError, match=match):
            load(str(copy))
    unknown = tmp_path / "unknown"
    shutil.copytree(bridge_llm, unknown)
    (unknown / "config.json").write_text(json.dumps({"model_type": "nothing_known"}))
    with pytest.raises(UserError, match=r"llm: .* cannot be loaded"):
        load_llm(str(unknown))


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        ("truncated", r"model.safetensors cannot be read \(.*incomplete"),
        ("lacking", r"lacks weights that its config\.json needs: '.*mlp\.down_proj\.weight'$"),
        ("unlike", r"'.*mlp\.down_proj\.weight' has shape \(3, 5\), not \(32, 88\)"),
    ],
)
def test_missing_weights_are_an_error(fault, match, bridge_llm, saved, tmp_path, capfd):
    for directory, load in ((bridge_llm, lambda path: load_llm(str(path))), (saved, load_llava)):
        copy = tmp_path / directory.name
        shutil.copytree(directory, copy)
        file = copy / "model.safetensors"
        weights = load_file(file)
        name = next(name for name in weights if name.endswith("mlp.down_proj.weight"))
        if fault == "lacking":
            del weights[name]
        else:
            weights[name] = torch.zeros(3, 5)
        save_file(weights, file, metadata={"format": "pt"})
        if fault == "truncated":
            file.write_bytes((directory / file.name).read_bytes()[:-100])
        capfd.readouterr()
        with pytest.raises(UserError, match=match):
            load(copy)
        assert "MISSING" not in capfd.readouterr().err


QUESTIONS = ["What is it?", "Is there a red thing in the picture? Answer yes or no."]


@pytest.mark.parametrize("image_aspect_ratio", ["pad", pytest.param("anyres", marks=pytest.mark.slow)])
def test_lmms_evals_own_model_answers_the_same(image_aspect_ratio, tmp_path, bridge_llm, original_tower, monkeypatch):
    encoder = f"transformers:{original_tower}"
    model, processor = build_llava(
        LlavaParts(encoder=encoder, llm=str(bridge_llm), image_aspect_ratio=image_aspect_ratio)
    )
    assert convert_tower_to_transformers(model)
    (picture,) = bridge_world.noise((50, 20))
    directory = bridge_world.save(tmp_path / "llava", model, processor)
    ours = answer(*load_llava(directory, device="cpu"), [picture] * 2, QUESTIONS, max_new_tokens=8)
    assert all(ours)
    assert len(set(ours)) == 2  # an untrained LLM's, but of these questions
    assert llava_hf(directory, picture, monkeypatch) == ours


def llava_hf(directory: Path, picture: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers to ``QUESTIONS`` about ``image`` of lmms-eval's class."""
    video = types.ModuleType("decord")  # wanted for videos alone
    video.VideoReader = video.cpu = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "decord", video)
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.llava_hf import LlavaHf

    model = LlavaHf(str(directory), device="cpu", device_map="cpu", dtype="float32")
    model.task_dict = {"colors": {"test": [{"question": question} for question in QUESTIONS]}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=(question, {"max_new_tokens": 8}, lambda _: [picture], number, "colors", "test"),
            idx=0,
            metadata={"task": "colors", "doc_id": number, "repeats": 1},
        )
        for number, question in enumerate(QUESTIONS)
    ]
    return [text.strip() for text in model.generate_until(requests)]


@pytest.mark.parametrize("is_added", [False, True])
def test_an_image_token_that_the_vocabulary_has_already(
    is_added: bool, original_parts: Any, bridge_encoder: Path, bridge_talk: Path, tmp_path: Path
) -> None:
    """As an ordinary piece it is split into letters, and as an added token it may be one of the normalized text."""
    llm = tmp_path / "llm"
    original_parts.tokenizer.save_pretrained(llm)
    original_parts.llm.save_pretrained(llm)
    stated = json.loads((llm / "tokenizer.json").read_text())
    number = len(stated["model"]["vocab"])
    if is_added:
        token = {"content": "<image>", "normalized": True, "special": False}
        token |= {"single_word": True, "lstrip": False, "rstrip": False}
        stated["added_tokens"].append({"id": number, **token})
    else:
        stated["model"]["vocab"]["<image>"] = number
    (llm / "tokenizer.json").write_text(json.dumps(stated))
    status, shown, told = bridge_world.run_cli(
        "data", "inspect", str(bridge_talk / "talk.json"), "--llm", str(llm), "--image_tokens", "4"
    )
    assert (status, "<image> × 4" in shown) == (0, True), told
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(llm)))
    assert model.config.image_token_index == number
    bridge_world.save(tmp_path / "llava", model, processor)
    for loaded in ((model, processor), load_llava(tmp_path / "llava", "cpu")):
        chat = make_conversation_encoder(*loaded)
        ids = encode_prompt(chat, [{"role": "user", "content": "A<image><image>B"}], bridge_world.noise((9, 9), (9, 9)))
        assert ids.count(number) == 32


def test_generation_ends_at_the_templates_end_token_and_at_the_end_of_text(bridge_encoder, bridge_llm, tmp_path):
    """As of Llama 3 and Phi 3: <|end|> follows an answer, and is not the tokenizer's EOS token."""
    from transformers import AutoTokenizer

    llm = shutil.copytree(bridge_llm, tmp_path / "llm")
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ':' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}<|end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer.save_pretrained(llm)
    model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(llm)))
    ends = {processor.tokenizer.convert_tokens_to_ids(token) for token in ("</s>", "<|end|>")}
    assert len(ends) == 2
    assert set(model.generation_config.eos_token_id) == ends
