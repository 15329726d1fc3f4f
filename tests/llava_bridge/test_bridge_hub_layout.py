"""LLaVAs as the Hub's llava-hf repositories have them: a template of parts that ends no answer, no count of tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import hub_llava
import original_world
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from benchmarks.cli import COMMANDS
from clips.commandline.commands import dispatch
from clips.errors import UserError
from clips.recaption.captioners import CaptionModel
from clips.recaption.recaption_config import RecaptionConfig
from llava_bridge import answer, load_llava, loglikelihoods
from llava_bridge.conversation import IGNORE_INDEX
from llava_bridge.inference.generate import encode_prompt
from llava_bridge.model.build import load_llm, make_conversation_encoder
from llava_bridge.model.llava_files import load_for_training
from llava_bridge.training.inputs import resolve_inputs
from llava_bridge.training.lora import add_lora
from llava_bridge.training.setup import setup_stage
from llava_bridge.training.train_config import LlavaTrainConfig, LoraConfig

PICTURE = Image.new("RGB", (40, 24), "red")
QUESTION: dict[str, Any] = {"role": "user", "content": "<image>\nWhat color is it?"}
TALKS: dict[str, list[dict[str, Any]]] = {
    "question": [QUESTION],
    "text": [{"role": "user", "content": " What? "}],
    "turns": [QUESTION, {"role": "assistant", "content": "red"}, {"role": "user", "content": "Sure?"}],
    "system": [{"role": "system", "content": "Be brief."}, QUESTION],
}


@pytest.fixture(scope="module", params=["llava", "next"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hub") / request.param
    hub_llava.write_hub_llava(directory, tiles=request.param == "next")
    return directory


def stock_inputs(directory: Path, talk: list[dict[str, Any]], picture: Image.Image = PICTURE) -> dict[str, Any]:
    """What transformers' own processor makes of a conversation in parts."""
    said = []
    for message in talk:
        text = message["content"].removeprefix("<image>\n")
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if text != message["content"]:
            parts.insert(0, {"type": "image", "image": picture})
        said.append({"role": message["role"], "content": parts})
    processor = transformers.AutoProcessor.from_pretrained(directory)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(said, **options)  # type: ignore[no-any-return]


def our_ids(loaded: tuple[Any, Any], talk: list[dict[str, Any]]) -> list[int]:
    chat = make_conversation_encoder(*loaded)
    return encode_prompt(chat, talk, [PICTURE] if any("<image>" in each["content"] for each in talk) else [])


def test_a_template_in_chat_template_jinja(hub: Path, tmp_path: Path) -> None:
    """As newer directories have it; transformers reads it with the tokenizer, too."""
    newer = shutil.copytree(hub, tmp_path / "newer")
    stated = json.loads((newer / "chat_template.json").read_text())
    (newer / "chat_template.jinja").write_text(stated["chat_template"])
    (newer / "chat_template.json").unlink()
    loaded = load_llava(newer, "cpu")
    for talk in TALKS.values():
        assert our_ids(loaded, talk) == stock_inputs(hub, talk)["input_ids"][0].tolist()


def test_a_template_that_prompts_otherwise_than_it_writes_answers(hub: Path, tmp_path: Path) -> None:
    """LLaVA-Interleave's writes "assistant " before an answer, and "assistant" as the prompt: enough to ask it."""
    other = shutil.copytree(hub, tmp_path / "other")
    (other / "chat_template.json").write_text(
        json.dumps({"chat_template": hub_llava.TEMPLATES["llava-interleave-qwen"]})
    )
    loaded = load_llava(other, "cpu")
    for talk in TALKS.values():
        assert our_ids(loaded, talk) == stock_inputs(other, talk)["input_ids"][0].tolist()
    with pytest.raises(
        UserError, match=r"its generation prompt is not the text .*; set another chat_template, such as"
    ):
        load_for_training(str(other), "auto")


@pytest.mark.parametrize("talk", TALKS)
def test_prompts_are_those_of_the_processor(talk: str, hub: Path) -> None:
    expected = stock_inputs(hub, TALKS[talk])["input_ids"][0].tolist()
    assert expected[0] == 1  # the tokenizer's <s>, which the template does not write
    assert our_ids(load_llava(hub, "cpu"), TALKS[talk]) == expected


