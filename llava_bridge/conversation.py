"""Chat templates, and the supervised tokens of a rendered conversation.

The supervised tokens are those that the model must generate: all tokens behind the prompt that chat builds for an
answer, up to the end token that follows the answer. A conversation is rendered once with a marker in place of every
answer, which locates that end in the text; prompts and ends are then compared as tokens.

A message is ``{"role": "user" | "assistant" | "system", "content": text}``; ``<image>`` in the text is the position of
an image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from PIL import Image

from clips.data.formats.dataset_format import IMAGE as IMAGE
from clips.errors import UserError, unknown_name_error
from clips.model.loading import library_errors_as_user_errors
from llava_bridge.chat_templates import CHAT_TEMPLATES, FIXED_DATE, PLAIN_WITH_SPACE

IGNORE_INDEX = -100
"""The label of a token that is not supervised (PyTorch's and transformers' convention)."""

# Precedes every template: content as a list of parts (transformers' multimodal form) becomes text, and Qwen 3's
# thinking is switched off, since no dataset here contains it.
_FLATTEN = (
    "{%- set enable_thinking = false -%}"
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set joined = namespace(text='') -%}"
    "{%- if message['content'] is string -%}{%- set joined.text = message['content'] -%}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set joined.text = joined.text + '<image>\\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set joined.text = joined.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': joined.text}] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)

# Llama 3.2's and SmolLM 3's templates state the current date, which would change samples and answers every day.
_FIXED_STRFTIME = "{%- macro strftime_now(format) -%}" + FIXED_DATE + "{%- endmacro -%}"

_SPACES = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set content = message['content'] | replace('<image>', '<image> ') -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': content}] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)

# For templates that read content as parts alone, as those of the Hub's llava-hf do: text becomes parts again. A part of
# an image stands for <image> and its line break.
_TO_PARTS = (
    "{%- set split = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set content = namespace(parts=[]) -%}"
    "{%- for piece in message['content'].split('<image>') -%}"
    "{%- if not loop.first -%}{%- set content.parts = content.parts + [{'type': 'image'}] -%}{%- endif -%}"
    "{%- set text = piece[1:] if not loop.first and piece.startswith('\\n') else piece -%}"
    "{%- if text or loop.length == 1 -%}"
    "{%- set content.parts = content.parts + [{'type': 'text', 'text': text}] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set split.messages = split.messages + [{'role': message['role'], 'content': content.parts}] -%}"
    "{%- endfor -%}"
    "{%- set messages = split.messages -%}"
)

# For templates that end no answer.
_END_ANSWERS = (
    "{%- set ended = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set content = message['content'] + (eos_token if message['role'] == 'assistant' else '') -%}"
    "{%- set ended.messages = ended.messages + [{'role': message['role'], 'content': content}] -%}"
    "{%- endfor -%}"
    "{%- set messages = ended.messages -%}"
)

# Writes ``rendered`` with a space between its BOS token and a text.
_SPACE_AFTER_BOS = (
    "{%- set bos = bos_token if bos_token else '' -%}"
    "{%- set after = rendered[bos|length:] -%}"
    "{%- set spaced = bos and rendered.startswith(bos) and not after.startswith((' ', '<image>')) -%}"
    "{{- bos + ' ' + after if spaced else rendered -}}"
)

_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000(\\d+)\ue001")
Message = Mapping[str, Any]


class InvalidConversationError(Exception):
    """A sample is unusable; training counts it and continues without it."""


def resolve_chat_template(own: str | Mapping[str, str] | None, choice: str) -> str:
    """The chat template of a LLaVA, which accepts content as text and as a list of parts.

    ``own`` is the tokenizer's (of several by name the default is used); ``choice`` is ``auto`` (its own if there is
    one, else ``vicuna``) or a name in :data:`CHAT_TEMPLATES`.
    """
    own = own.get("default") if isinstance(own, Mapping) else own
    if choice == "auto":
        body = own or CHAT_TEMPLATES["vicuna"]
    elif choice in CHAT_TEMPLATES:
        body = CHAT_TEMPLATES[choice]
    else:
        raise unknown_name_error(choice, {"auto", *CHAT_TEMPLATES}, "chat template")
    if is_wrapped_template(body):
        return body
    parts = _TO_PARTS if _reads_parts_alone(body) else ""
    return _FLATTEN + (_FIXED_STRFTIME if "strftime_now" in body else "") + parts + body


def _reads_parts_alone(template: str) -> bool:
    """Whether a template loses content that is text, or fails on it, but writes a part's text."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def writes(content: Any) -> bool:
        message = {"role": "user", "content": content}
        tokens: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        try:
            rendered = render_jinja_template([[message]], chat_template=template, **tokens)
        except Exception:  # a template raises anything; one that reads neither is reported when it is used
            return False
        return _MARK.format(0) in rendered[0][0]

    return not writes(_MARK.format(0)) and writes([{"type": "text", "text": _MARK.format(0)}])


