"""One answer, told while it is written.

>>> reply(model, processor, [picture], [{"role": "user", "content": "<image>\\nWhat is it?"}], on_text=print)
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

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what tokens are decoded to that hold a part of a character


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """How an answer is written.

    Args:
        max_new_tokens: it is cut there, or where the LLM's context ends.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn; None leaves that to the LLaVA's
            own generation config (greedy for those of ``llava-bridge train``).
        top_p: drawn among the likeliest tokens that together have this probability.
        seed: of what is drawn; None draws anew each time.
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
        text: its words.
        prompt_tokens: how many were read, those of pictures included.
        new_tokens: how many were written, the end token included.
        finish: ``stop``: it came to its end or to a stop text; ``length``: it was cut; ``cancelled``: nobody wanted
            the rest.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finish: Literal["stop", "length", "cancelled"]


class ContextLengthError(UserError):
    """A conversation is longer than what the LLM can read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A conversation that is ready to be answered, see :func:`prompt`.

    Args:
        ids: its tokens, up to where the answer begins.
        pictures: those of all messages.
        decoding: how the answer is written.
        most: how many tokens the answer may have.
        on_text: called with each new piece of the answer.
        cancelled: asked after each token.
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
            f"the conversation has {len(ids)} tokens, pictures included; expected fewer than the LLM's context of "
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
        pictures: of all messages, in order; each has its ``<image>`` in them.
        messages: the last one is the user's.
        decoding: how the answer is written.
        on_text: called with each new piece of the text; the pieces make the whole.
        cancelled: asked after each token; True ends the answer there.

    Raises:
        ContextError: there is no room for an answer.
        UserError: pictures and ``<image>`` marks are not equally many.
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
    shown = [picture for asked in prompts for picture in asked.pictures]
    model.generate(
        **prepare_generate_inputs(model, processor, [asked.ids for asked in prompts], shown),
        max_new_tokens=max(asked.most for asked in prompts),
        stopping_criteria=StoppingCriteriaList([writers.are_done]),
        **_sampling(decoding),
    )
    return [writer.reply() for writer in writers.rows]


def draws(model: Any, decoding: GenerationParams) -> bool:
    """Whether tokens are drawn; then the answer depends on what else is in its batch, and so it is written alone."""
    if decoding.temperature is None:
        return bool(model.generation_config.do_sample)
    return decoding.temperature > 0


def context_length(model: Any) -> int:
    """How many tokens the LLM can read and write together."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _sampling(decoding: GenerationParams) -> dict[str, Any]:
    """Temperature and top p as ``generate`` takes them without complaint; beams cannot be told as they are written."""
    if decoding.temperature is None:
        return {"num_beams": 1}
    if decoding.temperature == 0:
        return {"num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    top_p = 1.0 if decoding.top_p is None else max(decoding.top_p, 1e-6)  # 0 would leave no token at all
    drawn = {"temperature": float(decoding.temperature), "top_p": top_p, "top_k": 0}
    return {"num_beams": 1, "do_sample": True, **drawn}


class _Writers:
    """Those of the rows of a batch, told of its tokens by ``generate`` as a stopping criterion."""

    def __init__(self, tokenizer: Any, prompts: Sequence[Prompt], ends: Sequence[int | None]) -> None:
        self.rows = [_Writer(tokenizer, asked, ends) for asked in prompts]

    def are_done(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Take the newest token of each row (B, L); which rows need nothing more, (B,) of bool."""
        for writer, token in zip(self.rows, ids[:, -1].tolist(), strict=True):
            writer.put(token)
        return torch.tensor([writer.finish is not None for writer in self.rows], device=ids.device)


class _Writer:
    """Hears of each token of an answer, tells the text that is certain, and knows when it has ended.

    Not certain are an incomplete character, white space that may be the last, and what may begin a stop text.
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
        """The whole."""
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
