"""Which tokens are supervised: hand-written masks for templates, truncation, errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from clips.errors import UserError
from llava_bridge.conversation import (
    CHAT_TEMPLATES,
    IGNORE_INDEX,
    ConversationEncoder,
    InvalidConversationError,
    resolve_chat_template,
    resolve_training_template,
)
from llava_bridge.data.batches import ConversationDataset

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] | trim + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "<image>\nWhat color is it?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": " yes "},
]


@pytest.fixture(scope="module")
def tokenizer(bridge_llm: Path) -> Any:
    return AutoTokenizer.from_pretrained(bridge_llm)


def split(chat: ConversationEncoder, messages: list[dict[str, Any]], length: int = 200) -> tuple[str, list[str]]:
    """The whole text, and the runs of learned tokens as text."""
    encoded = chat.encode(messages, length)
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        if label == IGNORE_INDEX:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    decode = chat.tokenizer.decode
    return decode(encoded.input_ids), [decode(run) for run in runs if run]


def test_the_own_template_of_an_llm_supervises_answers_and_end_tokens(tokenizer: Any) -> None:
    chat = ConversationEncoder(tokenizer, resolve_chat_template(CHATML, "auto"), 1)
    repeated = [{"role": "user", "content": "yes yes"}, {"role": "assistant", "content": "yes"}]
    assert split(chat, repeated)[1] == ["yes</s>"]
    text, learned = split(chat, [{"role": "system", "content": "Be brief."}, *TALK])
    assert text == (
        "<s>system\nBe brief.</s>\n<s>user\n<image>\nWhat color is it?</s>\n<s>assistant\nred</s>\n"
        "<s>user\nSure?</s>\n<s>assistant\nyes</s>\n"
    )
    assert learned == ["red</s>", "yes</s>"]


def test_the_real_llama_tokenizer(shared: Path) -> None:
    from tokenizers import AddedToken

    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories15M")
    tokenizer.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    chat = ConversationEncoder(tokenizer, resolve_chat_template(None, "vicuna"), 2)
    encoded = chat.encode(TALK, 100)
    learned = [token for token in encoded.labels if token != IGNORE_INDEX]
    assert tokenizer.convert_ids_to_tokens(learned) == ["▁red", "</s>", "▁yes", "</s>"]
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.input_ids.count(tokenizer.bos_token_id) == 1


SYSTEM = {"role": "system", "content": "Be brief."}
PREAMBLE = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
CHATML_TURNS = ("<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n«{}<|im_end|>»\n")
CHATML_SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
LLAMA_3_TURNS = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n«{}<|eot_id|>»",
)
LLAMA_3_SYSTEM = "<s><|start_header_id|>system<|end_header_id|>\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
# By hand: the beginning, a question, an answer, of which what is learned stands between guillemets, and how a
# conversation begins when the system says "Be brief."
WRITTEN = {
    "vicuna": ("<s>", "USER: {} ", "ASSISTANT: «{}</s>»", "<s>Be brief. USER: "),
    "vicuna_v1": (f"<s>{PREAMBLE}", "USER: {} ", "ASSISTANT: «{}</s>»", "<s>Be brief. USER: "),
    "turns": ("<s>", "<|user|> {}", "<|assistant|> «{}</s>»", "<s>Be brief. <|user|> "),
    "llama_2": ("", "<s>[INST] {} [/INST] ", "«{} </s>»", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>"),
    "llama_3": ("<s>", *LLAMA_3_TURNS, f"{LLAMA_3_SYSTEM}Be brief.<|eot_id|><|start_header_id|>user"),
    "llama_3_1": (
        f"{LLAMA_3_SYSTEM}{DATES}<|eot_id|>",
        *LLAMA_3_TURNS,
        f"{LLAMA_3_SYSTEM}{DATES}Be brief.<|eot_id|><|start_header_id|>user",
    ),
    "chatml": ("", *CHATML_TURNS, CHATML_SYSTEM),
    "qwen_1_5": ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", *CHATML_TURNS, CHATML_SYSTEM),
    "mistral": ("<s>", "[INST] {} [/INST] ", "«{}</s>»", "<s>[INST] Be brief.\n\n<image>"),
    "gemma": (
        "<s>",
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n«{}<end_of_turn>»\n",
        "<s><start_of_turn>user\nBe brief.\n\n<image>",
    ),
    "phi_3": (
        "<s>",
        "<|user|>\n{}<|end|>\n",
        "<|assistant|>\n«{}<|end|>»\n",
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\n",
    ),
    "tulu": ("<s>", "<|user|>\n{}\n", "<|assistant|>\n«{}</s>»\n", "<s><|system|>\nBe brief.\n<|user|>\n"),
}


@pytest.fixture(scope="module")
def families(bridge_llm: Path) -> dict[str, Any]:
    """For each template a tokenizer that knows its marks, the end of a turn being no end of text as Phi's is not."""
    from tokenizers import AddedToken

    found = {}
    for name in CHAT_TEMPLATES:
        found[name] = AutoTokenizer.from_pretrained(bridge_llm)
        marks = (
            {}
            if name in ("turns", "tulu")
            else dict.fromkeys(re.findall(r"<\|?\w{2,}\|?>", "".join(WRITTEN.get(name, ()))))
        )
        marks.pop("<image>", None)
        found[name].add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return found


