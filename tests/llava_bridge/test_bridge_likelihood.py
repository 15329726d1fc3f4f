"""Likelihoods of answers: the batched ones against one whole forward pass at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_world
import bridge_world
import pytest
import torch
from PIL import Image

from clips.errors import UserError
from llava_bridge import load_llava, loglikelihoods
from llava_bridge.conversation import IMAGE
from llava_bridge.inference import loglikelihood

TEXTS = ["red", "A green square number 1.", "blue on grey, 3", "there is", "yes"]
PROMPTS = ["What is it?", "Describe the picture.", "What?", "Say something long about what you see here.", "Is it?"]


@pytest.fixture(scope="module")
def stock(places: Path) -> tuple[Any, Any]:
    return load_llava(places / "llava", "cpu")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, bridge_long_llm: Path) -> tuple[Any, Any]:
    directory = tmp_path_factory.mktemp("tiles") / "llava"
    return load_llava(
        bridge_world.make_llava(directory, bridge_encoder, bridge_long_llm, image_aspect_ratio="anyres"), "cpu"
    )


@pytest.fixture(scope="module")
def real_words(tmp_path_factory: pytest.TempPathFactory, bridge_encoder: Path, shared: Path) -> tuple[Any, Any]:
    """A pretrained Llama with its SentencePiece vocabulary, in which a word's blank belongs to its token."""
    directory = tmp_path_factory.mktemp("words") / "llava"
    return load_llava(bridge_world.make_llava(directory, bridge_encoder, shared / "models/stories15M"), "cpu")


def sample_images() -> list[Any]:
    """One, two, none, one of another shape, one."""
    return [
        bench_world.draw_image(0),
        [bench_world.draw_image(1), bench_world.draw_image(2)],
        None,
        bench_world.draw_image(3).resize((90, 40)),
        bench_world.draw_image(4),
    ]


@torch.inference_mode()
def naive(model: Any, processor: Any, images: Any, prompt: str, text: str, *, end: bool) -> tuple[float, int, bool]:
    """One text alone: all its logits, and the tokens of the rendered whole behind those of the rendered prompt."""
    shown = [] if images is None else [images] if isinstance(images, Image.Image) else list(images)
    user = {"role": "user", "content": f"{IMAGE}\n" * len(shown) + prompt}
    rendered = [
        processor.tokenizer.apply_chat_template(messages, chat_template=processor.chat_template, tokenize=False, **more)
        for messages, more in (
            ([user], {"add_generation_prompt": True}),
            ([user, {"role": "assistant", "content": text}], {}),
        )
    ]
    before, whole = (
        processor(text=each, images=shown or None, return_tensors="pt", add_special_tokens=False) for each in rendered
    )
    logs = model(**whole).logits.float().log_softmax(dim=-1)[0]
    ids = whole["input_ids"][0]
    first = before["input_ids"].shape[1]
    assert ids[:first].tolist() == before["input_ids"][0].tolist()
    last = max(place for place in range(len(ids)) if ids[place] == processor.tokenizer.eos_token_id)
    places = list(range(first, last + end))
    total = sum(logs[place - 1, ids[place]].item() for place in places)
    return total, len(places), all(logs[place - 1].argmax() == ids[place] for place in places)


@pytest.mark.parametrize(
    ("kind", "end", "side"),
    [
        ("stock", True, "left"),
        ("stock", False, "right"),
        ("tiles", True, "right"),
        pytest.param("tiles", False, "left", marks=pytest.mark.slow),
        ("real_words", False, "left"),
        pytest.param("real_words", True, "right", marks=pytest.mark.slow),
    ],
)
def test_batches_are_one_by_one(kind: str, end: bool, side: str, request: pytest.FixtureRequest) -> None:
    model, processor = request.getfixturevalue(kind)
    processor.tokenizer.padding_side = side
    for batch in (2, 5):
        found = loglikelihoods(model, processor, sample_images(), PROMPTS, TEXTS, batch, end=end)
        for each, images, prompt, text in zip(found, sample_images(), PROMPTS, TEXTS, strict=True):
            total, tokens, greedy = naive(model, processor, images, prompt, text, end=end)
            assert each.total == pytest.approx(total, abs=2e-4)
            assert (each.tokens, each.greedy) == (tokens, greedy)


def test_the_end_is_one_token_more(stock: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = stock
    picture = bench_world.draw_image(0)
    (short,) = loglikelihoods(model, processor, [picture], ["What is it?"], ["red"], end=False)
    (whole,) = loglikelihoods(model, processor, [picture], ["What is it?"], ["red"])
    assert whole.tokens == short.tokens + 1
    assert whole.total < short.total < 0
    monkeypatch.setattr(loglikelihood, "_CHUNK_ROWS", 1)
    assert loglikelihoods(model, processor, [picture], ["What is it?"], ["red"])[0].total == pytest.approx(whole.total)
    plain, spaced = loglikelihoods(model, processor, [None] * 2, ["Hm?"] * 2, ["yes", "  yes\n"])
    assert spaced.total == pytest.approx(plain.total, abs=1e-5)  # white space around a text changes nothing
    assert spaced.tokens == plain.tokens


def test_the_greedy_flag_agrees_with_greedy_decoding(stock: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose favorite token is one that an answer consists of."""
    model, processor = stock
    favorite = processor.tokenizer(" red", add_special_tokens=False)["input_ids"]
    assert len(favorite) == 1
    biased = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    biased.weight.data.copy_(model.lm_head.weight)
    biased.bias.data.zero_()[favorite[0]] = 50
    monkeypatch.setitem(model._modules, "lm_head", biased)
    found = loglikelihoods(model, processor, [None, None], ["Hm?", "Hm?"], ["red", "blue"], end=False)
    assert [each.greedy for each in found] == [True, False]
    assert found[0].total == pytest.approx(0, abs=1e-6)
    assert not loglikelihoods(model, processor, [None], ["Hm?"], ["red"])[0].greedy  # it would continue, not end


def test_a_word_is_its_own_token_behind_a_prompt(real_words: tuple[Any, Any]) -> None:
    """Tokenized by itself or joined to the prompt, "dog" would be other tokens; a story's next word is likely."""
    model, processor = real_words
    sense, none = loglikelihoods(model, processor, [None] * 2, ["Once upon a"] * 2, ["dog", "god"], end=False)
    assert (sense.tokens, none.tokens) == (1, 1)
    assert sense.total > none.total


def test_samples_that_cannot_be_scored_are_rejected(stock: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = stock
    for text in ("", "  "):
        with pytest.raises(UserError, match="expected a string to score, got"):
            loglikelihoods(model, processor, [None], ["Hm?"], [text])
    with pytest.raises(UserError, match="a prompt has 0 images but not as many <image> tokens"):
        loglikelihoods(model, processor, [None], ["Hm?"], ["an <image> in it"])
    monkeypatch.setattr(model.config.get_text_config(), "max_position_embeddings", 20)
    with pytest.raises(UserError, match="images included; expected at most the LLM's context of 20 "):
        loglikelihoods(model, processor, [bench_world.draw_image(0)], ["Hm?"], ["yes"])