@pytest.mark.parametrize("tiles", [False, True])
def test_prompts_with_the_tokenizer_of_a_real_llama(tiles: bool, shared: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared / "models/stories15M")
    hub_llava.write_hub_llava(tmp_path / "hub", tokenizer, tiles=tiles)
    loaded = load_llava(tmp_path / "hub", "cpu")
    for talk in TALKS.values():
        assert our_ids(loaded, talk) == stock_inputs(tmp_path / "hub", talk)["input_ids"][0].tolist()


def test_chat_answers_as_transformers_does(hub: Path, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "red.png")
    words = ("chat", str(hub), "--image", str(tmp_path / "red.png"), "--prompt", "What color is it?")
    status, printed, told = bridge_world.run_cli(*words, "--max_new_tokens", "8")
    assert status == 0, told
    model = transformers.AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32)
    inputs = stock_inputs(hub, TALKS["question"])
    new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub)
    assert printed.strip() == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_answers_are_greedy_if_the_generation_config_states_sampling(hub: Path, tmp_path: Path) -> None:
    """lmms-eval's ``llava_hf`` decodes greedily, too."""
    sampling = shutil.copytree(hub, tmp_path / "sampling")
    stated = json.loads((sampling / "generation_config.json").read_text())
    stated |= {"do_sample": True, "temperature": 0.9, "top_p": 0.9}
    (sampling / "generation_config.json").write_text(json.dumps(stated))
    model = transformers.AutoModelForImageTextToText.from_pretrained(hub, dtype=torch.float32)
    inputs = stock_inputs(hub, TALKS["question"])
    new = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = transformers.AutoTokenizer.from_pretrained(hub).decode(new, skip_special_tokens=True).strip()
    assert answer(*load_llava(sampling, "cpu"), [PICTURE], ["What color is it?"], 8) == [expected]


def test_a_llava_without_a_template_is_prompted_as_vicuna_with_a_line(hub: Path, tmp_path: Path, capsys: Any) -> None:
    """transformers' processor fails for it; lmms-eval's ``llava_hf`` prompts it as Vicuna."""
    bare = shutil.copytree(hub, tmp_path / "bare")
    (bare / "chat_template.json").unlink()
    with pytest.raises(ValueError, match="chat template"):
        stock_inputs(bare, TALKS["question"])
    loaded = load_llava(bare, "cpu")
    assert "it has no chat template, so that prompts have that of Vicuna" in capsys.readouterr().err
    assert make_conversation_encoder(*loaded).prompt(TALKS["text"]) == "<s>USER:  What?  ASSISTANT:"
    load_for_training(str(bare), "auto")
    assert "chat_template: vicuna, since there is none of its own" in capsys.readouterr().err
    load_llava(hub, "cpu")
    assert "template" not in capsys.readouterr().err


def test_older_processors_state_no_number_of_tokens(hub: Path, tmp_path: Path) -> None:
    """Before version 4.46 of transformers, directories had no processor_config.json; then none with a class token."""
    expected = our_ids(load_llava(hub, "cpu"), [QUESTION])
    older = shutil.copytree(hub, tmp_path / "older")
    stated = json.loads((older / "processor_config.json").read_text())
    for omitted in ("num_additional_image_tokens", "patch_size"):
        del stated[omitted]
        (older / "processor_config.json").write_text(json.dumps(stated))
        model, processor = load_llava(older, "cpu")
        assert our_ids((model, processor), [QUESTION]) == expected
        assert bridge_world.logits(model, processor, PICTURE).isfinite().all()


