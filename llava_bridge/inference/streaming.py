"""Streaming generation of one answer.

>>> reply(model, processor, [image], [{"role": "user", "content": "<image>\\nWhat is it?"}], on_text=print)
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

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # the decoding of tokens that hold part of a character


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """Generation settings of an answer.

    Args:
        max_new_tokens: maximum length; the LLM's context is a further limit.
        temperature: 0 is greedy decoding; above 0, tokens are sampled; None uses the LLaVA's own generation config
            (greedy for those of ``llava-bridge train``).
        top_p: nucleus sampling: sample among the most probable tokens with this total probability.
        seed: of the sampling; None is different each time.
        stop: the answer ends before the first of these texts.
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
    """A conversation that is ready to be answered, see :func:`prompt`.

    Args:
        ids: its tokens, up to the beginning of the answer.
        pictures: images of all messages.
        decoding: generation settings.
        most: maximum number of answer tokens.
        on_text: called with each new piece of the answer.
        cancelled: checked after each token.
    """

    ids: list[int]
    pictures: Sequence[Image.Image]
    decoding: GenerationParams
    most: int
    on_text: Callable[[str], None]
    cancelled: Callable[[], bool]


def prompt(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    messages: Sequence[Message],
    decoding: GenerationParams | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Prompt:
    """A conversation for :func:`replies`; arguments and errors are those of :func:`stream_answer`."""
    from llava_bridge.model.build import make_conversation_encoder

    decoding = decoding or GenerationParams()
    ids = encode_prompt(make_conversation_encoder(model, processor), messages, pictures)
    room = context_length(model) - len(ids)
    if room < 1:
        raise ContextLengthError(
            f"the conversation has {len(ids)} tokens, images included; expected fewer than the LLM's context of "
            f"{context_length(model)}"
        )
    return Prompt(
        ids=ids,
        pictures=pictures,
        decoding=decoding,
        most=min(decoding.max_new_tokens, room),
        on_text=on_text or _ignore,
        cancelled=cancelled or _never,
    )


def stream_answer(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    messages: Sequence[Message],
    decoding: GenerationParams | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> StreamedAnswer:
    """Answer one conversation; decoded greedily, the text is that of :func:`~llava_bridge.inference.generate.answer`.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
        pictures: of all messages, in order; each has an ``<image>`` in the text.
        messages: the last one is the user's.
        decoding: generation settings.
        on_text: called with each new piece of the text; the concatenated pieces are the answer.
        cancelled: checked after each token; True ends the answer.

    Raises:
        ContextError: there is no room for an answer.
        UserError: the numbers of images and ``<image>`` tokens differ.
    """
    asked = prompt(model, processor, pictures, messages, decoding, on_text=on_text, cancelled=cancelled)
    return replies(model, processor, [asked])[0]


@torch.inference_mode()
def replies(model: Any, processor: Any, prompts: Sequence[Prompt]) -> list[StreamedAnswer]:
    """Answer several conversations in one batch, each as :func:`stream_answer` does.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
        prompts: one, or several whose tokens are not drawn (see :func:`draws`).
    """
    decoding = prompts[0].decoding
    if decoding.seed is not None:
        torch.manual_seed(decoding.seed)
    ends = model.generation_config.eos_token_id
    writers = _Writers(processor.tokenizer, prompts, ends if isinstance(ends, list) else [ends])
    shown = [image for asked in prompts for image in asked.pictures]
    model.generate(
        **prepare_generate_inputs(model, processor, [asked.ids for asked in prompts], shown),
        max_new_tokens=max(asked.most for asked in prompts),
        stopping_criteria=StoppingCriteriaList([writers.are_done]),
        **_sampling(decoding),
    )
    return [writer.reply() for writer in writers.rows]


def draws(model: Any, decoding: GenerationParams) -> bool:
    """Whether tokens are sampled; then the answer depends on its batch, and is therefore generated alone."""
    if decoding.temperature is None:
        return bool(model.generation_config.do_sample)
    return decoding.temperature > 0


def context_length(model: Any) -> int:
    """How many tokens the LLM can read and write together."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _sampling(decoding: GenerationParams) -> dict[str, Any]:
    """Temperature and top p as ``generate`` accepts them without warnings; beam search cannot be streamed."""
    if decoding.temperature is None:
        return {"num_beams": 1}
    if decoding.temperature == 0:
        return {"num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    top_p = 1.0 if decoding.top_p is None else max(decoding.top_p, 1e-6)  # 0 would leave no token at all
    drawn = {"temperature": float(decoding.temperature), "top_p": top_p, "top_k": 0}
    return {"num_beams": 1, "do_sample": True, **drawn}


class _Writers:
    """The streams of a batch's rows, called by ``generate`` as a stopping criterion."""

    def __init__(self, tokenizer: Any, prompts: Sequence[Prompt], ends: Sequence[int | None]) -> None:
        self.rows = [_Writer(tokenizer, asked, ends) for asked in prompts]

    def are_done(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Process the newest token of each row (B, L); returns which rows are finished, (B,) of bool."""
        for writer, token in zip(self.rows, ids[:, -1].tolist(), strict=True):
            writer.put(token)
        return torch.tensor([writer.finish is not None for writer in self.rows], device=ids.device)


class _Writer:
    """Receives each token of an answer, emits the text that is final, and detects the end.

    Not final are an incomplete character, whitespace that may be the last, and a possible beginning of a stop string.
    """

    def __init__(self, tokenizer: Any, asked: Prompt, ends: Sequence[int | None]) -> None:
        self.tokenizer, self.asked, self.ends = tokenizer, asked, ends
        self.stop = [text for text in asked.decoding.stop if text]
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length", "cancelled"] | None = None
        self.text = ""

    def put(self, token: int) -> None:
        """Take the next token; those after the answer's end are padding."""
        if self.finish is not None:
            return
        self.tokens.append(token)
        said = self._said()
        if token in self.ends or self._end(said) < len(said):
            self.finish = "stop"
        else:
            self._tell(said[: len(said) - self._held_back(said)])
            if self.asked.cancelled():
                self.finish = "cancelled"
            elif len(self.tokens) == self.asked.most:
                self.finish = "length"
        if self.finish is not None:
            self._tell(said[: self._end(said)].rstrip())

    def reply(self) -> StreamedAnswer:
        """The complete answer."""
        counts = {"prompt_tokens": len(self.asked.ids), "new_tokens": len(self.tokens)}
        return StreamedAnswer(text=self.text, finish=self.finish or "length", **counts)

    def _said(self) -> str:
        return self.tokenizer.decode(self.tokens, skip_special_tokens=True).lstrip()

    def _end(self, said: str) -> int:
        """Where the first stop text begins, else the length."""
        return min((place for text in self.stop if (place := said.find(text)) >= 0), default=len(said))

    def _held_back(self, said: str) -> int:
        """How many characters at the end are not certain."""
        certain = len(said.rstrip(_INCOMPLETE).rstrip())
        for text in self.stop:
            begun = next((n for n in range(min(len(text), len(said)), 0, -1) if said.endswith(text[:n])), 0)
            certain = min(certain, len(said[: len(said) - begun].rstrip()))
        return len(said) - certain

    def _tell(self, certain: str) -> None:
        new = certain[len(self.text) :]
        if new:
            self.text += new
            self.asked.on_text(new)


def _ignore(text: str) -> None:
    pass


def _never() -> bool:
    return False
