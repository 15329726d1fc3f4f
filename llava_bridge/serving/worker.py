"""The single thread that runs the model, and the delivery of its output to clients."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clips.errors import UserError
from llava_bridge.inference.streaming import Prompt, StreamedAnswer, draws, prompt, replies
from llava_bridge.serving.request import ChatRequest, RequestError

MOST_TOGETHER = 16
"""Maximum requests per batch."""


@dataclasses.dataclass(kw_only=True)
class _Waiting:
    """A request and the receiver of its answer."""

    asked: ChatRequest
    tell: Callable[[str | StreamedAnswer | Exception], None]
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)
    told: bool = False

    def on_text(self, piece: str) -> None:
        self.told = True
        self.tell(piece)


class GenerationWorker:
    """Answers requests in order of arrival; waiting ones without sampling are batched.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._writing = False
        self._seconds = 1.0  # that the last batch took

    async def write(self, asked: ChatRequest) -> AsyncGenerator[str | StreamedAnswer, None]:
        """Yield the pieces of an answer as they are generated, then the full answer.

        Closing or cancelling the generator ends generation after the next token, or before the first.

        Raises:
            UserError: the request does not suit the model; see :func:`~llava_bridge.inference.streaming.stream_answer`.
            RequestError: generation failed.
        """
        loop, written = asyncio.get_running_loop(), asyncio.Queue[str | StreamedAnswer | Exception]()

        def tell(item: str | StreamedAnswer | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped in the meantime
                loop.call_soon_threadsafe(written.put_nowait, item)

        waiting = _Waiting(asked=asked, tell=tell)
        with self._lock:
            self._waiting.append(waiting)
        self._thread.submit(self._answer_next)
        try:
            while True:
                item = await written.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, StreamedAnswer):
                    return
        finally:
            waiting.gone.set()

    def seconds_to_wait(self) -> float:
        """Estimate the seconds until the waiting requests are answered, if each batch takes as long as the last."""
        with self._lock:
            present = [one for one in self._waiting if not one.gone.is_set()]
            alone = sum(self._alone(one) for one in present)
            batches = self._writing + alone + math.ceil((len(present) - alone) / MOST_TOGETHER)
        return self._seconds * batches

    def _answer_next(self) -> None:
        began, ready = time.monotonic(), []
        for one in self._take():
            try:
                ready.append((one, self._prompt(one)))
            except UserError as error:
                one.tell(error)
            except Exception:
                one.tell(_failure())
        if ready:
            self._write(ready)
            self._seconds = time.monotonic() - began
        self._writing = False

    def _take(self) -> list[_Waiting]:
        """Return the first waiting request and those that can join its batch."""
        with self._lock:
            present = [one for one in self._waiting if not one.gone.is_set()]
            taken = present[:1]
            if taken and not self._alone(taken[0]):
                taken = [one for one in present if not self._alone(one)][:MOST_TOGETHER]
            self._waiting = deque(one for one in present if not any(one is other for other in taken))
            self._writing = bool(taken)
        return taken

    def _alone(self, one: _Waiting) -> bool:
        return draws(self.model, one.asked.decoding)

    def _prompt(self, one: _Waiting) -> Prompt:
        asked = one.asked
        return prompt(
            self.model,
            self.processor,
            asked.pictures,
            asked.messages,
            asked.decoding,
            on_text=one.on_text,
            cancelled=one.gone.is_set,
        )

    def _write(self, batch: list[tuple[_Waiting, Prompt]]) -> None:
        try:
            answers = replies(self.model, self.processor, [asked for _, asked in batch])
        except Exception:  # from the libraries, for example out of memory: the next request may succeed
            if len(batch) > 1 and not any(one.told for one, _ in batch):
                for pair in batch:
                    self._write([pair])
                return
            failure = _failure()
            for one, _ in batch:
                one.tell(failure)
            return
        for (one, _), answer in zip(batch, answers, strict=True):
            one.tell(answer)

    def close(self) -> None:
        """Start no more answers."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _failure() -> RequestError:
    """Return the message for the current exception; the terminal shows the full one."""
    traceback.print_exc()
    return RequestError("the server failed; its terminal says why", status=500)
