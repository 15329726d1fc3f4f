"""Shards from afar are copied before they are needed: those of the next window while this one is read.

Samples come shuffled over a whole window of shards, so that its first batch needs nearly all of them. One process of a
machine fetches for all: copies lie in a folder that they share (`clips.data.files.ShardCache`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from clips.data.order import Order
from clips.data.sources import Source, blocks_of
from clips.errors import UserError

_AT_ONCE = 4  # copies under way


class Fetcher:
    """Copies the shards of the window that is read, and of the one after it.

    Args:
        order: of the samples.
        sources: in the order's sequence; those without a method ``fetch`` are left alone.
    """

    def __init__(self, order: Order, sources: Sequence[Source]) -> None:
        self.order, self.sources = order, sources
        self.ends = np.cumsum([len(blocks_of(source)) for source in sources])
        self._asked: set[int] = set()
        self._executor = concurrent.futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch")

    def reach(self, position: int) -> None:
        """Say that the batch at ``position`` comes next: what it and those after it need is copied, from now on."""
        wanted = self.order.blocks_near(position)
        for block in wanted:
            if block not in self._asked:
                self._executor.submit(self._fetch, block)
        self._asked = set(wanted)

    def _fetch(self, block: int) -> None:
        number = int(np.searchsorted(self.ends, block, side="right"))
        source = self.sources[number]
        with contextlib.suppress(UserError):  # the reader tries again, and tells
            source.fetch(block - int(self.ends[number]) + len(blocks_of(source)))  # type: ignore[attr-defined]

    def close(self) -> None:
        """Leave undone what has not begun."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def fetching(order: Order, sources: Sequence[Source]) -> Iterator[Fetcher | None]:
    """A `Fetcher` where there is something to fetch and this process is the first of its machine, else None."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if order.window is None or not first or not any(getattr(source, "from_afar", False) for source in sources):
        yield None
        return
    fetcher = Fetcher(order, sources)
    try:
        yield fetcher
    finally:
        fetcher.close()