@pytest.mark.parametrize("name", [name for name in CHAT_TEMPLATES if name != "plain"])
def test_rendered_and_supervised_text_by_hand(name: str, families: dict[str, Any]) -> None:
    chat = ConversationEncoder(families[name], resolve_chat_template(None, name), 1)
    chat.check_prompts()
    encoded = chat.encode(TALK, 400)
    text, learned = "", False
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        piece = chat.tokenizer.decode([token])
        if learned != (label != IGNORE_INDEX) or (learned and text.endswith(chat.end_token)):
            space = piece[: len(piece) - len(piece.lstrip())] if not learned else ""  # part of an answer's first token
            text, piece = text + space + "»«"[not learned], piece[len(space) :]
            learned = not learned
        text += piece
    begin, asked, answered, with_system = WRITTEN[name]
    first = begin + asked.format("<image>\nWhat color is it?")
    written = first + answered.format("red") + asked.format("Sure?") + answered.format("yes")
    assert text + "»" * learned == written
    assert f"yes{chat.end_token}»" in written.replace("yes </s>", "yes</s>")
    prompt = chat.prompt(TALK[:1])
    assert written.replace("«", "").replace("»", "").startswith(prompt)
    assert written[len(prompt) :].lstrip(" ").startswith("«red")
    assert chat.prompt([SYSTEM, *TALK[:1]]).startswith(with_system)


