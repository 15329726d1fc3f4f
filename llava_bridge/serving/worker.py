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
from llava_bridge.inference.streaming import Prompt, StreamedAnswer, generate_answers, is_sampled, prepare_prompt
from llava_bridge.serving.request import ChatRequest, RequestError

MAX_BATCH_SIZE = 16
"""Maximum number of requests per batch."""


@dataclasses.dataclass(kw_only=True, eq=False)
class _QueuedRequest:
    """A request and the receiver of its answer."""

    request: ChatRequest
    deliver: Callable[[str | StreamedAnswer | Exception], None]
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)
    has_text: bool = False

    def on_text(self, piece: str) -> None:
        self.has_text = True
        self.deliver(piece)


class GenerationWorker:
    """Answers requests in order of arrival; waiting ones without sampling are batched.

    Args:
        model: from :func:`~llava_bridge.inference.generate.load_llava`.
        processor: from the same.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._queue: deque[_QueuedRequest] = deque()
        self._lock = threading.Lock()
        self._is_generating = False
        self._batch_seconds = 1.0  # of the last batch

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | StreamedAnswer, None]:
        """Yield the pieces of an answer as they are generated, then the full answer.

        Closing or cancelling the generator ends generation after the next token, or before the first.

        Raises:
            UserError: see :func:`~llava_bridge.inference.streaming.prepare_prompt`.
            RequestError: generation failed.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[str | StreamedAnswer | Exception]()

        def deliver(item: str | StreamedAnswer | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped in the meantime
                loop.call_soon_threadsafe(items.put_nowait, item)

        queued = _QueuedRequest(request=request, deliver=deliver)
        with self._lock:
            self._queue.append(queued)
        self._thread.submit(self._answer_next)
        try:
            while True:
                item = await items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, StreamedAnswer):
                    return
        finally:
            queued.cancelled.set()

    def seconds_to_wait(self) -> float:
        """Estimate the seconds until the queued requests are answered, if each batch takes as long as the last."""
        with self._lock:
            active = self._active()
            sampled = sum(self._is_sampled(queued) for queued in active)
            batches = self._is_generating + sampled + math.ceil((len(active) - sampled) / MAX_BATCH_SIZE)
        return self._batch_seconds * batches

    def _answer_next(self) -> None:
        started, batch = time.monotonic(), []
        for queued in self._next_batch():
            try:
                batch.append((queued, self._prepare(queued)))
            except UserError as error:
                queued.deliver(error)
            except Exception:
                queued.deliver(_server_error())
        if batch:
            self._generate(batch)
            self._batch_seconds = time.monotonic() - started
        self._is_generating = False

    def _active(self) -> list[_QueuedRequest]:
        return [queued for queued in self._queue if not queued.cancelled.is_set()]

    def _next_batch(self) -> list[_QueuedRequest]:
        """Return the first queued request and those that can join its batch."""
        with self._lock:
            active = self._active()
            batch = active[:1]
            if batch and not self._is_sampled(batch[0]):
                batch = [queued for queued in active if not self._is_sampled(queued)][:MAX_BATCH_SIZE]
            self._queue = deque(queued for queued in active if queued not in batch)
            self._is_generating = bool(batch)
        return batch

    def _is_sampled(self, queued: _QueuedRequest) -> bool:
        return is_sampled(self.model, queued.request.params)

    def _prepare(self, queued: _QueuedRequest) -> Prompt:
        request = queued.request
        return prepare_prompt(
            self.model,
            self.processor,
            request.images,
            request.messages,
            request.params,
            on_text=queued.on_text,
            cancelled=queued.cancelled.is_set,
        )

    def _generate(self, batch: list[tuple[_QueuedRequest, Prompt]]) -> None:
        try:
            answers = generate_answers(self.model, self.processor, [prompt for _, prompt in batch])
        except Exception:  # from the libraries, for example out of memory: the next request may succeed
            if len(batch) > 1 and not any(queued.has_text for queued, _ in batch):
                for pair in batch:
                    self._generate([pair])
                return
            failure = _server_error()
            for queued, _ in batch:
                queued.deliver(failure)
            return
        for (queued, _), answer in zip(batch, answers, strict=True):
            queued.deliver(answer)

    def close(self) -> None:
        """Start no more answers."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _server_error() -> RequestError:
    """Return the message for the current exception, and print its traceback in the server's terminal."""
    traceback.print_exc()
    return RequestError("the server failed; its terminal shows the error", status=500)
