"""Which sample comes when: pure functions of the seed, so that a run can go on from any step on any world size.

Training reads one endless stream of positions 0, 1, 2, … Step s of global batch B reads positions s·B … (s+1)·B − 1,
cut into equal, consecutive slices, one a process. `Order` says which sample stands at a position, without having
been through the positions before.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ORDER, _SAMPLE, _DEAL = 0, 1, 2  # separate streams of random numbers
_CYCLE = 1000  # positions in which a mixture keeps to its weights exactly


@dataclass(frozen=True)
class Place:
    """What stands at a position: a sample's index, and how often its source was gone through before."""

    index: int
    epoch: int


class Order:
    """The order of one source or several.

    Without weights the sources are one sequence; epoch after epoch, each sample comes once, in another order each time.
    With weights, each source is a stream of its own, and every 1,000 positions have as many of each as its share.

    Args:
        blocks: for each source, the numbers of samples in its blocks (shards): neighbours on disk.
        weights: for each source, its share of the positions, relative to the others; None for one sequence.
        seed: another one gives another order.
        window: blocks that are shuffled together; None shuffles all samples of an epoch, which takes 8 bytes each.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        *,
        seed: int,
        window: int | None = None,
    ) -> None:
        self.seed, self.window = seed, window
        self.samples = sum(map(sum, blocks))
        if weights is None:
            blocks = [[size for source in blocks for size in source]]
        self._streams = [_Stream(sizes, (seed, number), window) for number, sizes in enumerate(blocks)]
        self._starts = np.cumsum([0, *(stream.size for stream in self._streams)])
        self._first_blocks = np.cumsum([0, *(len(stream.blocks) for stream in self._streams)])
        self._quotas = _quotas(weights or [1.0])

    def __len__(self) -> int:
        """The number of samples, of all sources."""
        return self.samples

    def at(self, position: int, *, ahead: int = 0) -> Place:
        """What stands at ``position``, or ``ahead`` places further on in the same source's stream."""
        if len(self._streams) == 1:
            return self._streams[0].at(position + ahead)
        cycle, place = divmod(position, _CYCLE)
        dealt = _dealt(tuple(self._quotas), self.seed, cycle)
        source = int(dealt[place])
        before = cycle * self._quotas[source] + int((dealt[:place] == source).sum())
        found = self._streams[source].at(before + ahead)
        return Place(found.index + int(self._starts[source]), found.epoch)

    def blocks_near(self, position: int, end: int) -> tuple[list[int], list[int]]:
        """The blocks, counted through all sources, of the windows at ``position``, and of those that come next.

        Only for an order with a ``window``. In a mixture a source's place is known to its cycle.

        Args:
            position: where reading stands.
            end: where it ends: windows that begin there or later are left out.
        """
        now: list[int] = []
        later: list[int] = []
        for stream, first, quota in zip(self._streams, self._first_blocks, self._quotas, strict=False):
            alone = len(self._streams) == 1
            place = position if alone else position // _CYCLE * quota
            last = end if alone else (end + _CYCLE - 1) // _CYCLE * quota
            for found, blocks in zip((now, later), stream.windows_from(place, last), strict=True):
                found += [int(first) + block for block in blocks]
        return now, later

    def generator(self, place: Place) -> np.random.Generator:
        """Random numbers for drawing captions and crops: the same for the same sample in the same epoch."""
        return np.random.default_rng([_SAMPLE, self.seed, place.epoch, place.index])


class _Stream:
    """Every sample of one sequence of blocks once an epoch."""

    def __init__(self, blocks: Sequence[int], seed: tuple[int, int], window: int | None) -> None:
        self.blocks = np.asarray(blocks, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.blocks)[:-1]])
        self.size = int(self.blocks.sum())
        self.seed = seed
        self.window = window
        # Processes that read ahead get the stream without what it remembers.
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        self._shuffled = functools.lru_cache(maxsize=4)(self._shuffle)
        self._whole = functools.lru_cache(maxsize=2)(functools.partial(_permutation, self.size, *self.seed))

    def __reduce__(self) -> tuple[type[_Stream], tuple[list[int], tuple[int, int], int | None]]:
        return _Stream, (self.blocks.tolist(), self.seed, self.window)

    def at(self, position: int) -> Place:
        epoch, place = divmod(position, self.size)
        if self.window is None:
            return Place(int(self._whole(epoch)[place]), epoch)
        _, ends = self._plan(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[number - 1]) if number else 0
        return Place(int(self._shuffled(epoch, number)[place - start]), epoch)

    def windows_from(self, position: int, end: int) -> tuple[list[int], list[int]]:
        """The blocks of the window that ``position`` lies in, and of the one after it, if it begins before ``end``."""
        epoch, place = divmod(position, self.size)
        _, ends = self._plan(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        after = (epoch, number + 1) if number + 1 < len(ends) else (epoch + 1, 0)
        is_read = epoch * self.size + int(ends[number]) < end
        return self._blocks_of(epoch, number), self._blocks_of(*after) if is_read else []

    def _blocks_of(self, epoch: int, number: int) -> list[int]:
        order, _ = self._plan(epoch)
        assert self.window is not None
        return [int(block) for block in order[number * self.window : (number + 1) * self.window]]

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in this epoch's order, and where each window of them ends among the positions."""
        order = _permutation(len(self.blocks), *self.seed, epoch)
        ends = np.cumsum(self.blocks[order])
        assert self.window is not None
        last = np.arange(self.window - 1, len(order) + self.window - 1, self.window).clip(max=len(order) - 1)
        return order, ends[last]

    def _shuffle(self, epoch: int, number: int) -> np.ndarray:
        """The samples of one window in their order."""
        chosen = self._blocks_of(epoch, number)
        samples = np.concatenate([self.starts[block] + np.arange(self.blocks[block]) for block in chosen])
        return np.random.default_rng([_ORDER, *self.seed, epoch, number]).permutation(samples)


def _permutation(size: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([_ORDER, seed, epoch, *([stream] if stream else [])]).permutation(size)
    return order.astype(np.int32) if size < 2**31 else order  # every reader holds it


def _quotas(weights: Sequence[float]) -> list[int]:
    """How many of a cycle's positions each source gets: in proportion, by largest remainder, at least one."""
    shares = np.asarray(weights) / np.sum(weights) * _CYCLE
    quotas = np.maximum(np.floor(shares).astype(int), 1)
    by_remainder = np.argsort(np.floor(shares) - shares, kind="stable")
    for number in range(_CYCLE - int(quotas.sum())):
        quotas[by_remainder[number % len(quotas)]] += 1
    while quotas.sum() > _CYCLE:
        quotas[quotas.argmax()] -= 1
    return [int(quota) for quota in quotas]


@functools.lru_cache(maxsize=4)
def _dealt(quotas: tuple[int, ...], seed: int, cycle: int) -> np.ndarray:
    sources = np.repeat(np.arange(len(quotas)), quotas)
    return np.random.default_rng([_DEAL, seed, cycle]).permutation(sources)


def positions_of_step(step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions that process ``rank`` reads in ``step``; ``batch_size`` is the global one."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)