# Qwen 3's own (tokenizer_config.json of Qwen/Qwen3-0.6B, Apache-2.0), without its branches for tools.
QWEN3 = r"""
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""  # noqa: E501


def test_a_template_whose_prompt_differs_from_training_is_rejected(families: dict[str, Any]) -> None:
    """Qwen 3's: of several answers the last alone stands behind an empty thought, as each does that is asked for."""
    chat = ConversationEncoder(families["chatml"], resolve_chat_template(QWEN3, "auto"), 1)
    assert chat.prompt(TALK[:1]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    message = (
        r"chat_template: it trains an answer after '<|im_start|>assistant\n', but generates one after "
        r"'<|im_start|>assistant\n<think>\n\n</think>\n\n'; expected a template with equal prompts, "
        "such as chatml for Qwen 3"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        ConversationDataset([], chat, 200)
    with pytest.raises(InvalidConversationError, match=f"^{re.escape(message)}$"):
        chat.encode(TALK, 200)


@pytest.mark.parametrize("own", [QWEN3, None])
def test_qwen_3_without_thoughts_prompts_as_it_trains(own: str | None, families: dict[str, Any]) -> None:
    chat = ConversationEncoder(families["chatml"], resolve_chat_template(own, "chatml"), 1)
    ConversationDataset([], chat, 200)
    text, learned = split(chat, TALK)
    assert "think" not in text
    assert learned == ["red<|im_end|>", "yes<|im_end|>"]
    for turns in (1, 3):
        assert text.startswith(chat.prompt(TALK[:turns]) + ["red", "yes"][turns // 2])


def test_a_template_is_also_checked_with_a_system_message(tokenizer: Any) -> None:
    other = "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% if messages[0]['role'] == 'system' %}{{ 'Well, ' }}"
    own = CHATML.replace("{% if add_generation_prompt %}{{ '<s>assistant\n' }}", other + "{% endif %}")
    with pytest.raises(UserError, match=r"assistant\\n', but generates one after '.*assistant\\nWell, '"):
        ConversationEncoder(tokenizer, own, 1).check_prompts()


def test_content_as_text_and_as_parts_render_alike(tokenizer: Any) -> None:
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is it?"}]}]
    for own, shown in (
        (None, "<s>USER: <image>\nWhat color is it? ASSISTANT:"),
        (CHATML, "<image>\nWhat"),
    ):
        chat = ConversationEncoder(tokenizer, resolve_chat_template(own, "auto"), 2)
        assert chat.prompt(parts) == chat.prompt(TALK[:1])
        assert shown in chat.prompt(parts)


def test_of_several_templates_the_default_is_used(tokenizer: Any) -> None:
    several = {"default": CHATML, "tool_use": "{{ raise_exception('no tools') }}"}
    assert resolve_chat_template(several, "auto") == resolve_chat_template(CHATML, "auto")
    assert resolve_training_template(several, "auto", tokenizer) == resolve_chat_template(CHATML, "auto")


def test_long_samples_are_truncated_on_the_right_but_never_in_an_image(tokenizer: Any) -> None:
    chat = ConversationEncoder(tokenizer, CHAT_TEMPLATES["vicuna"], 8)
    whole = chat.encode(TALK, 200)
    first = next(index for index, label in enumerate(whole.labels) if label != IGNORE_INDEX)
    cut = chat.encode(TALK, first + 1)
    assert cut.input_ids == whole.input_ids[: first + 1]
    assert cut.labels[-1] != IGNORE_INDEX
    with pytest.raises(InvalidConversationError, match="no answer"):
        chat.encode(TALK, first)
    with pytest.raises(InvalidConversationError, match="images do not fit"):
        chat.encode(TALK, whole.input_ids.index(chat.image_id) + 7)


def test_bad_templates_are_rejected(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="no special token follows an answer"):
        ConversationEncoder(tokenizer, "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}", 1).check_end()
    with pytest.raises(UserError, match="did you mean 'vicuna'"):
        resolve_chat_template(None, "vicunia")
    with pytest.raises(UserError, match="generation prompt is not"):
        ConversationEncoder(tokenizer, CHATML.replace("<s>assistant", "<s>assistant <think>"), 1).check_end()
    twice = ConversationEncoder(tokenizer, CHAT_TEMPLATES["vicuna"], 1)
    twice.template = "{% for m in messages %}{{ m['content'] + m['content'] + '</s>' }}{% endfor %}"
    with pytest.raises(UserError, match="every answer once"):
        twice.encode(TALK, 200)


def test_plain_is_an_image_and_its_caption(tokenizer: Any) -> None:
    """LLaVA's first stage: no roles, no question; the caption is learned with the line's end."""
    chat = ConversationEncoder(tokenizer, resolve_chat_template(None, "plain"), 2)
    chat.check_prompts()
    text, learned = split(chat, TALK[:2])
    assert text == "<s><image><image>red\n"
    assert learned == ["red\n"]
    two = [{"role": "user", "content": "Compare <image> with <image>."}, TALK[1]]
    assert split(chat, two)[0] == "<s><image><image><image><image>red\n"
    with pytest.raises(Exception, match="plain: expected an image and its caption"):
        chat.encode(TALK, 100)
    with pytest.raises(UserError, match="no special token follows an answer"):
        chat.check_end()


def test_a_template_with_a_date_uses_a_fixed_one(tokenizer: Any) -> None:
    own = (
        "{{ bos_token }}{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}"
        "{%- else %}{%- set day = 'never' %}{%- endif %}Today: {{ day }}\n"
        "{%- for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ 'assistant: ' }}{%- endif %}"
    )
    template = resolve_chat_template(own, "auto")
    text = ConversationEncoder(tokenizer, template, image_tokens=2).prompt([{"role": "user", "content": "What?"}])
    assert "Today: 26 Jul 2024" in text
    assert resolve_chat_template(template, "auto") == template


@pytest.mark.parametrize("trim", [False, True])
def test_spaces_in_answers_are_supervised_with_any_offsets(trim: bool) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    said = "a list:\n\n- one\n    - two   x"
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(special_tokens=list(names.values()), initial_alphabet=alphabet, show_progress=False)
    bytes_.train_from_iterator([said] * 50, trainer)
    bytes_.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_, **names)
    chat = ConversationEncoder(tokenizer, resolve_chat_template(None, "vicuna"), 3)
    talk = [{"role": "user", "content": "<image>\nq"}, {"role": "assistant", "content": said}]
    encoded = chat.encode([*talk, *talk], 500)
    assert tokenizer.decode([label for label in encoded.labels if label != -100]) == f" {said}</s>" * 2
