"""Conversations of many kinds, templates and tokenizers: what is trained begins, in tokens, with what chat asks.

The reference is transformers' own rendering of each prompt, in its own tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import generators
import pytest
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clips.errors import UserError
from llava_bridge.conversation import (
    IGNORE_INDEX,
    IMAGE,
    ConversationEncoder,
    InvalidConversationError,
    resolve_chat_template,
    resolve_training_template,
)
from llava_bridge.inference.generate import encode_prompt


def _chat_template(user: str, answer: str, prompt: str, *, system: str = "''", before: str = "''", after: str = "''"):
    return (
        f"{{{{ {before} }}}}{{% for message in messages %}}{{% set content = message['content'] %}}"
        f"{{% if message['role'] == 'system' %}}{{{{ {system} }}}}"
        f"{{% elif message['role'] == 'user' %}}{{{{ {user} }}}}{{% else %}}{{{{ {answer} }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{{{{ {prompt} }}}}{{% else %}}{{{{ {after} }}}}{{% endif %}}"
    )


# As the families publish them, without branches for tools.
TEMPLATES = {
    "llava-1.5": _chat_template(
        "'USER: ' + content + ' '", "'ASSISTANT: ' + content + eos_token", "'ASSISTANT:'", system="content + ' '"
    ),
    "llama-2": _chat_template(
        "bos_token + '[INST] ' + content.strip() + ' [/INST]'", "' ' + content.strip() + ' ' + eos_token", "''"
    ),
    "llama-3": _chat_template(
        r"'<|start_header_id|>user<|end_header_id|>\n\n' + content | trim + '<|eot_id|>'",
        r"'<|start_header_id|>assistant<|end_header_id|>\n\n' + content | trim + '<|eot_id|>'",
        r"'<|start_header_id|>assistant<|end_header_id|>\n\n'",
        system=r"'<|start_header_id|>system<|end_header_id|>\n\n' + content | trim + '<|eot_id|>'",
        before="bos_token or ''",
    ),
    "qwen-2": _chat_template(
        r"'<|im_start|>user\n' + content + '<|im_end|>\n'",
        r"'<|im_start|>assistant\n' + content + '<|im_end|>\n'",
        r"'<|im_start|>assistant\n'",
        system=r"'<|im_start|>system\n' + content + '<|im_end|>\n'",
        before=r"'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' if messages[0]['role'] != 'system' "
        "else ''",
    ),
    "qwen-3": (
        "{%- set ns = namespace(last=-1) %}{%- for message in messages %}{%- if message.role == 'user' %}"
        "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}{%- if message.role != 'assistant' %}"
        r"{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- else %}{%- set thought = '' %}"
        "{%- if '</think>' in content %}"
        r"{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        r"{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        r"{{- '<|im_start|>assistant\n' }}{%- if loop.index0 > ns.last %}"
        r"{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{%- else %}{{- content }}"
        r"{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        r"{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
        r"{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
        "{%- endif %}"
    ),
    "gemma": _chat_template(
        r"'<start_of_turn>user\n' + content | trim + '<end_of_turn>\n'",
        r"'<start_of_turn>model\n' + content | trim + '<end_of_turn>\n'",
        r"'<start_of_turn>model\n'",
        system="raise_exception('System role not supported')",
        before="bos_token or ''",
    ),
    "mistral": _chat_template(
        "'[INST] ' + content + '[/INST]'",
        "' ' + content + eos_token",
        "''",
        system="raise_exception('Only user and assistant roles are supported!')",
        before="bos_token or ''",
    ),
    "phi-3": _chat_template(
        r"'<|user|>\n' + content + '<|end|>\n'",
        r"'<|assistant|>\n' + content + '<|end|>\n'",
        r"'<|assistant|>\n'",
        system=r"'<|system|>\n' + content + '<|end|>\n'",
        after="eos_token",
    ),
    "zephyr": _chat_template(
        r"'<|user|>\n' + content + eos_token + '\n'",
        r"'<|assistant|>\n' + content + eos_token + '\n'",
        r"'<|assistant|>\n'",
        system=r"'<|system|>\n' + content + eos_token + '\n'",
    ),
    "deepseek": _chat_template(
        r"'User: ' + content + '\n\n'",
        "'Assistant: ' + content + eos_token",
        "'Assistant:'",
        system=r"content + '\n\n'",
        before="bos_token or ''",
    ),
    "deepseek-r1": _chat_template(
        "'<|User|>' + content",
        "'<|Assistant|>' + content.split('</think>')[-1] + eos_token",
        "'<|Assistant|>'",
        system="content",
        before="bos_token or ''",
    ),
    "deepseek-r1-0528": _chat_template(
        "'<|User|>' + content",
        "'<|Assistant|>' + content.split('</think>')[-1] + eos_token",
        r"'<|Assistant|><think>\n'",
        system="content",
        before="bos_token or ''",
    ),
    "smollm-2": _chat_template(
        r"'<|im_start|>user\n' + content + '<|im_end|>\n'",
        r"'<|im_start|>assistant\n' + content + '<|im_end|>\n'",
        r"'<|im_start|>assistant\n'",
        system=r"'<|im_start|>system\n' + content + '<|im_end|>\n'",
        before=r"'<|im_start|>system\nYou are SmolLM.<|im_end|>\n' if messages[0]['role'] != 'system' else ''",
    ),
    "tulu": _chat_template(
        r"'<|user|>\n' + content + '\n'",
        r"'<|assistant|>\n' + content + eos_token + ('' if loop.last else '\n')",
        r"'<|assistant|>\n'",
        system=r"'<|system|>\n' + content + '\n'",
    ),
    "alpaca": _chat_template(
        r"'### Instruction:\n' + content.strip() + '\n\n'",
        r"'### Response:\n' + content.strip() + eos_token + '\n\n'",
        r"'### Response:\n'",
        system=r"content + '\n\n'",
        before="bos_token or ''",
    ),
    "answer": _chat_template(
        r"'Question: ' + content + '\n'", r"'Answer: ' + content + eos_token + '\n'", "'Answer: '"
    ),
    "captions": _chat_template("content", r"content + '\n'", "''", before="bos_token or ''"),
}
THOUGHTFUL = {"qwen-3", "deepseek-r1-0528"}  # which ask after other text than they write before an earlier answer

WORDS = (
    "a yes no red the image shows two dogs on grass : ) - . , 12 \n USER: ASSISTANT: Answer: Question: assistant user"
)
CORPUS = [" ".join(WORDS.split(" ")[shift:] + WORDS.split(" ")[:shift]) for shift in range(20)] * 8
CORPUS += ["Answer: yes", "\nyes\nno", "ASSISTANT: red", ":)", ": -)", "école 犬 été", "[INST] yes [/INST] no"] * 8
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MARKS = sorted({mark for template in TEMPLATES.values() for mark in re.findall(r"<\|?\w{3,}\|?>", template)})
MARKS = [mark for mark in MARKS if mark != "<think>"]


def _trained(model: Any, trainer: Any, **parts: Any) -> Any:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _byte_level(prefix: bool = False, trim: bool = True, split: str = "", normalizer: Any = None) -> Any:
    own: Any = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if split:
        own = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    parts: dict[str, Any] = {"pre_tokenizer": own, "decoder": decoders.ByteLevel()}
    parts["post_processor"] = processors.ByteLevel(trim_offsets=trim)
    return _trained(models.BPE(), trainer, **parts, **({"normalizer": normalizer} if normalizer else {}))


def _sentencepiece(scheme: str, *, unigram: bool = False, across: bool = False) -> Any:
    """With tokens of bytes, as Llama's, or of words and, if ``across``, several; ``scheme``: where a space is added."""
    spaces: Any = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=not across)
    decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if scheme != "never" else []),
        ]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if unigram:
        trainer = trainers.UnigramTrainer(
            vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
        return _trained(models.Unigram(), trainer, pre_tokenizer=spaces, decoder=decoder)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *fallback], show_progress=False)
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return _trained(model, trainer, pre_tokenizer=spaces, decoder=decoder)


