"""A streamed answer equals the whole answer, and ends where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava_bridge.inference.generate import answer, load_llava, prepend_image_tokens
from llava_bridge.inference.streaming import (
    ContextLengthError,
    GenerationParams,
    StreamedAnswer,
    context_length,
    generate_answers,
    prepare_prompt,
)

PICTURE = Image.new("RGB", (30, 20), "red")
TALK = [{"role": "user", "content": "<image>\nWhat color is it?"}]


def stream_answer(model: Any, processor: Any, *prompt: Any, **callbacks: Any) -> StreamedAnswer:
    return generate_answers(model, processor, [prepare_prompt(model, processor, *prompt, **callbacks)])[0]


@pytest.fixture(scope="module")
def llava(bridge_llava: Path) -> tuple[Any, Any]:
    return load_llava(bridge_llava)


def forced(monkeypatch: pytest.MonkeyPatch, llava: tuple[Any, Any], text: str) -> list[int]:
    """Make the LLaVA write ``text`` and its end token for any prompt."""
    model, processor = llava
    tokens = [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id]
    written: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        written.append(tokens[len(written)])
        return torch.nn.functional.one_hot(torch.tensor([[written[-1]]]), model.lm_head.out_features).float()

    monkeypatch.setattr(model.lm_head, "forward", head)
    return tokens


def test_the_pieces_are_the_answer(llava: tuple[Any, Any]) -> None:
    pieces: list[str] = []
    told = stream_answer(*llava, [PICTURE], TALK, GenerationParams(max_new_tokens=12), on_text=pieces.append)
    (whole,) = answer(*llava, [PICTURE], ["What color is it?"], max_new_tokens=12)
    assert "".join(pieces) == told.text == whole
    assert len(pieces) > 1
    assert all(pieces)
    assert (told.new_tokens, told.finish) == (12, "length")
    text = llava[1].apply_chat_template(TALK, add_generation_prompt=True)
    stock = llava[1](images=PICTURE, text=text, add_special_tokens=False)
    assert told.prompt_tokens == len(stock["input_ids"][0])


def test_an_answer_that_ends_by_itself(llava: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = forced(monkeypatch, llava, "a red shape é  color")
    pieces: list[str] = []
    told = stream_answer(*llava, [PICTURE], TALK, on_text=pieces.append)
    assert told.text == "a red shape é  color" == "".join(pieces)
    assert (told.new_tokens, told.finish) == (len(tokens), "stop")
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert not any(piece.endswith(" ") for piece in pieces)  # it might be the last


@pytest.mark.parametrize(
    ("stop", "text"),
    [(["shape"], "a red"), ([" red", "zzz"], "a"), (["colors"], "a red shape color"), ([""], "a red shape color")],
)
def test_stop_texts(llava: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, stop: list[str], text: str) -> None:
    tokens = forced(monkeypatch, llava, "a red shape color")
    pieces: list[str] = []
    told = stream_answer(*llava, [PICTURE], TALK, GenerationParams(stop=stop), on_text=pieces.append)
    assert "".join(pieces) == told.text == text
    assert told.finish == "stop"
    assert (told.new_tokens == len(tokens)) is (text == "a red shape color")


def test_generation_stops_when_the_client_is_gone(llava: tuple[Any, Any]) -> None:
    asked = iter([False, False, True])
    told = stream_answer(*llava, [PICTURE], TALK, cancelled=lambda: next(asked))
    assert (told.new_tokens, told.finish) == (3, "cancelled")


def test_drawn_answers_depend_on_the_seed_alone(llava: tuple[Any, Any]) -> None:
    def drawn(**settings: Any) -> StreamedAnswer:
        return stream_answer(*llava, [PICTURE], TALK, GenerationParams(max_new_tokens=12, **settings))

    greedy = drawn()
    assert drawn(temperature=0) == greedy
    assert drawn(temperature=2.0, seed=1) == drawn(temperature=2.0, seed=1)
    assert drawn(temperature=2.0, seed=1).text != drawn(temperature=2.0, seed=2).text
    assert drawn(temperature=2.0, seed=1, top_p=1e-6) == greedy


def test_the_context_is_the_limit(llava: tuple[Any, Any]) -> None:
    context = context_length(llava[0])
    assert context == 128
    told = stream_answer(*llava, [PICTURE], TALK, GenerationParams(max_new_tokens=1000))
    assert told.prompt_tokens + told.new_tokens <= context
    long = [{"role": "user", "content": prepend_image_tokens("word " * context, [PICTURE])}]
    with pytest.raises(ContextLengthError, match="expected fewer than the LLM's context of 128"):
        stream_answer(*llava, [PICTURE], long)