def test_training_ends_the_answers(hub: Path, bridge_talk: Path, tmp_path: Path) -> None:
    stage = bridge_world.stage(bridge_talk, max_length=400)
    config = LlavaTrainConfig(
        output=str(tmp_path / "out"), llava=str(hub), stages=["instruct"], instruct=stage, precision="fp32"
    )
    setup = setup_stage(resolve_inputs(config), "instruct")
    sample, tokenizer = setup.dataset[0], setup.processor.tokenizer
    prompt = stock_inputs(hub, [QUESTION], sample["images"][0])["input_ids"][0].tolist()
    assert sample["input_ids"][: len(prompt)] == prompt
    text = tokenizer.decode([token for token in sample["input_ids"] if token != setup.model.config.image_token_index])
    first, second = ("USER:", "ASSISTANT:") if "USER" in text else ("[INST]", "[/INST]")
    assert text.split(second)[1].startswith(" red</s>")
    assert text.split(first)[2].startswith(" Sure?")
    learned = "".join(tokenizer.decode(token) for token in sample["labels"] if token != IGNORE_INDEX)
    assert learned.replace(" ", "") == "red</s>yes</s>"
    # What is written prompts as it was trained, by transformers' own processor, too.
    bridge_world.save(tmp_path / "trained", setup.processor)
    shown = stock_inputs(tmp_path / "trained", TALKS["turns"], sample["images"][0])["input_ids"][0].tolist()
    assert sample["input_ids"][: len(shown)] == shown
    again = load_for_training(str(hub), "auto")[1].chat_template
    assert again == setup.processor.chat_template


def test_likelihoods_include_the_end_of_an_answer(hub: Path) -> None:
    """As those of lmms-eval, whose loss is that of the answer with its EOS token."""
    model, processor = load_llava(hub, "cpu")
    (found,) = loglikelihoods(model, processor, [PICTURE], ["What color is it?"], ["red"])
    inputs = stock_inputs(hub, [QUESTION])
    answer = processor.tokenizer("red", add_special_tokens=False)["input_ids"]  # with SentencePiece's space
    ids = torch.tensor([[*inputs["input_ids"][0].tolist(), *answer, 2]])
    with torch.no_grad():
        rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        log_probs = model(input_ids=ids, **rest).logits[0].log_softmax(-1)
    expected = sum(log_probs[-2 - back, ids[0, -1 - back]].item() for back in range(len(answer) + 1))
    assert found.total == pytest.approx(expected, rel=1e-4)
    assert found.tokens == len(answer) + 1


def test_unmerged_adapters_are_merged_by_all_that_load_a_llava(hub: Path, bridge_encoder: Path, tmp_path: Path) -> None:
    """As ``merge_weights: false`` leaves them; the stored precision is float16, in which the sums would be rounded."""
    directory = shutil.copytree(hub, tmp_path / "beside")
    adapted = add_lora(load_llava(hub, "cpu")[0], LoraConfig(r=2, lora_alpha=4))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    adapted.save_pretrained(directory / "adapter")
    expected = {name: value for name, value in adapted.merge_and_unload().state_dict().items() if "layers" in name}
    expected = {name: value for name, value in expected.items() if "language_model" in name}
    assert len(expected) == 18

    encoder = ("--encoder", str(bridge_encoder), "--output", str(tmp_path / "swapped"))
    original = ("--output", str(tmp_path / "original"))
    for words in (("swap", str(directory), *encoder), ("convert", str(directory), "--format", "original", *original)):
        status, _, told = bridge_world.run_cli(*words)
        assert status == 0, told
    fields = {"path": str(tmp_path), "output": str(tmp_path / "captions"), "precision": "fp32"}
    loaded = {
        "train": load_for_training(str(directory), "auto")[0],
        "llm": load_llm(str(directory)),
        "swap": load_llava(tmp_path / "swapped", "cpu")[0],
        "recaption": CaptionModel(RecaptionConfig(model=str(directory), **fields)).model,
    }
    found = {name: model.state_dict() for name, model in loaded.items()}
    found["convert"] = load_file(tmp_path / "original" / "model.safetensors")
    for kind, weights in found.items():
        for name, value in expected.items():
            own = name if name in weights else name.replace(".language_model", "")
            torch.testing.assert_close(weights[own], value, msg=f"{kind}: {name}", rtol=0, atol=0)


def test_a_swap_keeps_the_template_in_chat_template_json(hub: Path, bridge_encoder: Path, tmp_path: Path) -> None:
    status, _, told = bridge_world.run_cli(
        "swap", str(hub), "--encoder", str(bridge_encoder), "--output", str(tmp_path / "swapped")
    )
    assert status == 0, told
    assert "chat_template: it ends no answer; </s> (eos_token) is added to each" in told
    loaded = load_llava(tmp_path / "swapped", "cpu")
    without_image = [token for token in our_ids(loaded, [QUESTION]) if token != loaded[0].config.image_token_index]
    prompt = stock_inputs(hub, [QUESTION])["input_ids"][0].tolist()
    image = json.loads((hub / "config.json").read_text())["image_token_index"]
    assert without_image == [token for token in prompt if token != image]
    assert our_ids(loaded, [QUESTION]) == stock_inputs(tmp_path / "swapped", [QUESTION])["input_ids"][0].tolist()


