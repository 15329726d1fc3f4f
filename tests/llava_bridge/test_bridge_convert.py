"""LLaVAs in their first authors' layout become transformers' and come back, computing the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import exchange_world
import original_world as world
import pytest
import torch
from original_world import convert
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from clips.errors import UserError
from clips.interchange.hf_siglip import siglip_vision_model
from llava_bridge import load_llava
from llava_bridge.model import build
from llava_bridge.model.build import (
    LlavaParts,
    build_llava,
    make_conversation_encoder,
)
from llava_bridge.model.llava_files import (
    convert_open_clip_tower,
    convert_tower_to_transformers,
    load_for_training,
    save_llava,
)

QUESTION = "What's AB?"
V1 = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    f"USER: <image>\n{QUESTION} ASSISTANT:"
)


@pytest.fixture(scope="module")
def parts(original_parts: world.Parts) -> world.Parts:
    return original_parts


@pytest.fixture(scope="module")
def tower(original_tower: Path) -> Path:
    return original_tower


@pytest.fixture(scope="module")
def converted(parts: world.Parts, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    return convert(world.write_original(parts, folder / "original", str(tower)), folder / "hf")


def converted_logits(directory: Path, prompt: str | None = None) -> tuple[list[int], Tensor, Tensor]:
    """Tokens without the image's, the logits at each place, and the pixels, for one question about an image."""
    model, processor = load_llava(directory, device="cpu")
    chat = make_conversation_encoder(model, processor)
    ids = torch.tensor([chat.prompt_ids([{"role": "user", "content": f"<image>\n{QUESTION}"}])])
    if prompt is not None:
        ids = processor.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    pixels = processor.image_processor(world.draw_image(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits[0]
    return [token for token in ids[0].tolist() if token != chat.image_id], logits, pixels


def tensors(directory: Path) -> dict[str, Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def assert_as_by_hand(parts: world.Parts, directory: Path, prompt: str, *, patches_only: bool = True) -> None:
    texts = parts.ids(prompt)
    tokens, logits, pixels = converted_logits(directory)
    assert tokens == texts[0] + texts[1]
    expected = parts.logits(texts, pixels, patches_only=patches_only)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits[:, : expected.shape[1]], expected, atol=1e-5, rtol=1e-5)


CASES: dict[str, dict[str, Any]] = {
    "llava-1.5": {},
    "old model_type, in shards of safetensors": {"model_type": "llava", "pickled": False},
    "class token": {"mm_vision_select_feature": "cls_patch"},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_tokens_and_logits_as_by_hand(case: str, parts: world.Parts, tower: Path, tmp_path: Path) -> None:
    convert(world.write_original(parts, tmp_path / "original", str(tower), **CASES[case]), tmp_path / "hf")
    assert_as_by_hand(parts, tmp_path / "hf", V1, patches_only=case != "class token")
    stated = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (stated["architectures"], stated["model_type"]) == (["LlavaForConditionalGeneration"], "llava")


@pytest.mark.parametrize(
    ("kind", "projector"), [("mistral", "mlp2x_gelu"), ("llama", "linear"), ("llama", "mlp3x_gelu")]
)
def test_other_llms_and_projectors(kind: str, projector: str, tmp_path: Path) -> None:
    parts = world.Parts(kind, projector)
    tower = world.write_tower(parts, tmp_path / "clip", pickled=True)
    convert(
        world.write_original(parts, tmp_path / "original", str(tower), mm_projector_type=projector), tmp_path / "hf"
    )
    prompt = f"[INST] <image>\n{QUESTION} [/INST]" if kind == "mistral" else V1
    assert_as_by_hand(parts, tmp_path / "hf", prompt)
    convert(tmp_path / "hf", tmp_path / "back", format="original")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["mm_projector_type"] == projector
    for name, value in world.projector_weights(parts).items():
        assert torch.equal(tensors(tmp_path / "back")[name], value)


def test_the_template_of_the_checkpoints_tokenizer_writes_the_originals_spaces(tmp_path: Path) -> None:
    """Mistral's own, as LLaVA-1.6 of Mistral may have it: SentencePiece puts a blank between <s> and [INST]."""
    parts = world.Parts("mistral")
    parts.tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}\n"
    )
    tower = world.write_tower(parts, tmp_path / "clip")
    converted = convert(world.write_original(parts, tmp_path / "original", str(tower)), tmp_path / "hf")
    assert_as_by_hand(parts, converted, f"[INST] <image>\n{QUESTION} [/INST]")
    model, processor = load_for_training(str(converted), "auto")
    chat = make_conversation_encoder(model, processor)
    talk = [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "content": "AB"},
        {"role": "user", "content": "W?"},
    ]
    assert chat.prompt(talk) == "<s> [INST] A? [/INST]AB</s>[INST] W? [/INST]"
    encoded = chat.encode(talk[:2], 99)
    trained = [label for label in encoded.labels if label >= 0]
    assert parts.tokenizer.convert_ids_to_tokens(trained) == ["A", "B", "</s>"]


