"""The one thread in which the model runs, and how its words reach those who asked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llava_bridge.reply import Reply, reply
from llava_bridge.serving.asked import Asked


class Worker:
    """Answers one request at a time, in the order in which they came.

    Args:
        model: from :func:`~llava_bridge.inference.load_llava`.
        processor: from the same.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def write(self, asked: Asked) -> AsyncGenerator[str | Reply, None]:
        """The pieces of an answer as they are written, then the whole.

        Whoever closes the generator or is cancelled in it ends the writing after the next token, or before the first.

        Raises:
            UserError: the request does not suit the model; see :func:`~llava_bridge.reply.reply`.
        """
        loop, written = asyncio.get_running_loop(), asyncio.Queue[str | Reply | Exception]()
        gone = threading.Event()

        def tell(item: str | Reply | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended in the meantime
                loop.call_soon_threadsafe(written.put_nowait, item)

        def work() -> None:
            if gone.is_set():
                return
            pictures, messages, decoding = asked.pictures, asked.messages, asked.decoding
            try:
                tell(
                    reply(
                        self.model,
                        self.processor,
                        pictures,
                        messages,
                        decoding,
                        on_text=tell,
                        cancelled=gone.is_set,
                    )
                )
            except Exception as error:
                tell(error)

        self._thread.submit(work)
        try:
            while True:
                item = await written.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Reply):
                    return
        finally:
            gone.set()

    def close(self) -> None:
        """Begin no more answers."""
        self._thread.shutdown(wait=False, cancel_futures=True)