def resolve_training_template(own: str | Mapping[str, str] | None, choice: str, tokenizer: Any) -> str:
    """The template that a LLaVA is trained with and keeps: :func:`resolve_chat_template`, with two additions.

    It has the spaces of :func:`add_sentencepiece_spaces` where ``own`` has them. If ``own`` writes no special token
    after an answer, the tokenizer's EOS token stands there: else the LLaVA would never end one.
    """
    from llava_bridge.training.launch import log_rank0

    if own is None and choice == "auto":
        log_rank0("chat_template: vicuna, since there is none of its own; another name sets another")
    template = resolve_chat_template(own, choice)
    if own is not None and _SPACES in own:
        template = add_sentencepiece_spaces(template, tokenizer)
    if choice == "auto" and ConversationEncoder(tokenizer, template, 1).end_token is None:
        log_rank0(f"chat_template: it ends no answer; {tokenizer.eos_token} (eos_token) is added to each")
        template = end_answers(template)
    return template


def end_answers(template: str) -> str:
    """The template from :func:`resolve_chat_template` with the tokenizer's EOS token after each answer."""
    return template.replace(_FLATTEN, _FLATTEN + _END_ANSWERS, 1)


def is_wrapped_template(template: str | None) -> bool:
    """Whether ``template`` is from :func:`resolve_chat_template`."""
    return template is not None and template.startswith(_FLATTEN)


def add_sentencepiece_spaces(template: str, tokenizer: Any) -> str:
    """The template that makes a conversation's tokens equal to those of the original LLaVA.

    The original tokenizes the text before and after an image separately, so that SentencePiece prefixes each with a
    space (▁). transformers' Llama tokenizer prefixes only the whole text, not the text after the BOS token or an image:
    the template therefore writes that space. Templates of other tokenizers do not change. Source:
    ``tokenizer_image_token`` in haotian-liu/LLaVA's ``mm_utils.py``.
    """

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    needed = tokens(f"{IMAGE}\nx")[1:] != tokens("\nx") == tokens(f"{IMAGE} \nx")[1:]
    if not needed or _SPACES in template or _TO_PARTS in template:
        return template
    if template == _FLATTEN + CHAT_TEMPLATES["plain"]:  # nothing precedes the image, not even a space
        return _FLATTEN + PLAIN_WITH_SPACE
    rest = template.removeprefix(_FLATTEN).removesuffix("\n")  # which Jinja omits at the end alone
    return f"{_FLATTEN}{_SPACES}{{%- set rendered -%}}{rest}{{% endset %}}{_SPACE_AFTER_BOS}"


@dataclasses.dataclass(frozen=True)
class EncodedConversation:
    """A tokenized conversation: ``labels`` equal ``input_ids`` for supervised tokens, and are -100 for others."""

    input_ids: list[int]
    labels: list[int]