def _word_pieces() -> Any:
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    parts: dict[str, Any] = {"normalizer": normalizers.BertNormalizer(lowercase=True)}
    parts |= {"pre_tokenizer": pre_tokenizers.BertPreTokenizer(), "decoder": decoders.WordPiece()}
    return _trained(models.WordPiece(unk_token="[UNK]"), trainer, **parts)


def _legacy_llama() -> Any:
    tokenizer = _sentencepiece("always")
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


QWEN_SPLIT = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TOKENIZERS: dict[str, Any] = {
    "bytes": _byte_level,
    "bytes, prefixed with a space": functools.partial(_byte_level, prefix=True),
    "bytes, whole offsets": functools.partial(_byte_level, trim=False),
    "bytes, qwen": functools.partial(_byte_level, split=QWEN_SPLIT),
    "bytes, normalized": functools.partial(_byte_level, normalizer=normalizers.NFKC()),
    "bytes, shifted": functools.partial(
        _byte_level, normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "sentencepiece, always": functools.partial(_sentencepiece, "always"),
    "sentencepiece, first": functools.partial(_sentencepiece, "first"),
    "sentencepiece, never": functools.partial(_sentencepiece, "never"),
    "sentencepiece, legacy": _legacy_llama,
    "unigram, always": functools.partial(_sentencepiece, "always", unigram=True),
    "unigram, across words": functools.partial(_sentencepiece, "never", unigram=True, across=True),
    "word pieces": _word_pieces,
}
MERGING = {"bytes, prefixed with a space", "unigram, across words"}  # whose tokens join what is around an answer


@dataclasses.dataclass(frozen=True)
class Added:
    """How a tokenizer knows the marks of templates: as tokens that take spaces around them, or as text."""

    marks: bool = True
    left: bool = False
    right: bool = False
    bos: bool = True
    adds_bos: bool = False
    pad: bool = True


ADDED = [
    Added(),
    Added(marks=False),
    Added(right=True),
    Added(left=True),
    Added(bos=False, pad=False),
    Added(adds_bos=True),
]


@functools.cache
def _base(kind: str) -> str:
    return TOKENIZERS[kind]().to_str()


@functools.cache
def tokenizer_of(kind: str, added: Added, stories: Path | None = None) -> Any:
    if stories is not None:
        found = AutoTokenizer.from_pretrained(stories)
    else:
        own = Tokenizer.from_str(_base(kind))
        names = (
            {"eos_token": EOS} | ({"bos_token": BOS} if added.bos else {}) | ({"pad_token": PAD} if added.pad else {})
        )
        own.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names.values()])
        if added.adds_bos:
            bos = (BOS, own.token_to_id(BOS))
            own.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
        found = PreTrainedTokenizerFast(tokenizer_object=own, clean_up_tokenization_spaces=False, **names)
    if added.marks:
        sides = {"lstrip": added.left, "rstrip": added.right}
        found.add_tokens([AddedToken(mark, special=True, normalized=False, **sides) for mark in MARKS])
    found.add_tokens([AddedToken(IMAGE, special=True, normalized=False)], special_tokens=True)
    return found