@pytest.mark.parametrize("stated", ["text_config", "config"])
@pytest.mark.parametrize("tiles", [False, True])
def test_a_tied_llm_has_its_output_layer(tiles: bool, stated: str, bridge_encoder: Path, tmp_path: Path) -> None:
    """transformers 4 states it in the LLM's config alone; 5 then leaves LLaVA-NeXT's output layer random."""
    expected = hub_llava.write_hub_llava(tmp_path / "tied", tiles=tiles, tied=True)
    if stated == "config":
        path = tmp_path / "tied" / "config.json"
        config = json.loads(path.read_text())
        config["tie_word_embeddings"] = config["text_config"].pop("tie_word_embeddings")
        path.write_text(json.dumps(config))
    inputs = stock_inputs(tmp_path / "tied", [QUESTION])
    with torch.no_grad():
        logits = expected(**inputs).logits
        for model in (load_llava(tmp_path / "tied", "cpu")[0], load_for_training(str(tmp_path / "tied"), "auto")[0]):
            torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-4, rtol=1e-4)
            assert model.lm_head.weight is model.get_input_embeddings().weight
        tokens = torch.arange(5, 11)[None]
        text = expected(input_ids=tokens).logits
        torch.testing.assert_close(load_llm(str(tmp_path / "tied"))(tokens).logits, text, atol=1e-4, rtol=1e-4)
        words = ("--encoder", str(bridge_encoder), "--output", str(tmp_path / "swapped"))
        status, _, told = bridge_world.run_cli("swap", str(tmp_path / "tied"), *words)
        assert status == 0, told
        swapped = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "swapped", dtype=torch.float32)
        torch.testing.assert_close(swapped(input_ids=tokens).logits, text, atol=1e-4, rtol=1e-4)


OTHERS = {"llava_onevision": "LlavaOnevisionConfig", "paligemma": "PaliGemmaConfig", "qwen2_vl": "Qwen2VLConfig"}


@pytest.mark.parametrize("name", [*OTHERS, "original", "pixtral"])
def test_other_models_are_named_in_one_line(
    name: str, original_parts: Any, places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, fault = tmp_path / name, f"expected model_type llava or llava_next in its config.json, got {name}"
    if name == "original":
        original_world.write_original(original_parts, directory, "clip")
        fault = "`llava-bridge convert` writes one"
    elif name == "pixtral":  # model_type llava, but with another token of an image
        hub_llava.write_hub_llava(directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "image_token_index": 10}))
        fault = "expected <image> in its tokenizer as its config.json states"
    else:
        getattr(transformers, OTHERS[name])().save_pretrained(directory)
        (directory / "model.safetensors").touch()
        shutil.copy(hub_llava.write_hub_llava(tmp_path / "hub") and tmp_path / "hub" / "tokenizer.json", directory)
    status, _, told = bridge_world.run_cli("chat", str(directory), "--prompt", "What?")
    assert (status, told.count("\n")) == (2, 1)
    assert fault in told
    words = ["run", "llava", str(directory), "--benchmarks", f"[{{name: pope, data: {places / 'hub'}}}]"]
    status = dispatch("clips-bench", "", COMMANDS, [*words, "--output", str(tmp_path / "results")])
    assert status == 2
    assert fault in capsys.readouterr().err


def test_answers_do_not_depend_on_the_batch(hub: Path) -> None:
    """Greedy, in fp32: of pictures of several shapes, of questions of several lengths, and of shared pictures."""
    model, processor = load_llava(hub, "cpu")
    wide, tall = bridge_world.noise((60, 24), (20, 70))
    shown = [wide, tall, wide, None, tall, wide]
    asked = [
        "What?",
        "Is there a very long question about colors?",
        "Red?",
        "No picture.",
        "Why?",
        "x",
    ]
    alone = [answer(model, processor, [picture], [text], 8)[0] for picture, text in zip(shown, asked, strict=True)]
    assert len(set(alone)) > 2
    for size in (2, 6):
        assert answer(model, processor, shown, asked, 8, batch_size=size) == alone
