"""The sample order: pure functions of the seed, so that a run can resume from any step on any world size.

Training reads one endless stream of positions 0, 1, 2, … Step s of global batch B reads positions s·B … (s+1)·B − 1,
cut into equal, consecutive slices, one per process. `Order` computes the sample at a position without iterating over
earlier ones.

Where only a window of shards is shuffled at a time, a batch is cut into as many as 256 equal lanes, a window's samples
likewise, and a lane of the batch reads one of those parts: a node, whose processes read some of the lanes, needs only
their shards. The lanes do not depend on the number of processes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_ORDER, _SAMPLE, _DEAL = 0, 1, 2  # separate streams of random numbers
_CYCLE = 1000  # after this many samples of a lane a mixture matches its weights
_LANES = 256  # at most: of eight processes on each of 32 machines each has its own


@dataclass(frozen=True)
class SamplePosition:
    """What is at a position: a sample's index, and how often its source was gone through before."""

    index: int
    epoch: int


class SampleOrder:
    """The order of one source or several.

    Without weights the sources are one sequence; epoch after epoch, each sample occurs once, in a new order. With
    weights, each source is a stream of its own. After every 1,000 samples of a lane (without lanes: every 1,000
    positions) its count equals its weight's share of all so far, rounded to whole samples; rarer sources are rounded
    first, and the most frequent one gets the rest. Lanes round at different positions, so that their sum matches the
    weights as well.

    Args:
        blocks: for each source, the sample counts of its shards.
        weights: for each source, its relative frequency; None for one sequence.
        seed: seed of the order.
        window: number of shards that are shuffled together; None shuffles all samples of an epoch, which takes 8 bytes
            each.
        batch_size: positions of one step over all processes; only the order with a window depends on it.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]],
        weights: Sequence[float] | None = None,
        *,
        seed: int,
        window: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self.seed, self.window, self.batch_size = seed, window, batch_size
        self.lanes = math.gcd(batch_size, _LANES) if window else 1
        self._width = batch_size // self.lanes  # of a lane: positions of a step
        self.samples = sum(map(sum, blocks))
        if weights is None:
            blocks = [[size for source in blocks for size in source]]
        self._streams = [
            _Stream(sizes, (seed, number), window, self.lanes, batch_size) for number, sizes in enumerate(blocks)
        ]
        self._starts = np.cumsum([0, *(stream.size for stream in self._streams)])
        self._first_blocks = np.cumsum([0, *(len(stream.blocks) for stream in self._streams)])
        self._mixture = _Mixture(weights or [1.0], seed, self.lanes)

    @property
    def part(self) -> int:
        """About how many samples a lane has of a window; of all samples where there are no windows."""
        count = sum(len(stream.blocks) for stream in self._streams)
        return int(self.samples * min(1, (self.window or count) / count)) // self.lanes

    def __len__(self) -> int:
        """The number of samples, of all sources."""
        return self.samples

    def at(self, position: int, *, ahead: int = 0) -> SamplePosition:
        """The sample at ``position``, or ``ahead`` samples further in the same source's stream."""
        step, offset = divmod(position, self.batch_size)
        lane, inside = divmod(offset, self._width)
        source, count = self._source_at(lane, step * self._width + inside)
        found = self._streams[source].at(count * self.lanes + lane + ahead)
        return SamplePosition(found.index + int(self._starts[source]), found.epoch)

    def _source_at(self, lane: int, number: int) -> tuple[int, int]:
        """Which source sample ``number`` of a lane is from, and how many of the lane's before it are too."""
        if len(self._streams) == 1:
            return 0, number
        return self._mixture.at(lane, number)

    def shards_near(self, step: int, last: int, share: tuple[float, float] = (0, 1)) -> tuple[list[int], list[int]]:
        """The shards (indices over all sources) of the windows read at ``step``, and of the next ones.

        Only for an order with a ``window``.

        Args:
            step: the current step.
            last: the last step: windows that begin there or later are omitted.
            share: the slice of each batch: start and end as ratios, 0 … 1.
        """
        now: list[int] = []
        later: list[int] = []
        lanes = range(math.floor(share[0] * self.lanes), math.ceil(share[1] * self.lanes))
        for number, (stream, first) in enumerate(zip(self._streams, self._first_blocks, strict=False)):
            start = self._counts(number, lanes, step * self._width).min()
            end = self._counts(number, lanes, last * self._width).max()
            for found, blocks in zip((now, later), stream.windows_from(int(start), int(end), lanes), strict=True):
                found += [int(first) + block for block in blocks]
        return now, later

    def _counts(self, source: int, lanes: range, number: int) -> np.ndarray:
        """How many of each lane's first ``number`` samples are from ``source``."""
        if len(self._streams) == 1:
            return np.full(len(lanes), number)
        return self._mixture.counts(source, lanes, number)

    def generator(self, place: SamplePosition) -> np.random.Generator:
        """Random numbers for drawing captions and crops: the same for the same sample in the same epoch."""
        return np.random.default_rng([_SAMPLE, self.seed, place.epoch, place.index])


