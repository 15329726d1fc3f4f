"""Prefetching of remote shards: one process per node downloads those of the next buffer while the current one is read.

Samples are shuffled over a buffer of shards, so its first batch needs nearly all of them. The processes of a node share
a cache (`clips.data.remote_files.ShardCache`): a reader waits for a download under way, and downloads a shard itself if
none is. In the training process downloads would take the interpreter lock from the step.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from clips.commandline.signals import STOP_SIGNALS
from clips.core.parent_death import start_python
from clips.data.remote_files import unfinished
from clips.data.sources import Source
from clips.loader.sampler import SampleOrder
from clips.safe_text import log_info

_END = b"end\n"

Shard = tuple[Source, int]
"""A source and the index of one of its shards."""


@contextlib.contextmanager
def start_prefetching(
    order: SampleOrder, sources: Sequence[Source], last: int, rank: int = 0, world_size: int = 1
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with each step before it is read; it does nothing but in the first process of a node.

    The process that downloads ends with the block or with this process, also if that is killed. DataLoader workers must
    be forked earlier, because they would keep its input open.
    """
    local_rank, local_size = 0, 1  # each process downloads for itself
    if "LOCAL_RANK" in os.environ:  # on a node, whose processes have consecutive ranks
        count = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")  # torchrun; deepspeed
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(count or world_size - rank)
    is_remote = [source.is_remote for source in sources]
    if order.buffer_shards is None or local_rank or not any(is_remote):
        yield lambda step: None
        return
    shards = [
        (source if remote else None, number)
        for source, remote in zip(sources, is_remote, strict=True)
        for number in range(len(source.blocks))
    ]
    share = (rank / world_size, min(1, (rank + local_size) / world_size))
    process, stdin = start_python("from clips.loader.prefetch import main; main()")

    def send(content: bytes) -> None:
        with contextlib.suppress(OSError):  # the process was killed: readers download all shards
            stdin.write(content)
            stdin.flush()

    try:
        send(pickle.dumps((order, shards, last, share)))
        yield lambda step: send(b"%d\n" % step)
    finally:
        send(_END)
        with contextlib.suppress(OSError):
            stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main() -> None:
    """The process that downloads. It ignores signals, which schedulers send to all: training handles them."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    order, shards, last, share = pickle.load(sys.stdin.buffer)  # from `start_prefetching`, never from a file
    executor = ThreadPoolExecutor(4)
    wanted: tuple[list[int], list[int]] = [], []
    pending: list[Future[int]] = []
    for line in sys.stdin.buffer:
        if line == _END:
            break
        before, wanted = wanted, order.shards_near(int(line), last, share)
        if wanted == before:
            continue
        for future in pending:
            future.cancel()
        now, later = ([shards[index] for index in indices if shards[index][0]] for indices in wanted)
        current = [executor.submit(_fetch, shard) for shard in now]
        ahead = [executor.submit(_fetch_ahead, shard, place, current) for place, shard in enumerate(later, 1)]
        pending = current + ahead
    for path in unfinished.copy():
        path.unlink(missing_ok=True)
    os._exit(0)  # without waiting for downloads


def _fetch(shard: Shard) -> int:
    """Download a shard; return its size, 0 if that failed: the reader retries, and reports the error with the URL."""
    source, number = shard
    with contextlib.suppress(Exception):  # file systems raise errors of their own
        return source.fetch(number).stat().st_size
    return 0


def _fetch_ahead(shard: Shard, place: int, current: Sequence[Future[int]]) -> int:
    """Download the shard at ``place`` (1, 2, …) of the next buffer, unless some of the current one would have to go."""
    sizes = [future.result() for future in wait(current).done]  # submitted before this: all have begun
    cache = shard[0].copies
    if sum(sizes) + place * max(sizes, default=0) <= cache.limit:
        return _fetch(shard)
    _warn_once(cache.directory, cache.limit)
    return 0


@functools.cache
def _warn_once(directory: Path, limit: float) -> None:
    log_info(
        f"data source's 'max_cache_gb': {limit / 1e9:g} GB in {directory} have no room for two shuffle buffers of "
        "data.shuffle_buffer_shards shards; some of the next buffer are downloaded only when they are needed"
    )