@functools.cache
def chat_of(template: str, kind: str, added: Added, stories: Path | None = None) -> ConversationEncoder | None:
    """The encoder of training; None if the template is rejected."""
    tokenizer = tokenizer_of(kind, added, stories)
    try:
        chat = ConversationEncoder(tokenizer, resolve_training_template(TEMPLATES[template], "auto", tokenizer), 3)
        chat.check_prompts()
    except UserError:
        return None
    return chat


PIECES = ["yes", " no", "red", "12", ":", ")", "-)", "\n", "\n\n", "  ", "the image", "école", "犬", "🐕", "...", "a"]
PIECES += ["Answer:", "ASSISTANT:", " USER: ", "<think>", "</think>", EOS, "<|im_end|>", "[INST]", "{{", "▁", "é"]
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join).filter(str.strip)


@st.composite
def conversations(draw: Any) -> list[dict[str, str]]:
    count = draw(st.integers(1, 3))
    images = draw(st.integers(0, 2))
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) and draw(st.booleans()) else []
    for number in range(count):
        shown = f"{IMAGE}\n" * images if number == 0 else ""
        messages.append({"role": "user", "content": shown + draw(texts)})
        messages.append({"role": "assistant", "content": draw(texts)})
    return messages


class Reference:
    """transformers' own rendering: text by ``apply_chat_template``, an image's tokens in the text, as processors do."""

    def __init__(self, chat: ConversationEncoder, template: str) -> None:
        self.tokenizer, self.template = chat.tokenizer, TEMPLATES[template]
        stated = ConversationEncoder(chat.tokenizer, resolve_chat_template(self.template, "auto"), 3).end_token
        self.end = self.tokenizer.eos_token if stated is None else stated
        self.added = self.tokenizer.eos_token if stated is None else ""  # training ends answers that nothing ends

    def text(self, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
        said = [
            {**each, "content": each["content"] + self.added} if each["role"] == "assistant" else each
            for each in messages
        ]
        return self.tokenizer.apply_chat_template(
            said, chat_template=self.template, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
        )

    def ids(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token
        own = bos is None or not text.startswith(bos)  # as ``ProcessorMixin.apply_chat_template``
        return self.tokenizer(text.replace(IMAGE, IMAGE * 3), add_special_tokens=own)["input_ids"]

    def after(self, messages: list[dict[str, str]]) -> int:
        """The number of tokens behind the end of the last answer."""
        text = self.text(messages)
        said = re.escape(messages[-1]["content"]) + r"\s*" + re.escape(self.end)
        last = re.match(f"(?s:.*){said}", text)
        assert last is not None
        return len(self.ids(text)) - len(self.ids(text[: last.end()]))


def check_conversation(template: str, chat: ConversationEncoder, messages: list[dict[str, str]]) -> bool:
    """Whether the conversation can be trained; if so, it is checked against the reference."""
    try:
        encoded = chat.encode(messages, 10_000)
    except TemplateError:  # the template's own: it supports no system message, for instance
        return False
    except (UserError, InvalidConversationError) as error:
        if not str(error).startswith("chat_template: "):
            raise
        return False
    # as chat shows them
    messages = [
        {**each, "content": each["content"].strip()} if each["role"] == "assistant" else each for each in messages
    ]
    reference, ids, last = Reference(chat, template), encoded.input_ids, 0
    supervised = [False] * len(ids)
    whole = reference.ids(reference.text(messages))
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            images = [None] * str(messages[:index]).count(IMAGE)
            prompt = encode_prompt(chat, messages[:index], images)  # type: ignore[arg-type]
            assert prompt == reference.ids(reference.text(messages[:index], prompt=True)), "transformers asks otherwise"
            assert ids[: len(prompt)] == prompt, "trained after another prompt"
            last, behind = len(prompt), reference.after(messages[: index + 1])
            turn = len(reference.ids(reference.text(messages[: index + 1])))
            stop = len(ids) - behind if message is messages[-1] else turn - behind
            supervised[last:stop] = [True] * (stop - last)
    assert ids == whole or whole[:last] != ids[:last], "transformers renders otherwise"
    decode = functools.partial(chat.tokenizer.decode, clean_up_tokenization_spaces=False)
    assert decode(ids) == decode(whole)
    assert [label != IGNORE_INDEX for label in encoded.labels] == supervised
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(ids, encoded.labels, strict=True))
    return True


@generators.sizes
def test_what_is_trained_begins_with_what_chat_asks(examples: int) -> None:
    def check(data: st.DataObject) -> None:
        template = data.draw(st.sampled_from(list(TEMPLATES)))
        chat = chat_of(template, data.draw(st.sampled_from(list(TOKENIZERS))), data.draw(st.sampled_from(ADDED)))
        if chat is not None:
            check_conversation(template, chat, data.draw(conversations()))

    generators.explore(check, examples)


@pytest.mark.parametrize("template", TEMPLATES)
def test_ordinary_conversations_are_trained_by_every_tokenizer(template: str) -> None:
    """But for templates of thinking LLMs, and for several answers to prompts that end in a space."""
    talk = [
        {"role": "user", "content": "<image>\nWhat is in the image?"},
        {"role": "assistant", "content": "Two dogs."},
    ]
    more = [*talk, {"role": "user", "content": "Is it red?"}, {"role": "assistant", "content": "no\n- red: 12"}]
    for kind in TOKENIZERS:
        chat = chat_of(template, kind, ADDED[0])
        assert (chat is None) == (template in THOUGHTFUL)
        if chat is None:
            continue
        assert check_conversation(template, chat, talk), kind
        if template != "answer" and kind not in MERGING:
            assert check_conversation(template, chat, more), kind


def test_the_real_llama_tokenizer(shared: Path) -> None:
    stories = shared / "models/stories15M"
    talk = [{"role": "user", "content": "<image>\nWho?"}, {"role": "assistant", "content": ": - a\n\ndog"}] * 3
    for template in set(TEMPLATES) - THOUGHTFUL - {"answer", "captions"}:
        chat = chat_of(template, "", ADDED[0], stories)
        assert chat is not None
        assert check_conversation(template, chat, talk), template


def test_a_prompt_that_ends_in_a_space_by_hand() -> None:
    """Asked ``: Ġ``: the answer has the tokens that continue it, not those of ``: Ġyes``."""
    chat = chat_of("answer", "bytes", ADDED[0])
    assert chat is not None
    name = chat.tokenizer.convert_ids_to_tokens
    talk = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "yes"}]
    encoded = chat.encode(talk, 100)
    assert name(encoded.input_ids)[-5:] == [":", "Ġ", "yes", EOS, "Ċ"]
    assert name(chat.prompt_ids(talk[:1]))[-2:] == [":", "Ġ"]
    assert [label != IGNORE_INDEX for label in encoded.labels[-5:]] == [False, False, True, True, False]
    assert "Ġyes" in name(chat.tokenizer("Answer: yes")["input_ids"])
    with pytest.raises(InvalidConversationError, match=r"^chat_template: .* changes the tokens of its prompt, .*'$"):
        chat.encode([*talk, *talk], 100)


