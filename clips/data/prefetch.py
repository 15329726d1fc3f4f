"""Prefetching of remote shards: the shards of the next buffer are downloaded while the current one is read.

Samples are shuffled over a buffer of shards, so its first batch needs nearly all of them. One process per node
downloads for all processes of the node, which share a cache (`clips.data.remote_files.ShardCache`).
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

_NUM_THREADS = 4  # concurrent downloads
_CLOSE_SECONDS = 5.0  # for running downloads to end


class ShardPrefetcher:
    """Downloads the shards of the current buffer, and of the next one as far as both fit into the cache.

    Its daemon threads start with the first `reach`. Worker processes must be forked before that, so that they do not
    inherit a lock held by one of these threads.

    Args:
        order: sample order.
        sources: in the order's sequence; local ones need no download.
        last: the last step.
        share: the slice of each batch that this node reads: start and end as ratios, 0 … 1.
    """

    def __init__(
        self, order: SampleOrder, sources: Sequence[Source], last: int, share: tuple[float, float] = (0, 1)
    ) -> None:
        self.order, self.sources, self.last, self.share = order, list(map(_if_remote, sources)), last, share
        self.blocks = [len(shard_lengths(source)) for source in sources]
        self.ends = np.cumsum(self.blocks)
        self._requested: tuple[list[int], list[int]] = [], []
        self._threads: list[threading.Thread] = []
        self._state = threading.Condition()  # guards the following
        self._closed = False
        self._current: deque[int] = deque()  # shards to download for the current buffer
        self._next_buffer: deque[int] = deque()  # downloaded when the current buffer is complete
        self._copying = 0  # running downloads for the current buffer
        self._sizes: dict[int, int] = {}  # shard → bytes; an estimate until it is downloaded
        self._warned = False

    def reach(self, step: int) -> None:
        """Download the shards of ``step``, which is read next, and those of later steps."""
        if not self._threads:
            self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_NUM_THREADS)]
            for thread in self._threads:
                thread.start()
        requested = self.order.shards_near(step, self.last, self.share)
        if requested == self._requested:
            return
        self._requested = requested
        with self._state:  # replaces the pending requests
            self._sizes = {
                block: size for block, size in self._sizes.items() if block in {*requested[0], *requested[1]}
            }
            self._current, self._next_buffer = (deque(filter(self._is_remote, blocks)) for blocks in requested)
            self._state.notify_all()

    def _source_of(self, block: int) -> int:
        return int(np.searchsorted(self.ends, block, side="right"))

    def _is_remote(self, block: int) -> bool:
        return self.sources[self._source_of(block)] is not None

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            block, is_current = task
            number = self._source_of(block)
            source, first = cast(RemoteSource, self.sources[number]), int(self.ends[number]) - self.blocks[number]
            with contextlib.suppress(UserError, FileNotFoundError):  # the reader retries, and reports the error
                size = source.fetch(block - first).stat().st_size
                with self._state:
                    self._sizes[block] = size
            with self._state:
                self._copying -= is_current
                self._state.notify_all()

    def _next_task(self) -> tuple[int, bool] | None:
        """A shard to download, and whether the current buffer needs it; None after `close`."""
        with self._state:
            while not self._closed:
                if self._current:
                    self._copying += 1
                    return self._current.popleft(), True
                while self._next_buffer and not self._copying:
                    if self._has_room(block := self._next_buffer.popleft()):
                        return block, False
                self._state.wait()
        return None

    def _has_room(self, block: int) -> bool:
        """Reserve cache space for a shard of the next buffer, unless shards of this one would have to go."""
        number = self._source_of(block)
        room = cast(RemoteSource, self.sources[number]).copies.limit
        sizes = [size for other, size in self._sizes.items() if other != block]
        if sum(sizes) + max(sizes, default=0) <= room:
            self._sizes[block] = max(sizes, default=0)
            return True
        if not self._warned:
            self._warned = True
            log_info(
                f"data.sources[{number}].max_cache_gb: {room / 1e9:g} GB have no room for two shuffle buffers of "
                "data.shuffle_buffer_shards shards; some of the next buffer are downloaded only when they are needed"
            )
        return False

    def close(self) -> None:
        """Cancel pending downloads; running ones may take a moment to end."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_SECONDS / _NUM_THREADS)


def _if_remote(source: Source) -> RemoteSource | None:
    return cast(RemoteSource, source) if getattr(source, "is_remote", False) else None


@contextlib.contextmanager
def start_prefetcher(
    order: SampleOrder, sources: Sequence[Source], last: int, rank: int = 0, world_size: int = 1
) -> Iterator[ShardPrefetcher | None]:
    """A `ShardPrefetcher` if there are remote shards and this process is the first of its node, else None.

    The downloads run in a `DownloadProcess`.
    """
    local_rank, local_size = _local_rank(rank, world_size)
    remote = [source for source in map(_if_remote, sources) if source is not None]
    with _download_in_process(remote):
        if order.buffer_shards is None or local_rank or not remote:
            yield None
            return
        prefetcher = ShardPrefetcher(
            order, sources, last, (rank / world_size, min(1, (rank + local_size) / world_size))
        )
        try:
            yield prefetcher
        finally:
            prefetcher.close()


@contextlib.contextmanager
def _download_in_process(sources: Sequence[RemoteSource]) -> Iterator[None]:
    """Run this process's downloads of ``sources`` in a `DownloadProcess`; workers forked earlier do not need it."""
    downloads = DownloadProcess()
    for source in sources:
        source.copies.downloads = downloads
    try:
        yield
    finally:
        for source in sources:
            source.copies.downloads = None
        downloads.close()


def _local_rank(rank: int, world_size: int) -> tuple[int, int]:
    """This process's rank on its node, assuming consecutive ranks, and the number of processes on the node."""
    if "LOCAL_RANK" not in os.environ:  # each process downloads for itself
        return 0, 1
    local_size = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")  # torchrun; deepspeed
    return int(os.environ["LOCAL_RANK"]), int(local_size or world_size - rank)