class _Stream:
    """Every sample of one sequence of shards once per epoch; its positions are assigned to the lanes round-robin."""

    def __init__(
        self, blocks: Sequence[int], seed: tuple[int, int], window: int | None, lanes: int, batch_size: int
    ) -> None:
        self.blocks = np.asarray(blocks, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.blocks)[:-1]])
        self.size = int(self.blocks.sum())
        self.seed = seed
        self.window, self.lanes, self.batch_size = window, lanes, batch_size
        # DataLoader workers get the stream without its memory.
        self._plan = functools.lru_cache(maxsize=2)(self._make_plan)
        spanned = 0 if window is None else batch_size * len(self.blocks) // max(1, window * self.size)  # by a batch
        self._shuffled = functools.lru_cache(maxsize=4 + spanned)(self._shuffle)
        self._whole = functools.lru_cache(maxsize=2)(functools.partial(_permutation, self.size, *self.seed))

    def __reduce__(self) -> tuple[type[_Stream], tuple[list[int], tuple[int, int], int | None, int, int]]:
        return _Stream, (self.blocks.tolist(), self.seed, self.window, self.lanes, self.batch_size)

    def at(self, position: int) -> SamplePosition:
        epoch, place = divmod(position, self.size)
        if self.window is None:
            return SamplePosition(int(self._whole(epoch)[place]), epoch)
        number, start, _ = self._window_at(epoch, place)
        return SamplePosition(int(self._shuffled(epoch, number)[place - start]), epoch)

    def windows_from(self, count: int, end: int, lanes: range) -> tuple[list[int], list[int]]:
        """The shards of ``lanes`` in the window of their sample ``count``, and in the next one.

        The latter is empty if it begins after their sample ``end``.
        """
        epoch, place = divmod(count * self.lanes + lanes.start, self.size)
        number, _, stop = self._window_at(epoch, place)
        after = (epoch, number + 1) if stop < self.size else (epoch + 1, 0)
        is_read = epoch * self.size + stop < end * self.lanes
        return self._blocks_of(epoch, number, lanes), self._blocks_of(*after, lanes) if is_read else []

    def _window_at(self, epoch: int, place: int) -> tuple[int, int, int]:
        """The index of the window that contains ``place``, and its start and end within the epoch."""
        _, ends = self._plan(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        return number, int(ends[number - 1]) if number else 0, int(ends[number])

    def _blocks_of(self, epoch: int, number: int, lanes: range | None = None) -> list[int]:
        """The shards of a window, or those that the parts of ``lanes`` are in."""
        order, ends = self._plan(epoch)
        assert self.window is not None
        blocks = order[number * self.window : (number + 1) * self.window]
        if lanes is not None:
            parts = self._parts(epoch, int(ends[number - 1]) if number else 0, int(ends[number]))
            block_ends = np.cumsum(self.blocks[blocks])
            first, last = parts[lanes.start], parts[lanes.stop]
            blocks = blocks[(block_ends > first) & (block_ends - self.blocks[blocks] < last)]
        return [int(block) for block in blocks]

    def _parts(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Where each lane's part begins among the samples of a window, block after block; and where the last ends."""
        first, last = epoch * self.size + start, epoch * self.size + stop
        lanes = np.arange(self.lanes)
        return np.concatenate([[0], np.cumsum((last - lanes - 1) // self.lanes - (first - lanes - 1) // self.lanes)])

    def _make_plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks in this epoch's order, and where each window of them ends among the positions."""
        order = _permutation(len(self.blocks), *self.seed, epoch)
        ends = np.cumsum(self.blocks[order])
        assert self.window is not None
        last = np.arange(self.window - 1, len(order) + self.window - 1, self.window).clip(max=len(order) - 1)
        return order, ends[last]

    def _shuffle(self, epoch: int, number: int) -> np.ndarray:
        """The samples of one window in order: each lane's part shuffled separately, and the lanes interleaved."""
        chosen = self._blocks_of(epoch, number)
        samples = np.concatenate([self.starts[block] + np.arange(self.blocks[block]) for block in chosen])
        _, ends = self._plan(epoch)
        stop = int(ends[number])
        start, rng = stop - len(samples), np.random.default_rng([_ORDER, *self.seed, epoch, number])
        parts = self._parts(epoch, start, stop)
        shuffled = np.empty_like(samples)
        for lane in range(self.lanes):
            first = (lane - epoch * self.size - start) % self.lanes
            shuffled[first :: self.lanes] = rng.permutation(samples[parts[lane] : parts[lane + 1]])
        return shuffled


def _permutation(size: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    order = np.random.default_rng([_ORDER, seed, epoch, *([stream] if stream else [])]).permutation(size)
    return order.astype(np.int32) if size < 2**31 else order  # every reader holds it


class _Mixture:
    """The source of each sample of a lane, in proportions that are exact in the long run.

    Args:
        weights: of the sources, relative to each other.
        seed: seed of the order.
        lanes: number of lanes.
    """

    def __init__(self, weights: Sequence[float], seed: int, lanes: int) -> None:
        self.weights, self.seed, self.lanes = list(weights), seed, lanes
        self._sources = functools.lru_cache(maxsize=4)(self._deal)
        self._totals = functools.lru_cache(maxsize=8)(self._count)

    def __reduce__(self) -> tuple[type[_Mixture], tuple[list[float], int, int]]:
        return _Mixture, (self.weights, self.seed, self.lanes)  # without its memory

    def at(self, lane: int, number: int) -> tuple[int, int]:
        """Which source sample ``number`` of ``lane`` is from, and how many of the lane's before it are too."""
        cycle, place = divmod(number, _CYCLE)
        dealt = self._sources(cycle)[lane]
        source = int(dealt[place])
        return source, int(self._totals(cycle)[source, lane]) + int(np.count_nonzero(dealt[:place] == source))

    def counts(self, source: int, lanes: range, number: int) -> np.ndarray:
        """How many of each lane's first ``number`` samples are from ``source``."""
        cycle, place = divmod(number, _CYCLE)
        chosen = slice(lanes.start, lanes.stop)
        dealt = self._sources(cycle)[chosen, :place]
        return self._totals(cycle)[source, chosen] + (dealt == source).sum(axis=1)

    def _count(self, cycle: int) -> np.ndarray:
        """Number of each lane's samples before ``cycle`` from each source, (sources, lanes).

        Integer arithmetic throughout: a weight is a decimal fraction as written, for any number of samples. Each
        source's count never falls from cycle to cycle, since it is a rounded share of the remainder after the rarer
        ones.
        """
        left = [cycle * _CYCLE] * self.lanes
        weights = [Fraction(str(float(weight))) for weight in self.weights]
        found = np.zeros((len(weights), self.lanes), dtype=np.int64)
        *rarer, last = sorted(range(len(weights)), key=weights.__getitem__)
        rest = sum(weights, Fraction(0))
        for number, source in enumerate(rarer, 1):
            stride = int(0.618 * number % 1 * self.lanes) | 1  # each time other lanes round up, and not neighbors
            phases = [2 * (lane * stride % self.lanes) + 1 for lane in range(self.lanes)]  # of 2 · lanes
            part, whole = (weights[source] / rest).as_integer_ratio()
            taken = [
                (2 * self.lanes * part * room + whole * phase) // (2 * self.lanes * whole)
                for room, phase in zip(left, phases, strict=True)
            ]
            found[source] = taken
            left = [room - share for room, share in zip(left, taken, strict=True)]
            rest -= weights[source]
        found[last] = left
        return found

    def _deal(self, cycle: int) -> np.ndarray:
        """The sources of a cycle's samples, (lanes, samples).

        Lanes have the same order but begin at different offsets, so that few positions of all lanes match the weights.
        """
        ends = np.cumsum(self._totals(cycle + 1) - self._totals(cycle), axis=0)
        slots = np.random.default_rng([_DEAL, self.seed, cycle]).permutation(np.arange(_CYCLE))
        starts = np.arange(self.lanes) * _CYCLE // self.lanes
        slots = slots[(starts[:, None] + np.arange(_CYCLE)) % _CYCLE]
        dealt = np.zeros(slots.shape, dtype=np.int16)
        for end in ends[:-1]:
            dealt += slots >= end[:, None]
        return dealt


def step_positions(step: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions that process ``rank`` reads in ``step``; ``batch_size`` is the global one."""
    share = batch_size // world_size
    start = step * batch_size + rank * share
    return range(start, start + share)
