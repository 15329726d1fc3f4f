"""Shards from afar are copied before they are needed: those of the next window while this one is read.

Samples come shuffled over a whole window of shards, so that its first batch needs nearly all of them. One process of a
machine fetches for all: copies lie in a folder that they share (`clips.data.remote_files.ShardCache`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from clips.core.artifact import log_info
from clips.data.download_process import DownloadProcess
from clips.data.sampler import SampleOrder
from clips.data.sources import RemoteSource, Source, shard_lengths
from clips.errors import UserError

_AT_ONCE = 4  # copies under way
_PARTING = 5.0  # seconds that a copy under way may take to end


class ShardPrefetcher:
    """Copies the shards of the window that is read, and of the one after it, as far as there is room for both.

    Its threads begin with the first `reach`: processes must have been forked before, lest they inherit a lock that one
    of these threads holds. At the end of the program they are not waited for.

    Args:
        order: of the samples.
        sources: in the order's sequence; those that are here have nothing to copy.
        last: the step at which reading ends.
        share: the part of each batch that this machine reads: from which of its positions to which, 0 … 1.
    """

    def __init__(
        self, order: SampleOrder, sources: Sequence[Source], last: int, share: tuple[float, float] = (0, 1)
    ) -> None:
        self.order, self.sources, self.last, self.share = order, [_afar(source) for source in sources], last, share
        self.blocks = [len(shard_lengths(source)) for source in sources]
        self.ends = np.cumsum(self.blocks)
        self._asked: tuple[list[int], list[int]] = [], []
        self._threads: list[threading.Thread] = []
        self._state = threading.Condition()  # guards the following
        self._closed = False
        self._now: deque[int] = deque()  # to be copied for the window that is read
        self._later: deque[int] = deque()  # and, when nothing is left to copy for that one, for the next
        self._copying = 0  # for the window that is read
        self._sizes: dict[int, int] = {}  # of the wanted copies; of those under way a guess
        self._told = False

    def reach(self, step: int) -> None:
        """Say that the batch of ``step`` comes next: what it and those after it need is copied, from now on."""
        if not self._threads:
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_AT_ONCE)]
            for thread in self._threads:
                thread.start()
        asked = self.order.blocks_near(step, self.last, self.share)
        if asked == self._asked:
            return
        self._asked = asked
        with self._state:  # what was asked for before and has not begun is asked for again, or not needed
            self._sizes = {block: size for block, size in self._sizes.items() if block in {*asked[0], *asked[1]}}
            self._now, self._later = (deque(filter(self._is_afar, blocks)) for blocks in asked)
            self._state.notify_all()

    def _source_of(self, block: int) -> int:
        return int(np.searchsorted(self.ends, block, side="right"))

    def _is_afar(self, block: int) -> bool:
        return self.sources[self._source_of(block)] is not None

    def _work(self) -> None:
        while (wanted := self._next()) is not None:
            block, needed_now = wanted
            number = self._source_of(block)
            with contextlib.suppress(UserError, FileNotFoundError):  # the reader tries again, and tells
                path = cast(RemoteSource, self.sources[number]).fetch(
                    block - int(self.ends[number]) + self.blocks[number]
                )
                self._note(block, path.stat().st_size)
            with self._state:
                self._copying -= needed_now
                self._state.notify_all()

    def _next(self) -> tuple[int, bool] | None:
        """A block to copy, and whether the window that is read needs it; None when there will be none any more."""
        with self._state:
            while not self._closed:
                if self._now:
                    self._copying += 1
                    return self._now.popleft(), True
                while self._later and not self._copying:
                    if self._has_room(block := self._later.popleft()):
                        return block, False
                self._state.wait()
        return None

    def _note(self, block: int, size: int) -> None:
        with self._state:
            self._sizes[block] = size

    def _has_room(self, block: int) -> bool:
        """Whether a copy for the next window leaves those of this one alone; if so, its room is taken."""
        number = self._source_of(block)
        room = cast(RemoteSource, self.sources[number]).copies.limit
        sizes = [size for other, size in self._sizes.items() if other != block]
        if sum(sizes) + max(sizes, default=0) <= room:
            self._sizes[block] = max(sizes, default=0)
            return True
        if not self._told:
            self._told = True
            log_info(
                f"data.sources[{number}].max_cache_gb: {room / 1e9:g} GB have no room for two windows of "
                "data.shuffle_buffer_shards shards; some of the next are copied only when they are needed"
            )
        return False

    def close(self) -> None:
        """Leave undone what has not begun; what has may take a moment to end."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        for thread in self._threads:
            thread.join(_PARTING / _AT_ONCE)


def _afar(source: Source) -> RemoteSource | None:
    return cast(RemoteSource, source) if getattr(source, "from_afar", False) else None


@contextlib.contextmanager
def start_prefetcher(
    order: SampleOrder, sources: Sequence[Source], last: int, rank: int = 0, world_size: int = 1
) -> Iterator[ShardPrefetcher | None]:
    """A `Fetcher` where there is something to fetch and this process is the first of its machine, else None.

    Meanwhile nothing is downloaded in this process itself: its threads wait for a `DownloadProcess`.
    """
    local_rank, local_size = _place_on_machine(rank, world_size)
    remote = [source for source in map(_afar, sources) if source is not None]
    with _downloads_apart(remote):
        if order.window is None or local_rank or not remote:
            yield None
            return
        fetcher = ShardPrefetcher(order, sources, last, (rank / world_size, min(1, (rank + local_size) / world_size)))
        try:
            yield fetcher
        finally:
            fetcher.close()


@contextlib.contextmanager
def _downloads_apart(sources: Sequence[RemoteSource]) -> Iterator[None]:
    """What this process copies of ``sources`` meanwhile, a process of its own downloads. Readers forked before do not
    know of it, and need not: they are processes of their own."""
    downloads = DownloadProcess()
    for source in sources:
        source.copies.downloads = downloads
    try:
        yield
    finally:
        for source in sources:
            source.copies.downloads = None
        downloads.close()


def _place_on_machine(rank: int, world_size: int) -> tuple[int, int]:
    """This process's number among those of its machine, whose ranks follow one another, and how many these are."""
    if "LOCAL_RANK" not in os.environ:  # then each fetches for itself
        return 0, 1
    local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")  # torchrun; deepspeed
    return int(os.environ["LOCAL_RANK"]), int(local_size or world_size - rank)