def test_an_answer_that_a_template_rewrites_is_rejected() -> None:
    """DeepSeek's drop a thought, so that no prompt has what was trained."""
    chat = chat_of("deepseek-r1", "bytes", ADDED[0])
    assert chat is not None
    talk = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "<think>a</think>yes"}]
    with pytest.raises(InvalidConversationError, match=r"^chat_template: it writes .*; expected a template that keeps"):
        chat.encode(talk, 100)


def test_an_answer_that_is_not_trained_is_context() -> None:
    chat = chat_of("qwen-2", "bytes", ADDED[0])
    assert chat is not None
    talk = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "yes"}] * 3
    answer = chat.tokenizer("yes<|im_end|>")["input_ids"]
    assert [label for label in chat.encode(talk, 100).labels if label != IGNORE_INDEX] == [*answer, *answer, *answer]
    whole = chat.encode(talk, 100)
    for left_out in (1, 3, 5):
        marked = [{**each, "train": index != left_out} for index, each in enumerate(talk)]
        encoded = chat.encode(marked, 100)
        assert encoded.input_ids == whole.input_ids
        begin = len(chat.prompt_ids(talk[:left_out]))
        expected = list(whole.labels)
        expected[begin : begin + len(answer)] = [IGNORE_INDEX] * len(answer)
        assert encoded.labels == expected
    with pytest.raises(InvalidConversationError, match="no answer"):
        chat.encode([{**each, "train": False} for each in talk], 100)