def test_images_are_padded_or_cropped_as_in_the_original(parts, tower, converted, tmp_path):
    _, _, pixels = converted_logits(converted)
    torch.testing.assert_close(pixels, parts.pixels(world.draw_image()), atol=0.02, rtol=0)
    assert (pixels[0, :, 0, 0].abs() < 0.02).all()  # the mean color
    tower = world.write_tower(parts, tmp_path / "clip")
    convert(
        world.write_original(parts, tmp_path / "original", str(tower), image_aspect_ratio="square"), tmp_path / "hf"
    )
    from transformers import CLIPImageProcessor

    cropped = CLIPImageProcessor(**world.preprocessing())(world.draw_image(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(converted_logits(tmp_path / "hf")[2], cropped, atol=0.02, rtol=0)
    assert not torch.allclose(pixels, cropped, atol=0.5)


def test_image_and_padding_tokens_are_new_and_never_generated(parts: world.Parts, converted: Path) -> None:
    model, processor = load_llava(converted, device="cpu")
    known = len(parts.tokenizer)
    assert processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [known, known + 1]
    assert (model.config.image_token_index, model.config.text_config.vocab_size) == (known, known + 2)
    assert torch.equal(model.get_input_embeddings().weight[:known], parts.llm.get_input_embeddings().weight)
    for rows in (model.get_input_embeddings().weight, model.lm_head.weight):
        torch.testing.assert_close(rows[known:], rows[:known].mean(0).expand(2, -1), atol=1e-6, rtol=1e-6)
    _, logits, _ = converted_logits(converted)
    assert (logits[:, known:].amax(1) < logits[:, :known].amax(1)).all()


def test_a_template_with_several_turns(parts: world.Parts, converted: Path) -> None:
    model, processor = load_llava(converted, device="cpu")
    talk = [("user", "<image>\nA?"), ("assistant", "AB"), ("user", "Why?")]
    text = make_conversation_encoder(model, processor).prompt([{"role": role, "content": said} for role, said in talk])
    assert text.replace("<s> ", "<s>").replace("<image> ", "<image>") == (
        f"<s>{V1.partition('USER')[0]}USER: <image>\nA? ASSISTANT: AB</s>USER: Why? ASSISTANT:"
    )


def test_captions_of_a_first_stage_are_the_originals_tokens(parts: world.Parts, converted: Path) -> None:
    """There a caption is tokenized by itself, so with SentencePiece's blank before it, and the begin token has none."""
    model, processor = load_llava(converted, device="cpu")
    talk = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "AB why?"}]
    encoded = make_conversation_encoder(model, processor, "plain").encode(talk, 100)
    begin, caption = parts.ids("<image>AB why?\n")
    assert encoded.input_ids == [*begin, *[model.config.image_token_index] * 16, *caption]
    assert encoded.labels == [-100] * 17 + caption


