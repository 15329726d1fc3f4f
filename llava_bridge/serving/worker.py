"""The one thread in which the model runs, and how its words reach those who asked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import traceback
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clips.errors import UserError
from llava_bridge.asking.reply import Reply, reply
from llava_bridge.serving.asked import Asked, RequestError


class Worker:
    """Answers one request at a time, in the order in which they came.

    Args:
        model: from :func:`~llava_bridge.asking.inference.load_llava`.
        processor: from the same.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def write(self, asked: Asked) -> AsyncGenerator[str | Reply, None]:
        """The pieces of an answer as they are written, then the whole.

        Whoever closes the generator or is cancelled in it ends the writing after the next token, or before the first.

        Raises:
            UserError: the request does not suit the model; see :func:`~llava_bridge.asking.reply.reply`.
            RequestError: writing failed.
        """
        loop, written = asyncio.get_running_loop(), asyncio.Queue[str | Reply | Exception]()
        gone = threading.Event()

        def tell(item: str | Reply | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended in the meantime
                loop.call_soon_threadsafe(written.put_nowait, item)

        def work() -> None:
            if gone.is_set():
                return
            try:
                tell(self._reply(asked, tell, gone.is_set))
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

    def _reply(self, asked: Asked, tell: Callable[[str], None], cancelled: Callable[[], bool]) -> Reply:
        write = functools.partial(reply, self.model, self.processor, on_text=tell, cancelled=cancelled)
        try:
            return write(asked.pictures, asked.messages, asked.decoding)
        except UserError:
            raise
        except Exception:  # of the libraries, for instance too little memory: the next request may do
            traceback.print_exc()
            raise RequestError("the server failed; its terminal says why", status=500) from None

    def close(self) -> None:
        """Begin no more answers."""
        self._thread.shutdown(wait=False, cancel_futures=True)
