"""Split of the work: a function of the source and the config alone.

The batches, and therefore the captions, do not depend on the number of processes and on interruptions.

A *shard* is written atomically. Neighboring shards form a *group*, the unit of work of a process. A group is read in
*windows* across the borders of its shards. The captions of a window are generated in batches of similar prompts, all of
them full except the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_MIN_GROUP_BATCHES = 64  # at most one of them is not full
_WINDOW_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """Samples ``start`` … ``stop - 1`` of the source; ``number`` is in the shard's file name."""

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
        if groups and shard.start - groups[-1][0].start < _MIN_GROUP_BATCHES * batch_size:
            groups[-1].append(shard)
        else:
            groups.append([shard])
    return groups


def split_into_windows(group: Sequence[OutputShard], batch_size: int) -> list[range]:
    """The samples of a group in windows of eight batches."""
    start, stop, size = group[0].start, group[-1].stop, _WINDOW_BATCHES * batch_size
    return [range(first, min(first + size, stop)) for first in range(start, stop, size)]


def overlaps(window: range, shard: OutputShard) -> bool:
    """Whether the window contains samples of the shard."""
    return window.start < shard.stop and shard.start < window.stop