class ConversationEncoder:
    """Tokenizes conversations with one fast tokenizer, which knows ``<image>`` as one token, and one template.

    Training, chat, likelihoods and benchmarks get the tokens of prompts and answers here. ``image_tokens`` is the
    number of tokens of an image; a function of the image if it depends on the image.
    """

    def __init__(self, tokenizer: Any, template: str, image_tokens: int | Callable[[Image.Image], int]) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_tokens = image_tokens
        self.image_id: int = tokenizer.convert_tokens_to_ids(IMAGE)
        with library_errors_as_user_errors("chat_template: it cannot render a question"):
            self._render([{"role": "user", "content": "?"}], add_generation_prompt=True)
        # Where a template writes no BOS token, transformers' processors let the tokenizer add its own.
        bos = tokenizer.bos_token_id
        self._bos: list[int] = [bos] if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else []

    @property
    def end_token(self) -> str | None:
        """The special token that the template writes after an answer; None if the text that it writes is supervised."""
        return self._end[0]

    @functools.cached_property
    def _end(self) -> tuple[str | None, re.Pattern[str]]:
        """The end token after an answer, if any, and what of the text after an answer the model must generate.

        Prompts need none of it, and some of the Hub's templates fail here.
        """
        question = {"role": "user", "content": "?"}
        with library_errors_as_user_errors("chat_template: it cannot render a question and its answer"):
            prompt = self._render([question], add_generation_prompt=True)
            before, _, after = _MARKS.split(self._render([question, {"role": "assistant", "content": _MARK.format(0)}]))
            if not before.startswith(prompt) or before.removeprefix(prompt).strip():
                raise UserError("chat_template: its generation prompt is not the text that it writes before an answer")
        # Added ones are, for instance, Phi's <|end|>.
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        special = sorted((added | set(self.tokenizer.all_special_tokens)) - {IMAGE}, key=len, reverse=True)
        pattern = re.compile(r"\s*(" + "|".join(map(re.escape, special)) + ")") if special else re.compile("$^")
        if end := pattern.match(after):
            return end[1], pattern
        return None, re.compile(re.escape(after))

    def num_image_tokens(self, images: Sequence[Image.Image]) -> list[int]:
        """The number of tokens of each image."""
        if isinstance(self.image_tokens, int):
            return [self.image_tokens] * len(images)
        return [self.image_tokens(image) for image in images]

    @functools.cached_property
    def typical_image_tokens(self) -> int:
        """The number of tokens of an image: exact if all have the same number, else that of a photo."""
        return self.num_image_tokens([Image.new("1", (640, 480))])[0]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text before the next answer, with one ``<image>`` for each image."""
        return self._render(_as_chat_shows(messages), add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message], images: Sequence[Image.Image] = ()) -> list[int]:
        """The tokens before the next answer.

        ``images``, in order, are not needed if all have the same number of tokens.
        """
        (ids,) = self._tokenize([self.prompt(messages)])
        return _repeated(ids, self._repeats(ids, images))

    def encode(
        self, messages: Sequence[Message], max_length: int, images: Sequence[Image.Image] = ()
    ) -> EncodedConversation:
        """The tokens of a conversation with its images, truncated on the right to ``max_length``, and their labels.

        The tokens before an answer are exactly those of `prompt_ids`; all after them, up to the end of the turn, are
        supervised. An answer with ``"train": False`` is not.

        InvalidConversationError: the template writes other tokens before an answer than in its prompt, there is no
        answer, or truncation is inside an image or before the first answer token.
        """
        text, answers = self._write(messages)
        (ids,) = self._tokenize([text])
        # An end token separates what is before it from what is behind it: a turn is tokenized from the last one on.
        pieces = [piece for answer in answers for piece in answer.pieces(text)]
        tokens = iter(self.tokenizer(pieces, add_special_tokens=False)["input_ids"] if pieces else [])
        spans, known = list[tuple[list[int], list[int]]](), 0
        for answer in answers:
            before = ids[:known] if answer.start else ids[: len(self._bos_before(text))]
            spans.append((before + next(tokens), before + next(tokens)))
            known = len(spans[-1][1]) - 1  # without the end token
        # An answer may change the last tokens of its prompt, as a prompt's last space belongs to a word's token. Behind
        # the last prompt the answer then has tokens of its own.
        begin, end = spans[-1] if spans else (ids, ids)
        if ids[: len(begin)] != begin and ids[: len(end)] == end:
            own = begin + self._tokens_behind(begin, text[len(answers[-1].prompt) : answers[-1].stop], end)
            ids, spans[-1] = own + ids[len(end) :], (begin, own)
        labels = [IGNORE_INDEX] * len(ids)
        for answer, (begin, end) in zip(answers, spans, strict=True):
            if not answer.is_trained:
                continue
            if ids[: len(begin)] != begin or ids[: len(end)] != end:
                raise InvalidConversationError(
                    "chat_template: with this tokenizer an answer changes the tokens of its prompt, "
                    f"{answer.prompt[-22:]!r}"
                )
            labels[len(begin) : len(end)] = ids[len(begin) : len(end)]

        repeats = self._repeats(ids, images)
        ids, labels = _repeated(ids, repeats), _repeated(labels, repeats)
        if len(ids) > max_length:
            if self.image_id in ids[max_length:]:
                raise InvalidConversationError(f"its images do not fit into {max_length} tokens")
            ids, labels = ids[:max_length], labels[:max_length]
        if all(label == IGNORE_INDEX for label in labels):
            raise InvalidConversationError(f"no answer within {max_length} tokens")
        return EncodedConversation(ids, labels)

    def check_end(self) -> None:
        """Raise UserError if the template ends no answer, so that a model trained with it would never end one."""
        if self.end_token is None:
            raise UserError("chat_template: no special token follows an answer; expected one, such as </s>")

    def check_prompts(self) -> None:
        """Raise UserError unless the template writes the same text before an answer as in the prompt for it.

        A thinking LLM's template may write additional text before the last answer only, as Qwen 3's does.
        """
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}] * 3
        for system in ([], [{"role": "system", "content": "!"}]):
            # A template may support no system message, or only one answer: training reports each such sample.
            with contextlib.suppress(TemplateError):
                try:
                    self._write([*system, *turns])
                except InvalidConversationError as error:
                    raise UserError(str(error)) from None

    def _write(self, messages: Sequence[Message]) -> tuple[str, list[_Answer]]:
        """The text of a conversation, and its supervised answers.

        InvalidConversationError: the template changes an answer, or writes another text before one than its prompt.
        """
        shown = _as_chat_shows(messages)
        places = [index for index, message in enumerate(shown) if message["role"] == "assistant"]
        marked = list(shown)
        for number, index in enumerate(places):
            marked[index] = {**shown[index], "content": _MARK.format(number)}
        pieces = _MARKS.split(self._render(marked))
        if pieces[1::2] != [str(number) for number in range(len(places))]:
            raise UserError("chat_template: it does not write every answer once and in order")
        text, answers, start = pieces[0], list[_Answer](), 0
        for index, after in zip(places, pieces[2::2], strict=True):
            before, text = text, text + shown[index]["content"]
            prompt, is_trained = before, messages[index].get("train", True)
            if is_trained:
                prompt = self.prompt(messages[:index])
                if not before.startswith(prompt) or before.removeprefix(prompt).strip():
                    equal = _first_difference(before, prompt)
                    raise InvalidConversationError(
                        f"chat_template: it trains an answer after {before[equal:]!r}, but generates one after "
                        f"{prompt[equal:]!r}; expected a template with equal prompts, such as chatml for Qwen 3"
                    )
            end = self._end[1].match(after)
            stop = len(text) + (end.end() if end else 0)
            answers.append(_Answer(prompt, start, stop, is_trained))
            start = stop - len(self.end_token) if end and self.end_token else 0
            text += after
        if (rendered := self._render(shown)) != text:
            written, said = (each[_first_difference(rendered, text) :][:60] for each in (rendered, text))
            raise InvalidConversationError(
                f"chat_template: it writes {written!r} for {said!r}; expected a template that keeps answers, such as "
                "chatml for thinking LLMs"
            )
        return text, answers

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that the template has written, one for each image.

        As in ``apply_chat_template`` of transformers' processors: the tokenizer's BOS token precedes a text that does
        not begin with it.
        """
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*self._bos_before(text), *own] for text, own in zip(texts, ids, strict=True)]

    def _bos_before(self, text: str) -> list[int]:
        return [] if self._bos and text.startswith(self.tokenizer.bos_token) else self._bos

    def _tokens_behind(self, begin: Sequence[int], text: str, whole: Sequence[int]) -> list[int]:
        """The tokens of ``text`` that with ``begin`` before them are decoded like ``whole``.

        InvalidConversationError: there are none.
        """
        for anchor in ("", IMAGE, "\n", ":", "."):  # some tokenizers write a space before a text, or after a token
            ahead, both = self.tokenizer([anchor, anchor + text], add_special_tokens=False)["input_ids"]
            tokens = both[len(ahead) :]
            if both[: len(ahead)] == ahead and self._decode([*begin, *tokens]) == self._decode(whole):
                return tokens
        raise InvalidConversationError(
            f"chat_template: this tokenizer has no tokens for {text[:40]!r} behind those of its prompt"
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _repeats(self, ids: Sequence[int], images: Sequence[Image.Image]) -> list[int]:
        """How often each of the tokens, of which an image has one, stands in the LLM's input."""
        fixed = self.image_tokens
        counts: Iterator[int] = itertools.repeat(fixed) if isinstance(fixed, int) else iter(map(fixed, images))
        return [next(counts, 1) if token == self.image_id else 1 for token in ids]

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=add_generation_prompt
        )


class _Answer(NamedTuple):
    """An answer in the text of a conversation.

    ``prompt`` is the text before it, ``stop`` the end of its end token; ``start`` is the place of the end token before
    it, 0 without one.
    """

    prompt: str
    start: int
    stop: int
    is_trained: bool

    def pieces(self, text: str) -> tuple[str, str]:
        """From `start` on, the prompt, and the prompt with the answer."""
        return self.prompt[self.start :], text[self.start : self.stop]


def _as_chat_shows(messages: Sequence[Message]) -> list[Message]:
    """The messages with answers as they are shown to a user, who sees no whitespace around them."""
    return [
        {**message, "content": message["content"].strip()}
        if message["role"] == "assistant" and isinstance(message["content"], str)
        else message
        for message in messages
    ]


def _first_difference(one: str, other: str) -> int:
    """The place where two texts begin to differ, or a little before: it shows "<|im_start|>assistant"."""
    return max(0, len(os.path.commonprefix([one, other])) - 22)  # noqa: RUF071  characters are meant


def _repeated(values: Sequence[int], repeats: Sequence[int]) -> list[int]:
    return [value for value, count in zip(values, repeats, strict=True) for _ in range(count)]
