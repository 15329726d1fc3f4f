"""Streaming generation of answers.

>>> prompt = prepare_prompt(model, processor, [image], [{"role": "user", "content": "<image>\\nHow?"}], on_text=print)
>>> generate_answers(model, processor, [prompt])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from clips.errors import UserError
from llava_bridge.conversation import Message
from llava_bridge.inference.generate import encode_prompt, prepare_generate_inputs

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # decoded from tokens of an incomplete character


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Generation settings of an answer.

    Args:
        max_new_tokens: maximum length; the LLM's context is a further limit.
        temperature: 0 is greedy decoding; above 0, tokens are sampled; None uses the LLaVA's own generation config
            (greedy for those of ``llava-bridge train``).
        top_p: nucleus sampling: sample among the most probable tokens with this total probability.
        seed: seed of the sampling; None is different each time.
        stop: stop strings; the answer ends before the first of them.
    """

    max_new_tokens: int = 64
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedAnswer:
    """An answer.

    Args:
        text: its text.
        prompt_tokens: number of prompt tokens, including those of images.
        new_tokens: number of generated tokens, including EOS.
        finish: ``stop``: it ended with EOS or a stop string; ``length``: it was truncated; ``cancelled``: the client
            cancelled it.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finish: Literal["stop", "length", "cancelled"]


class ContextLengthError(UserError):
    """A conversation is longer than the LLM's context."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation for :func:`generate_answers`, see :func:`prepare_prompt`.

    Args:
        ids: its tokens before the answer.
        images: images of all messages.
        params: generation settings.
        max_new_tokens: maximum length of the answer, within the LLM's context.
        on_text: called with each new piece of the answer.
        cancelled: checked after each token.
    """

    ids: list[int]
    images: Sequence[Image.Image]
    params: GenerationParams
    max_new_tokens: int
    on_text: Callable[[str], None] | None
    cancelled: Callable[[], bool] | None


def prepare_prompt(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    messages: Sequence[Message],
    params: GenerationParams | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Prompt:
    """Tokenize a conversation for :func:`generate_answers`.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
        images: of all messages, in order; each has an ``<image>`` in the text.
        messages: the last one is the user's.
        params: generation settings.
        on_text: called with each new piece of the text; the concatenated pieces are the answer.
        cancelled: checked after each token; True ends the answer.

    Raises:
        ContextLengthError: the context has no space for an answer.
        UserError: the numbers of images and ``<image>`` tokens differ.
    """
    from llava_bridge.model.build import make_conversation_encoder

    params = params or GenerationParams()
    ids = encode_prompt(make_conversation_encoder(model, processor), messages, images)
    available = context_length(model) - len(ids)
    if available < 1:
        raise ContextLengthError(
            f"the conversation has {len(ids)} tokens, images included; expected fewer than the LLM's context of "
            f"{context_length(model)}"
        )
    return Prompt(
        ids=ids,
        images=images,
        params=params,
        max_new_tokens=min(params.max_new_tokens, available),
        on_text=on_text,
        cancelled=cancelled,
    )


@torch.inference_mode()
def generate_answers(model: Any, processor: Any, prompts: Sequence[Prompt]) -> list[StreamedAnswer]:
    """Answer conversations in one batch; greedy ones as :func:`~llava_bridge.inference.generate.answer`.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
        prompts: one, or several without sampling (see :func:`is_sampled`).
    """
    params = prompts[0].params
    if params.seed is not None:
        torch.manual_seed(params.seed)
    ends = model.generation_config.eos_token_id
    streams = [_Stream(processor.tokenizer, prompt, ends if isinstance(ends, list) else [ends]) for prompt in prompts]

    def is_done(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for stream, token in zip(streams, ids[:, -1].tolist(), strict=True):
            stream.put(token)
        return torch.tensor([stream.finish is not None for stream in streams], device=ids.device)

    images = [image for prompt in prompts for image in prompt.images]
    model.generate(
        **prepare_generate_inputs(model, processor, [prompt.ids for prompt in prompts], images),
        max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
        stopping_criteria=StoppingCriteriaList([is_done]),
        **_sampling_options(params),
    )
    return [stream.answer() for stream in streams]


def is_sampled(model: Any, params: GenerationParams) -> bool:
    """Whether tokens are sampled; then the answer depends on its batch, and is therefore generated alone."""
    if params.temperature is None:
        return bool(model.generation_config.do_sample)
    return params.temperature > 0


def context_length(model: Any) -> int:
    """Maximum number of tokens of a conversation with its answer."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _sampling_options(params: GenerationParams) -> dict[str, Any]:
    """Options that ``generate`` accepts without warnings; beam search cannot be streamed."""
    if params.temperature is None:
        return {"num_beams": 1}
    if params.temperature == 0:
        return {"num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    top_p = 1.0 if params.top_p is None else max(params.top_p, 1e-6)  # 0 would leave no token
    return {"num_beams": 1, "do_sample": True, "temperature": float(params.temperature), "top_p": top_p, "top_k": 0}


class _Stream:
    """Receives each token of an answer, emits the text that is final, and detects the end.

    Not final are an incomplete character, trailing whitespace, and a possible beginning of a stop string.
    """

    def __init__(self, tokenizer: Any, prompt: Prompt, ends: Sequence[int | None]) -> None:
        self.tokenizer, self.prompt, self.ends = tokenizer, prompt, ends
        self.stop = [text for text in prompt.params.stop if text]
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length", "cancelled"] | None = None
        self.text = ""

    def put(self, token: int) -> None:
        """Add the next token; those after the answer's end are padding."""
        if self.finish is not None:
            return
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True).lstrip()
        end = min((index for stop in self.stop if (index := text.find(stop)) >= 0), default=len(text))
        if token in self.ends or end < len(text):
            self.finish = "stop"
        else:
            self._emit(text[: self._final_length(text)])
            if self.prompt.cancelled is not None and self.prompt.cancelled():
                self.finish = "cancelled"
            elif len(self.tokens) == self.prompt.max_new_tokens:
                self.finish = "length"
        if self.finish is not None:
            self._emit(text[:end].rstrip())

    def answer(self) -> StreamedAnswer:
        """The complete answer."""
        counts = {"prompt_tokens": len(self.prompt.ids), "new_tokens": len(self.tokens)}
        return StreamedAnswer(text=self.text, finish=self.finish or "length", **counts)

    def _final_length(self, text: str) -> int:
        final = len(text.rstrip(_INCOMPLETE).rstrip())
        for stop in self.stop:
            matched = next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            final = min(final, len(text[: len(text) - matched].rstrip()))
        return final

    def _emit(self, text: str) -> None:
        if new := text[len(self.text) :]:
            self.text += new
            if self.prompt.on_text is not None:
                self.prompt.on_text(new)
