"""Shards from afar are copied before they are needed: those of the next window while this one is read.

Samples come shuffled over a whole window of shards, so that its first batch needs nearly all of them. One process of a
machine fetches for all: copies lie in a folder that they share (`clips.data.files.ShardCache`).
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from clips.artifact import say
from clips.data.order import Order
from clips.data.sources import Afar, Source, blocks_of
from clips.errors import UserError

_AT_ONCE = 4  # copies under way
_PARTING = 5.0  # seconds that a copy under way may take to end


class Fetcher:
    """Copies the shards of the window that is read, and of the one after it, as far as there is room for both.

    Its threads begin with the first `reach`: processes must have been forked before, lest they inherit a lock that one
    of these threads holds. At the end of the program they are not waited for.

    Args:
        order: of the samples.
        sources: in the order's sequence; those that are here have nothing to copy.
        end: the position at which reading ends.
    """

    def __init__(self, order: Order, sources: Sequence[Source], end: int) -> None:
        self.order, self.sources, self.end = order, [_afar(source) for source in sources], end
        self.blocks = [len(blocks_of(source)) for source in sources]
        self.ends = np.cumsum(self.blocks)
        self._asked: tuple[list[int], list[int]] = [], []
        self._waiting: queue.SimpleQueue[tuple[int, bool] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = threading.Event()
        self._state = threading.Condition()  # guards the following
        self._sizes: dict[int, int] = {}  # of the wanted copies; of those under way a guess
        self._under_way = 0  # copies for the window that is read
        self._told = False

    def reach(self, position: int) -> None:
        """Say that the batch at ``position`` comes next: what it and those after it need is copied, from now on."""
        if not self._threads:
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_AT_ONCE)]
            for thread in self._threads:
                thread.start()
        now, later = self.order.blocks_near(position, self.end)
        if (now, later) == self._asked:
            return
        self._asked = now, later
        with self._state:
            self._sizes = {block: size for block, size in self._sizes.items() if block in {*now, *later}}
            self._under_way += len(now)
        for block in [*now, *later]:  # those that are here already count as used again
            self._waiting.put((block, block in now))

    def _work(self) -> None:
        while (wanted := self._waiting.get()) is not None and not self._closed.is_set():
            block, needed_now = wanted
            number = int(np.searchsorted(self.ends, block, side="right"))
            source = self.sources[number]
            if source is not None and (needed_now or self._has_room(number, source, block)):
                with contextlib.suppress(UserError, FileNotFoundError):  # the reader tries again, and tells
                    path = source.fetch(block - int(self.ends[number]) + self.blocks[number])
                    self._note(block, path.stat().st_size)
            if needed_now:
                with self._state:
                    self._under_way -= 1
                    self._state.notify_all()

    def _note(self, block: int, size: int) -> None:
        with self._state:
            self._sizes[block] = size

    def _has_room(self, number: int, source: Afar, block: int) -> bool:
        """Whether a copy for the next window leaves those of this one alone; if so, its room is taken."""
        with self._state:
            self._state.wait_for(lambda: not self._under_way or self._closed.is_set())
            sizes = [size for other, size in self._sizes.items() if other != block]
            if sum(sizes) + max(sizes, default=0) <= source.room:
                self._sizes[block] = max(sizes, default=0)
                return True
            told, self._told = self._told, True
        if not told:
            say(
                f"data.sources[{number}].cache_gb: {source.room / 1e9:g} GB have no room for two windows of "
                "data.shuffle_window shards; some of the next are copied only when they are needed"
            )
        return False

    def close(self) -> None:
        """Leave undone what has not begun; what has may take a moment to end."""
        self._closed.set()
        with self._state:
            self._state.notify_all()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(_PARTING / _AT_ONCE)


def _afar(source: Source) -> Afar | None:
    return cast(Afar, source) if getattr(source, "from_afar", False) else None


@contextlib.contextmanager
def fetching(order: Order, sources: Sequence[Source], end: int) -> Iterator[Fetcher | None]:
    """A `Fetcher` where there is something to fetch and this process is the first of its machine, else None."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if order.window is None or not first or not any(map(_afar, sources)):
        yield None
        return
    fetcher = Fetcher(order, sources, end)
    try:
        yield fetcher
    finally:
        fetcher.close()
