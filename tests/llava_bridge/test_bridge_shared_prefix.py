"""Questions about one image share its pass through tower and LLM, and get the answers that they get alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bridge_world
import pytest
import torch
from families import quick_of
from PIL import Image
from transformers import AutoTokenizer

from llava_bridge import answer, load_llava
from llava_bridge.inference import generate
from llava_bridge.model.build import LlavaParts, build_llava
from llava_bridge.model.llava_files import load_for_training

QUESTIONS = ["What is it?", "Is there a red thing in the picture? Answer yes or no.", "Where?", "Tell a long story."]
SHARED = ["qwen3", "llama", "granite", "cohere", "gpt2", "opt", "gpt_neox"]


def noise_images(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    return bridge_world.noise(*[size] * count)


@pytest.fixture
def llava(bridge_llm: Path, bridge_encoder: Path, tmp_path: Path) -> Any:
    def build(kind: str, llm: dict[str, Any] | None = None, **more: Any) -> tuple[Any, Any]:
        bridge_world.make_llm_of(kind, AutoTokenizer.from_pretrained(bridge_llm), tmp_path / "llm", **(llm or {}))
        model, processor = build_llava(LlavaParts(encoder=str(bridge_encoder), llm=str(tmp_path / "llm"), **more))
        for weight in model.model.multi_modal_projector.parameters():
            torch.nn.init.normal_(weight, std=0.5)  # so that the image counts
        return model.eval(), processor

    return build


def ask(llava: tuple[Any, Any], shown: list[Any], asked: list[str], **more: Any) -> list[str]:
    return answer(*llava, shown, asked, max_new_tokens=6, **more)


@pytest.mark.parametrize("kind", quick_of([*SHARED, "falcon_h1"], "qwen3", "falcon_h1"))
def test_answers_are_those_of_questions_asked_alone(kind: str, llava: Any) -> None:
    built = llava(kind)
    three = noise_images(3)
    shown = [three[number % 3] for number in range(9)] + [None, three[:2], three[:2]]
    asked = [QUESTIONS[number % 4] for number in range(12)]
    alone = [ask(built, [picture], [question])[0] for picture, question in zip(shown, asked, strict=True)]
    assert len(set(alone)) > 5
    passes = count_images(built)
    for batch_size in (2, 4, 32):  # less than an image's questions, some images, all
        passes.clear()
        assert ask(built, shown, asked, batch_size=batch_size) == alone
        if kind in SHARED:
            assert sum(passes) == 3 + 2  # each once, and the pair that two questions show


def test_a_llava_without_a_padding_token_answers_as_with_one(bridge_llava: Path, tmp_path: Path) -> None:
    copy = tmp_path / "llava"
    shutil.copytree(bridge_llava, copy)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"):
        if (copy / name).is_file():
            fields = json.loads((copy / name).read_text())
            for part in (fields, fields.get("text_config", {})):
                part.pop("pad_token", None)
                part.pop("pad_token_id", None)
            (copy / name).write_text(json.dumps(fields))
    assert AutoTokenizer.from_pretrained(copy).pad_token is None
    shown, asked = noise_images(4), QUESTIONS[:4]
    assert len({len(question.split()) for question in asked}) > 1
    expected = ask(load_llava(bridge_llava), shown, asked, batch_size=4)
    assert ask(load_llava(copy), shown, asked, batch_size=4) == expected
    _, processor = load_for_training(str(copy), "auto")
    assert isinstance(processor.tokenizer.pad_token_id, int)


def test_a_config_that_a_trainer_left_without_cache(llava: Any) -> None:
    """Generating would take the prefix for what it has read, and then read it again behind itself."""
    built = llava("qwen3")
    (picture,) = noise_images(1)
    alone = [ask(built, [picture], [question])[0] for question in QUESTIONS]
    for config in (built[0].generation_config, built[0].config, built[0].config.text_config):
        config.use_cache = False
    assert ask(built, [picture] * 4, QUESTIONS) == alone


def count_images(llava: tuple[Any, Any]) -> list[int]:
    """A list to which every pass through the tower adds its images."""
    passes: list[int] = []
    llava[0].model.vision_tower.register_forward_hook(lambda module, inputs, outputs: passes.append(len(inputs[0])))
    return passes


def test_sampling_and_beam_search_work_with_a_shared_prefix(llava: Any) -> None:
    built = llava("qwen3")
    (picture,) = noise_images(1)
    beams = ask(built, [picture] * 3, QUESTIONS[:3], num_beams=2)
    assert beams == [ask(built, [picture], [question], num_beams=2)[0] for question in QUESTIONS[:3]]


@pytest.mark.parametrize("kind", quick_of(["qwen3", "llama", "granite"], "qwen3"))
def test_a_static_cache_gives_the_same_answers(kind: str, llava: Any) -> None:
    built = llava(kind)
    three = noise_images(3)
    shown = [*three, None, three[0], three[:2]]
    asked = [QUESTIONS[number % 4] for number in range(6)]
    dynamic = ask(built, shown, asked)
    assert len(set(dynamic)) > 3
    assert ask(built, shown, asked, batch_size=4, cache_implementation="static") == dynamic


@pytest.mark.parametrize(("kind", "shared"), [("bloom", True), ("falcon", True), ("mpt", False), ("qwen3", True)])
def test_a_prefix_is_shared_only_by_llms_that_answer_as_alone(kind: str, shared: bool, llava: Any) -> None:
    """Of three with ALiBi, the biases of MPT count the padding between a prefix and a question."""
    more = {"bloom": {"n_layer": 2, "n_head": 4}, "falcon": {"alibi": True, "multi_query": False}}
    more["mpt"] = {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2}
    built = llava(kind, llm=more.get(kind, {}))
    built[0].generation_config.eos_token_id = None  # answers of equal length
    assert generate.shares_prefixes(built[0]) == shared
    (picture,) = noise_images(1)
    together = ask(built, [picture] * 4, QUESTIONS)
    assert together == [ask(built, [picture], [question])[0] for question in QUESTIONS]


def test_several_answers_of_a_prompt_and_transformers_own_result(llava: Any) -> None:
    built = llava("qwen3")
    (picture,) = noise_images(1)
    expected = ask(built, [picture] * 2, QUESTIONS[:2])
    assert ask(built, [picture] * 2, QUESTIONS[:2], return_dict_in_generate=True) == expected
    beams = ask(built, [picture] * 2, QUESTIONS[:2], num_beams=3, num_return_sequences=2)
    for number, question in enumerate(QUESTIONS[:2]):
        assert beams[2 * number : 2 * number + 2] == ask(
            built, [picture], [question], num_beams=3, num_return_sequences=2
        )
    assert len(set(beams[:2])) == 2
    sampled = ask(built, [picture] * 3, QUESTIONS[:3], num_return_sequences=2, do_sample=True, temperature=2.0)
    assert len(sampled) == 6


def test_images_that_only_look_alike_are_not_mixed_up(llava: Any) -> None:
    """The same object is the same image; the same prompt about another one has a prefix of its own."""
    built = llava("qwen3")
    first, second = noise_images(2)
    asked = [QUESTIONS[0], QUESTIONS[1]] * 2
    found = ask(built, [first, first, second, second], asked)
    assert found[:2] == ask(built, [first, first], asked[:2])
    assert found[2:] == ask(built, [second, second], asked[:2])
    assert found[:2] != found[2:]


def test_tiles(llava: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = llava("qwen3", image_aspect_ratio="anyres")
    shown = [*noise_images(1, (40, 30)) * 2, *noise_images(1, (90, 30)) * 3]  # of different numbers of tokens
    asked = QUESTIONS + QUESTIONS[:1]
    assert generate.shares_prefixes(built[0])
    prefixes = []
    original = generate.PrefixCache

    def computed(*args: Any) -> Any:
        prefixes.append(original(*args))
        return prefixes[-1]

    monkeypatch.setattr(generate, "PrefixCache", computed)
    together = ask(built, shown, asked)
    monkeypatch.undo()
    assert [len(each.ids) for each in prefixes] == [2]
    assert together == [ask(built, [picture], [question])[0] for picture, question in zip(shown, asked, strict=True)]
