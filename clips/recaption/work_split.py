"""Split of the work: a function of the source and the config alone.

Every batch therefore holds the same images, regardless of the number of processes and of interruptions, and the
captions are the same.

A *shard* is written atomically. Neighboring shards form a *group*, the unit of work of a process. A group is read in
*windows* across the borders of its shards; the captions of a window are generated in batches of similar prompts, all of
them full except the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_BATCHES_OF_GROUP = 64  # at least: at most one in N batches is not full for lack of samples
_BATCHES_OF_WINDOW = 8


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """Samples ``start`` … ``stop - 1`` of the source, by the number that names their shard."""

    number: int
    start: int
    stop: int


def split_into_shards(blocks: Sequence[int], size: int) -> list[OutputShard]:
    """Shards of at most ``size`` samples, none with samples of two blocks (the source's own shards)."""
    shards: list[OutputShard] = []
    first = 0
    for block in blocks:
        for start in range(first, first + block, size):
            shards.append(OutputShard(len(shards), start, min(start + size, first + block)))
        first += block
    return shards


def group_shards(shards: Sequence[OutputShard], batch_size: int) -> list[list[OutputShard]]:
    """Neighboring shards, together at least 64 batches, except for the last group."""
    groups: list[list[OutputShard]] = []
    for shard in shards:
        if groups and shard.start - groups[-1][0].start < _BATCHES_OF_GROUP * batch_size:
            groups[-1].append(shard)
        else:
            groups.append([shard])
    return groups


def split_into_windows(group: Sequence[OutputShard], batch_size: int) -> list[range]:
    """The samples of a group in pieces of eight batches."""
    start, stop, size = group[0].start, group[-1].stop, _BATCHES_OF_WINDOW * batch_size
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def overlaps(window: range, shard: OutputShard) -> bool:
    """Whether some of the window's samples are of this shard."""
    return window.start < shard.stop and shard.start < window.stop
