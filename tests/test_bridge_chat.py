"""Which tokens are learnt: hand-written masks for templates, cuts, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from clips.errors import UserError
from llava_bridge.chat import IGNORED, TEMPLATES, Chat, SampleError, template_for

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] | trim + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "<image>\nWhat colour is it?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": " yes "},
]


@pytest.fixture(scope="module")
def tokenizer(bridge_llm: Path) -> Any:
    return AutoTokenizer.from_pretrained(bridge_llm)


def split(chat: Chat, messages: list[dict[str, Any]], length: int = 200) -> tuple[str, list[str]]:
    """The whole text, and the runs of learnt tokens as text."""
    encoded = chat.encode(messages, length)
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    decode = chat.tokenizer.decode
    return decode(encoded.input_ids), [decode(run) for run in runs if run]


def test_vicuna_learns_answers_and_their_end_tokens(tokenizer: Any) -> None:
    chat = Chat(tokenizer, template_for(None, "auto"), 3)
    text, learnt = split(chat, TALK)
    assert text == "<s>USER: <image><image><image>\nWhat colour is it? ASSISTANT: red</s>USER: Sure? ASSISTANT: yes</s>"
    assert [run.strip() for run in learnt] == ["red</s>", "yes</s>"]
    assert chat.end_token == "</s>"


def test_an_llms_own_template_learns_answers_and_their_end_tokens(tokenizer: Any) -> None:
    chat = Chat(tokenizer, template_for(CHATML, "auto"), 1)
    text, learnt = split(chat, [{"role": "system", "content": "Be brief."}, *TALK])
    assert text == (
        "<s>system\nBe brief.</s>\n<s>user\n<image>\nWhat colour is it?</s>\n<s>assistant\nred</s>\n"
        "<s>user\nSure?</s>\n<s>assistant\nyes</s>\n"
    )
    assert learnt == ["red</s>", "yes</s>"]


def test_the_real_llama_tokenizer(shared: Path) -> None:
    from tokenizers import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories15M")
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    chat = Chat(tokenizer, template_for(None, "vicuna"), 2)
    encoded = chat.encode(TALK, 100)
    learnt = [token for token in encoded.labels if token != IGNORED]
    assert tokenizer.convert_ids_to_tokens(learnt) == ["▁red", "</s>", "▁yes", "</s>"]
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("own", [None, CHATML])
def test_what_is_asked_is_what_was_trained(own: str | None, tokenizer: Any) -> None:
    chat = Chat(tokenizer, template_for(own, "auto"), 2)
    prompt = tokenizer(chat.prompt(TALK[:3]), add_special_tokens=False)["input_ids"]
    whole = chat.encode(TALK, 200)
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.labels[len(prompt)] != IGNORED
    assert all(label == IGNORED for label in whole.labels[len(prompt) - 3 : len(prompt)])


def test_content_as_text_and_as_parts_render_alike(tokenizer: Any) -> None:
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is it?"}]}]
    for own in (None, CHATML):
        chat = Chat(tokenizer, template_for(own, "auto"), 2)
        assert chat.prompt(parts) == chat.prompt(TALK[:1])


def test_long_samples_are_cut_on_the_right_but_never_in_a_picture(tokenizer: Any) -> None:
    chat = Chat(tokenizer, TEMPLATES["vicuna"], 8)
    whole = chat.encode(TALK, 200)
    first = next(index for index, label in enumerate(whole.labels) if label != IGNORED)
    cut = chat.encode(TALK, first + 1)
    assert cut.input_ids == whole.input_ids[: first + 1]
    assert cut.labels[-1] != IGNORED
    with pytest.raises(SampleError, match="no answer"):
        chat.encode(TALK, first)
    with pytest.raises(SampleError, match="pictures do not fit"):
        chat.encode(TALK, whole.input_ids.index(chat.image_id) + 7)


def test_answers_that_repeat_the_question_are_still_told_apart(tokenizer: Any) -> None:
    chat = Chat(tokenizer, TEMPLATES["vicuna"], 1)
    _, learnt = split(chat, [{"role": "user", "content": "yes yes"}, {"role": "assistant", "content": "yes"}])
    assert [run.strip() for run in learnt] == ["yes</s>"]


def test_bad_templates_are_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no special token follows an answer"):
        Chat(tokenizer, "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", 1)
    with pytest.raises(UserError, match="did you mean 'vicuna'"):
        template_for(None, "vicunia")
    with pytest.raises(UserError, match="generation prompt is not"):
        Chat(tokenizer, CHATML.replace("<s>assistant", "<s>assistant <think>"), 1)
    twice = Chat(tokenizer, TEMPLATES["vicuna"], 1)
    twice.template = "{% for m in messages %}{{ m['content'] + m['content'] + '</s>' }}{% endfor %}"
    with pytest.raises(UserError, match="every answer once"):
        twice.encode(TALK, 200)
