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
from transformers.generation import BaseStreamer

from clips.errors import UserError
from llava_bridge.asking.inference import generate_inputs, prompt_ids
from llava_bridge.chat import Message

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what tokens are decoded to that hold a part of a character


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
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
class Reply:
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


class ContextError(UserError):
    """A conversation is longer than what the LLM can read."""


@torch.inference_mode()
def reply(
    model: Any,
    processor: Any,
    pictures: Sequence[Image.Image],
    messages: Sequence[Message],
    decoding: Decoding | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Reply:
    """Answer one conversation; decoded greedily, the text is that of :func:`~llava_bridge.asking.inference.answer`.

    Args:
        model: from :func:`~llava_bridge.asking.inference.load_llava`.
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
    from llava_bridge.model.assembly import make_chat

    decoding = decoding or Decoding()
    ids = prompt_ids(make_chat(model, processor), messages, pictures)
    room = context_of(model) - len(ids)
    if room < 1:
        raise ContextError(
            f"the conversation has {len(ids)} tokens, pictures included; expected fewer than the LLM's context of "
            f"{context_of(model)}"
        )
    if decoding.seed is not None:
        torch.manual_seed(decoding.seed)
    writer = _Writer(processor.tokenizer, decoding.stop, on_text or _ignore, cancelled or _never)
    made = model.generate(
        **generate_inputs(model, processor, [ids], pictures),
        max_new_tokens=min(decoding.max_new_tokens, room),
        streamer=writer,
        stopping_criteria=StoppingCriteriaList([writer.is_done]),
        **_sampling(decoding),
    )
    new = made[0, len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    ended = writer.stopped or (bool(new) and new[-1] in (ends if isinstance(ends, list) else [ends]))
    finish: Literal["stop", "length", "cancelled"] = "stop" if ended else "cancelled" if writer.gone else "length"
    return Reply(text=writer.text, prompt_tokens=len(ids), new_tokens=len(new), finish=finish)


def context_of(model: Any) -> int:
    """How many tokens the LLM can read and write together."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def _sampling(decoding: Decoding) -> dict[str, Any]:
    """Temperature and top p as ``generate`` takes them without complaint; beams cannot be told as they are written."""
    if decoding.temperature is None:
        return {"num_beams": 1}
    if decoding.temperature == 0:
        return {"num_beams": 1, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    top_p = 1.0 if decoding.top_p is None else max(decoding.top_p, 1e-6)  # 0 would leave no token at all
    drawn = {"temperature": float(decoding.temperature), "top_p": top_p, "top_k": 0}
    return {"num_beams": 1, "do_sample": True, **drawn}


class _Writer(BaseStreamer):
    """Hears of each token, tells the text that is certain, and says when ``generate`` may end.

    Not certain are an incomplete character, white space that may be the last, and what may begin a stop text.
    """

    def __init__(
        self, tokenizer: Any, stop: Sequence[str], on_text: Callable[[str], None], cancelled: Callable[[], bool]
    ) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.on_text, self.cancelled = on_text, cancelled
        self.tokens: list[int] = []
        self.prompt_seen = self.stopped = self.gone = False
        self.text = ""

    def put(self, value: Tensor) -> None:
        """Take the prompt, which comes first, or the next token."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        self.tokens += value.flatten().tolist()
        said = self._said()
        self.stopped = self.stopped or self._end(said) < len(said)
        if not self.stopped:
            self._tell(said[: len(said) - self._held_back(said)])

    def end(self) -> None:
        """Tell what was held back."""
        said = self._said()
        self._tell(said[: self._end(said)].rstrip())

    def is_done(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether nothing more needs to be written, as a stopping criterion; (1,) of bool."""
        self.gone = self.gone or self.cancelled()
        return torch.tensor([self.stopped or self.gone], device=ids.device)

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
            self.on_text(new)


def _ignore(text: str) -> None:
    pass


def _never() -> bool:
    return False