def test_a_template_chosen_for_a_converted_llava_writes_its_spaces(converted: Path) -> None:
    own = load_llava(converted, device="cpu")[1].chat_template
    assert "<image> " in own
    assert load_for_training(str(converted), "vicuna_v1")[1].chat_template == own
    tower = "timm:test_vit@random"
    for template in ("auto", "vicuna_v1"):
        parts = build.LlavaParts(encoder=tower, llm=str(converted), chat_template=template)
        assert build.build_llava(parts)[1].chat_template == own


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_precision_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    parts = world.Parts()
    for part in (parts.llm, parts.projector, parts.tower):
        part.to(dtype)
    tower = world.write_tower(parts, tmp_path / "clip")
    convert(world.write_original(parts, tmp_path / "original", str(tower)), tmp_path / "hf")
    found = tensors(tmp_path / "hf")
    assert {value.dtype for value in found.values()} == {dtype}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    tower_prefix = "vision_tower.vision_model"  # as in LLaVA-1.5's files on the Hub
    for prefix, part in {"language_model.model.layers": parts.llm.model.layers, tower_prefix: parts.tower}.items():
        for name, value in part.state_dict().items():
            assert torch.equal(found[f"{prefix}.{name}"], value), name


def test_conversion_and_back_is_the_identity(
    converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(converted, tmp_path / "original", format="original")
    assert "has no tokenizer.model: the original code needs" in capsys.readouterr().err
    moved = (tmp_path / "original").rename(tmp_path / "moved")  # the tower is found next to the other files
    convert(moved, tmp_path / "again")
    before, after = tensors(converted), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for name in ("config.json", "processor_config.json", "chat_template.jinja", "tokenizer.json"):
        first, second = (json_or_text(directory / name) for directory in (converted, tmp_path / "again"))
        assert first == second, name


def json_or_text(path: Path) -> Any:
    """A file's content; where a config was read from is not compared."""
    if path.suffix != ".json":
        return path.read_text()
    return json.loads(
        path.read_text(), object_hook=lambda found: {k: v for k, v in found.items() if k != "_name_or_path"}
    )


def test_the_original_layout_is_the_one_that_its_code_reads(parts, converted, tmp_path):
    shutil.copytree(converted, tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.model").write_bytes(b"sentencepiece")
    convert(tmp_path / "hf", tmp_path / "original", format="original")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    expected = {**world.STATED, "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}
    expected |= {"mm_vision_tower": str(tmp_path / "original" / "vision_tower"), "torch_dtype": "float32"}
    expected |= {"rope_theta": 5000.0}
    del expected["tune_mm_mlp_adapter"]
    assert {name: config[name] for name in expected} == expected
    assert (tmp_path / "original" / "tokenizer.model").read_bytes() == b"sentencepiece"
    found = tensors(tmp_path / "original")
    assert found.keys() == parts.llm.state_dict().keys() | world.projector_weights(parts).keys()
    with safe_open(tmp_path / "original" / "vision_tower" / "model.safetensors", "pt") as stored:
        assert all(name.startswith("vision_model.") for name in list(stored.keys()))
    preprocess = json.loads((tmp_path / "original" / "vision_tower" / "preprocessor_config.json").read_text())
    assert preprocess["image_processor_type"] == "CLIPImageProcessor"
    assert preprocess["crop_size"] == {"height": world.SIZE, "width": world.SIZE}


def test_a_tower_among_the_weights_comes_before_the_one_that_is_named(parts, tower, tmp_path):
    world.write_original(parts, tmp_path / "original", str(tower), shards=1, pickled=True)
    file = tmp_path / "original" / "pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    for name, value in parts.tower.state_dict().items():
        weights[f"model.vision_tower.vision_tower.vision_model.{name}"] = value + 0.5
    weights["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    torch.save(weights, file)
    convert(tmp_path / "original", tmp_path / "hf")
    found = tensors(tmp_path / "hf")
    for name, value in parts.tower.state_dict().items():
        assert torch.equal(found[f"vision_tower.vision_model.{name}"], value + 0.5), name


@pytest.mark.parametrize("beside", [False, True])
def test_a_projector_alone(beside: bool, parts: world.Parts, tower: Path, converted: Path, tmp_path: Path) -> None:
    """As LLaVA's first stage leaves it, with the LLM elsewhere; or put into the LLM's directory."""
    parts.llm.save_pretrained(tmp_path / "llm")
    parts.tokenizer.save_pretrained(tmp_path / "llm")
    source, options = tmp_path / "llm", {"vision_tower": str(tower)}
    if not beside:
        source, options = tmp_path / "pretrain", {"llm": str(tmp_path / "llm")}
        world.write_config(parts, source, str(tower), image_aspect_ratio="square")
    torch.save(world.projector_weights(parts), source / "mm_projector.bin")
    convert(source, tmp_path / "hf", **options)
    before, after = tensors(converted), tensors(tmp_path / "hf")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_llava_of_ours_becomes_an_original_one(parts: world.Parts, tower: Path, tmp_path: Path) -> None:
    parts.llm.save_pretrained(tmp_path / "llm")
    parts.tokenizer.save_pretrained(tmp_path / "llm")
    model, processor = build_llava(LlavaParts(encoder=f"transformers:{tower}", llm=str(tmp_path / "llm")))
    assert convert_tower_to_transformers(model)
    bridge_world.save(tmp_path / "ours", model, processor)
    convert(tmp_path / "ours", tmp_path / "original", format="original")
    convert(tmp_path / "original", tmp_path / "again")
    before, after = converted_logits(tmp_path / "ours"), converted_logits(tmp_path / "again")
    assert before[0] == after[0]
    for mine, theirs in zip(before[1:], after[1:], strict=True):
        assert torch.equal(mine, theirs)  # images are squashed in both


WITHOUT_THIS_PACKAGE = """
import sys, torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1]).eval()
inputs = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[3])
print(type(model.model.vision_tower).__name__, "llava_bridge" in sys.modules)
"""


def assert_computed_without_this_package(directory: Path, tower: str, inputs: Any, expected: Tensor) -> None:
    saved, found = directory.with_name("inputs.pt"), directory.with_name("logits.pt")
    torch.save(dict(inputs), saved)
    done = bridge_world.run_python("-c", WITHOUT_THIS_PACKAGE, *map(str, (directory, saved, found)))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [tower, "False"]
    torch.testing.assert_close(torch.load(found), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aspect", ["squash", pytest.param("anyres", marks=pytest.mark.slow)])
def test_a_vit_of_open_clip_needs_no_import_of_this_package(aspect, bridge_llm: Path, tmp_path: Path) -> None:
    """One as OpenAI's becomes transformers' own, in a LLaVA and in an original one."""
    tower = bridge_world.make_encoder(tmp_path / "encoder", bridge_world.OPENAI_VIT)
    bridge_world.widen(tower, 0.3)
    tensors = {name: value.contiguous() for name, value in tower.state_dict().items()}
    save_file(tensors, tmp_path / "encoder" / "open_clip_model.safetensors")
    model, processor = build_llava(
        LlavaParts(encoder=str(tmp_path / "encoder"), llm=str(bridge_llm), image_aspect_ratio=aspect)
    )
    bridge_world.save(tmp_path / "ours", model, processor)
    convert(tmp_path / "ours", tmp_path / "plain")
    inputs = processor(images=world.draw_image(), text="<image> What?", return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    assert_computed_without_this_package(tmp_path / "plain", "CLIPVisionModel", inputs, expected)
    if aspect == "squash":
        convert(tmp_path / "ours", tmp_path / "original", format="original")
        stated = json.loads((tmp_path / "original" / "vision_tower" / "config.json").read_text())
        assert (stated["hidden_act"], stated["num_hidden_layers"]) == ("quick_gelu", 3)


@pytest.mark.slow
@pytest.mark.parametrize("aspect", ["squash", "anyres"])
def test_a_siglip_of_timm_needs_no_import_of_this_package(aspect, bridge_llm: Path, tmp_path: Path) -> None:
    parts = {"llm": str(bridge_llm), "encoder": f"timm:{exchange_world.register_small_siglip_tower()}@random"}
    model, processor = build_llava(LlavaParts(**parts, image_aspect_ratio=aspect))
    bridge_world.widen(model.model.vision_tower, 0.3)
    inputs = processor(images=world.draw_image(), text="<image> What?", return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
    convert_open_clip_tower(model)  # the registered tower is of this process, so no command can read it
    save_llava(model, tmp_path / "plain")
    processor.save_pretrained(tmp_path / "plain")
    assert "vision_tower.vision_model.post_layernorm.weight" in tensors(tmp_path / "plain")  # as on the Hub
    assert_computed_without_this_package(tmp_path / "plain", "SiglipVisionModel", inputs, expected)

    last, _ = build_llava(LlavaParts(**parts, vision_feature_layer=-1))
    with pytest.raises(UserError, match="no final norm"):
        convert_open_clip_tower(last)
    with pytest.raises(UserError, match="expected a ViT of open_clip"):
        convert_open_clip_tower(build_llava(LlavaParts(**parts))[0], clip_only=True)
    other, _ = build_llava(LlavaParts(llm=str(bridge_llm), encoder="timm:test_vit@random", image_size=64))
    with pytest.raises(UserError, match="SiglipVisionModel has patches only, this tower a class token"):
        convert_open_clip_tower(other)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    scaled = VisionTransformer(**small, class_token=False, global_pool="map", init_values=0.1)
    with pytest.raises(UserError, match=r"other weights than this tower: it has the unexpected blocks\.0\.ls1\.gamma"):
        siglip_vision_model(scaled)
    averaged = VisionTransformer(**small, class_token=False, global_pool="avg")  # normed after the average
    with pytest.raises(UserError, match="has a final norm, this tower has none"):
        siglip_vision_model(averaged)


@pytest.mark.slow
def test_a_real_llama_goes_there_and_back_with_its_slow_tokenizer(shared: Path, tower: Path, tmp_path: Path) -> None:
    """Which the original code reads, with the image's token among it."""
    llm = shared / "models" / "stories15M"
    model, processor = build_llava(LlavaParts(encoder=f"transformers:{tower}", llm=str(llm)))
    convert_tower_to_transformers(model)
    bridge_world.save(tmp_path / "ours", model, processor)
    original = convert(tmp_path / "ours", tmp_path / "original", format="original", llm=str(llm))
    again = convert(original, tmp_path / "again")
    for directory in (original, again):
        assert (directory / "tokenizer.model").read_bytes() == (llm / "tokenizer.model").read_bytes()
    stated = json.loads((original / "tokenizer_config.json").read_text())
    assert (stated["tokenizer_class"], stated["legacy"]) == ("LlamaTokenizer", False)
    assert [stated["added_tokens_decoder"][place]["content"] for place in ("32000", "32001")] == ["<image>", "<pad>"]
    before, after = converted_logits(tmp_path / "ours"), converted_logits(again)
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llava_mistral", "llama", "mistral"])
def test_a_slow_tokenizer_alone_suffices(model_type: str, shared: Path, tmp_path: Path) -> None:
    """Most original checkpoints have no other."""
    try:
        import sentencepiece.sentencepiece_model_pb2  # noqa: F401
    except Exception as error:  # protobuf raises an error of its own
        pytest.skip(f"this sentencepiece does not go with this protobuf: {error}")
    llm = shared / "models" / "stories15M"
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(llm / name, tmp_path / name)
    config = json.loads((llm / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    fast, slow = (build.read_tokenizer(str(directory)) for directory in (llm, tmp_path))
    assert fast(V1)["input_ids"] == slow(V1)["input_ids"]


def test_a_siglip_tower_has_neither_class_token_nor_crop(parts: world.Parts, tmp_path: Path) -> None:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    tower = SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **world.TOWER))
    theirs = SiglipImageProcessor(size={"height": 32, "width": 32})
    bridge_world.save(tmp_path / "tower", tower, theirs)
    squashed = theirs(world.draw_image(), return_tensors="pt")["pixel_values"]
    for aspect in ("pad", "square"):
        original = world.write_original(parts, tmp_path / aspect, str(tmp_path / "tower"), image_aspect_ratio=aspect)
        directory = convert(original, tmp_path / f"hf-{aspect}")
        assert load_llava(directory, device="cpu")[0].config.image_seq_length == 16
        pixels = converted_logits(directory)[2]
        assert torch.allclose(pixels, squashed, atol=0.02) == (aspect == "square")
        assert pixels.shape == (1, 3, 32, 32)


def test_a_tower_that_normalizes_pixels_itself_gets_them_from_0_to_1(parts: world.Parts, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    tower = world.write_tower(parts, tmp_path / "tower")
    file = tower / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_normalize": False}))
    original = world.write_original(parts, tmp_path / "original", str(tower), image_aspect_ratio="square")
    expected = AutoImageProcessor.from_pretrained(tower)(world.draw_image(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(converted_logits(convert(original, tmp_path / "hf"))[2], expected)
